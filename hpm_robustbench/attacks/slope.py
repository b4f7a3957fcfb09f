"""The gradient of a loss towards the image, whether it leads anywhere, and which rows a dear attack is spent on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from hpm_robustbench.attacks.ball import Ball
from hpm_robustbench.attacks.base import View, seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.whole_batches import Remembering
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.shapes import Images, Labels, Logits, Losses, Mask
from hpm_robustbench.threat import ThreatModel

Rows = Int[Tensor, "R"]
WHERE = EVERYWHERE, FLAT, MISLED = "everywhere", "flat", "misled"
"""Rows that an attack without gradients is spent on: all, those without a gradient, or also those that it misleads."""

_ROUNDING = 1e-4
"""Share of the logits' spread by which another order or size of a batch may change a logit."""
_UNITS = 16
"""Units in the last place of the largest logit by which it may change, too."""
_SMALL = 0.01
"""Share of eps that is a small step: most networks are as good as linear within it."""
_APART = 0.1
"""Share of a gradient's length by which other mates may change it: more than rounding does. An alarm costs passes."""


def slope_of(
    view: Callable[[Images], Logits],
    x: Images,
    y: Labels,
    loss: Callable[[Logits, Labels], Losses],
    of: Mask | None = None,
) -> Images:
    """The gradient by the images of a loss, summed over all rows or some; zero where the answer has none."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss(view(leaf), y)
        connected = (losses if of is None else losses[of]).sum() + 0 * leaf.sum()
        (slope,) = torch.autograd.grad(connected, leaf)
    return slope


def flat(slope: Images) -> Mask:
    """Rows whose gradient is exactly zero, or not finite."""
    values = slope.flatten(1)
    return (values == 0).all(dim=1) | ~values.isfinite().all(dim=1)


def misled_by(slope: Images, view: View, x: Images, y: Labels, active: Mask, threat: ThreatModel) -> Mask:
    """Rows at which a small step along the ``slope`` of the active margins gains less than half of what it promises.

    So it is where a gradient is noise, leads elsewhere, or belongs to another image. Rows that move each other are
    judged together, by the mean of the active ones: all of them, or none. What is not a number promises nothing as a
    slope, and gains nothing as a margin.

    Source: the local linearity of Qin et al. 2019 (arXiv 1907.02610), as a check instead of a regulariser.
    """
    slope, ball = slope.nan_to_num(0.0, 0.0, 0.0), Ball(x, threat)
    point = ball.project(x + _SMALL * float(threat.eps) * ball.direction(slope))
    promised = ((point - x) * slope).flatten(1).sum(dim=1)
    before, after = _answers(view, x), _answers(view, point)
    gained, slack = margin(after, y) - margin(before, y), rounding(before)
    if not view.row_independent:  # the slope is that of a sum, to which every image moves every row
        promised = (promised.sum() / active.sum()).expand(len(x))
        gained, slack = gained[active].mean().expand(len(x)), slack.amax()
    return ~(gained + slack >= promised / 2)


def borrowed(slope: Images, view: View, x: Images, y: Labels, active: Mask) -> Mask:
    """Rows whose gradient changes with the company or the order in which they are asked, though their answer must not.

    Where rows are independent each active one is asked alone. Where they share a batch, that comes in two other orders,
    backwards and mixed, with which its gradient has to go: a shared slope, so all rows or none. What goes to all mates
    alike, or to the only one there is, no order tells. What is not a number is no gradient, so nobody else's either.
    """
    slope = slope.nan_to_num(0.0, 0.0, 0.0)

    def change(companies: Iterable[Rows]) -> Images:
        again = slope.clone()
        for rows in companies:
            again[rows] = slope_of(view, x[rows], y[rows], margin, active[rows]).nan_to_num(0.0, 0.0, 0.0)
        return again - slope

    if view.row_independent:
        alone = change(torch.split(active.nonzero().squeeze(1), 1))
        same: Mask = alone.flatten(1).norm(dim=1) <= _APART * slope.flatten(1).norm(dim=1)
        return ~same
    mixed = torch.randperm(len(x), generator=seeded(0))
    orders = [order.to(x.device) for order in (torch.arange(len(x)).flip(0), mixed)]
    same = torch.stack([change([order]).norm() for order in orders]).max() <= _APART * slope.norm()
    return (~same).expand(len(x))


def rows_for(where: str, view: View, x: Images, y: Labels, active: Mask, threat: ThreatModel) -> Mask:
    """Active rows that an attack without gradients is spent on, judged on the clean images; ``where`` is one of WHERE.

    Raises:
        UnknownName: it is not.
    """
    if where not in WHERE:
        raise UnknownName("where", where, WHERE)
    if where == EVERYWHERE:
        return active
    view = Remembering(view)
    slope = slope_of(view, x, y, margin, active)
    found = flat(slope)
    if where == MISLED:
        found = found | misled_by(slope, view, x, y, active, threat)
        undecided = active & ~found
        if undecided.any():  # a shared slope is that of all active rows
            found = found | borrowed(slope, view, x, y, undecided if view.row_independent else active)
    return active & found


def _answers(view: View, x: Images) -> Logits:
    """What the view really answers: of the target, what the judge will hear."""
    if view.is_target:
        return view.target_logits(x)
    with torch.no_grad():
        return view(x)


def rounding(logits: Logits) -> Losses:
    """What rounding may do to the logits of each row; a constant that is added to all of them hides nothing in it."""
    spread, largest = logits.amax(dim=1) - logits.amin(dim=1), logits.abs().amax(dim=1)
    return _ROUNDING * spread + _UNITS * torch.finfo(logits.dtype).eps * largest
