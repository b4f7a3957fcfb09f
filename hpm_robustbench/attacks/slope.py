"""The gradient of a loss towards the image, and whether it leads anywhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpm_robustbench.attacks.ball import Ball
from hpm_robustbench.attacks.base import View
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.shapes import Images, Labels, Logits, Losses, Mask
from hpm_robustbench.threat import ThreatModel

_ROUNDING = 1e-4
"""Share of the logits' spread by which another order or size of a batch may change a logit."""
_UNITS = 16
"""Units in the last place of the largest logit by which it may change, too."""
_SMALL = 0.01
"""Share of eps that is a small step: most networks are as good as linear within it."""


def slope_of(
    view: Callable[[Images], Logits], x: Images, y: Labels, loss: Callable[[Logits, Labels], Losses]
) -> Images:
    """The gradient of a loss by the images; zero where the answer has none."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        connected = loss(view(leaf), y).sum() + 0 * leaf.sum()
        (slope,) = torch.autograd.grad(connected, leaf)
    return slope


def flat(slope: Images) -> Mask:
    """Rows whose gradient is exactly zero, or not finite."""
    values = slope.flatten(1)
    return (values == 0).all(dim=1) | ~values.isfinite().all(dim=1)


def misled_by(slope: Images, view: View, x: Images, y: Labels, threat: ThreatModel) -> Mask:
    """Rows at which a small step along the ``slope`` of the margin gains less than half of what it promises.

    So it is where a gradient is noise, leads elsewhere, or belongs to another image. Rows that move each other are
    judged together, by their mean: all of them, or none.

    Source: the local linearity of Qin et al. 2019 (arXiv 1907.02610), as a check instead of a regulariser.
    """
    ball = Ball(x, threat)
    point = ball.project(x + _SMALL * float(threat.eps) * ball.direction(slope))
    promised = ((point - x) * slope).flatten(1).sum(dim=1)
    before, after = view.target_logits(x), view.target_logits(point)
    gained = margin(after, y) - margin(before, y)
    if not view.row_independent:
        promised, gained = (each.mean().expand(len(x)) for each in (promised, gained))
    short: Tensor = promised / 2 - gained > rounding(before)
    return short


def rounding(logits: Logits) -> float:
    """What rounding may do to a logit; a constant that is added to all of them hides nothing in it."""
    spread, largest = (logits.amax(dim=1) - logits.amin(dim=1)).amax(), logits.abs().amax()
    return float(_ROUNDING * spread + _UNITS * torch.finfo(logits.dtype).eps * largest)
