"""The judge alone decides: in the box, inside the budget, finite, and the label changed on the true target.

No attack reports its own success, and no surrogate's opinion counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.shapes import Images, Labels, Logits, Mask
from hpm_robustbench.threat import Norm, ThreatModel


class Judgement(NamedTuple):
    """Per row: a Verdict, the target's label, the size of the perturbation; and warnings about the whole.

    ``together`` is the verdict in that one submission which leaves the fewest rows of the row's batch right.
    """

    verdict: Tensor
    together: Tensor
    predicted: Tensor
    distance: Tensor
    flags: tuple[str, ...]


def perturbation_size(x: Images, x_adv: Images, norm: Norm) -> Tensor:
    """Size of x_adv - x per row in ``norm``, computed in float64: [N]."""
    return _size(x_adv.double() - x.double(), norm)


def _size(delta: Tensor, norm: Norm) -> Tensor:
    flat = delta.flatten(1)
    return flat.abs().amax(dim=1) if norm is Norm.LINF else flat.norm(dim=1)


def legal(x: Images, x_adv: Images, threat: ThreatModel) -> Mask:
    """Rows of ``x_adv`` that the threat model allows: finite, in [0, 1], within eps.

    An image is float32, so x + delta is rounded: by up to half a unit in the last place per pixel. A row is inside
    the budget if its perturbation is at most eps plus one such unit per pixel, measured in the stated norm (at most
    1.2e-7 in Linf). Less would refuse points that stock AutoAttack returns: x + eps, rounded to float32.
    """
    finite = x_adv.isfinite().flatten(1).all(dim=1)
    in_box = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(dim=1)
    unit = (torch.nextafter(x_adv, torch.full_like(x_adv, 2.0)) - x_adv).double()
    slack = _size(unit.nan_to_num(0.0), threat.norm)
    return finite & in_box & (perturbation_size(x, x_adv, threat.norm) <= float(threat.eps) + slack)


def judge(
    target: Callable[[Images], Logits],
    x: Images,
    x_adv: Images,
    y: Labels,
    threat: ThreatModel,
    batches: Sequence[slice],
) -> Judgement:
    """Decide every row of ``x_adv``, an attack's answer to the images ``x``.

    Args:
        target: the deployed model.
        x: clean images.
        x_adv: what the attack returned for them.
        y: true labels.
        threat: the budget.
        batches: how rows are put to the target together. A batch with an illegal row is illegal as a whole only in
            so far as the target couples rows, so illegal rows are shown to it as the clean image.

    Returns:
        BROKEN for a legal row with a wrong label, INVALID for an illegal row, else STANDING.
    """
    allowed = legal(x, x_adv, threat)
    shown = torch.where(allowed.view(-1, 1, 1, 1), x_adv, x)
    logits = torch.cat([target(shown[batch]) for batch in batches])
    predicted, wrong = logits.argmax(dim=1), errs(logits, y)
    verdict = torch.full_like(y, Verdict.STANDING)
    verdict[wrong] = Verdict.BROKEN
    verdict[~allowed] = Verdict.INVALID
    distance = perturbation_size(x, shown, threat.norm)
    return Judgement(verdict, verdict, predicted, distance, _flags(x, x_adv, allowed, logits))


def errs(logits: Logits, y: Labels) -> Mask:
    """Where a model is wrong: another label, or NaN or Inf in place of an answer."""
    return (logits.argmax(dim=1) != y) | ~logits.isfinite().all(dim=1)


def worst_of(one: Judgement, other: Judgement, batches: Sequence[slice]) -> Judgement:
    """Two answers to one question taken together: a row is lost if either loses it, a batch is as in the worse one."""
    worse = _rank(other.verdict) < _rank(one.verdict)
    return Judgement(
        verdict=torch.where(worse, other.verdict, one.verdict),
        together=torch.cat([min(one.together[rows], other.together[rows], key=count_right) for rows in batches]),
        predicted=torch.where(worse, other.predicted, one.predicted),
        distance=torch.where(worse, other.distance, one.distance),
        flags=tuple(dict.fromkeys(one.flags + other.flags)),
    )


def _rank(verdict: Tensor) -> Tensor:
    """BROKEN before STANDING before INVALID."""
    return torch.where(verdict == Verdict.BROKEN, 0, verdict)


def count_right(verdict: Tensor) -> int:
    """How many rows the target has right; an illegal image does not count as an error."""
    return int(((verdict == Verdict.STANDING) | (verdict == Verdict.INVALID)).sum())


def _flags(x: Images, x_adv: Images, allowed: Mask, logits: Logits) -> tuple[str, ...]:
    flags = []
    if not allowed.all():
        flags.append("returned images outside the threat model; they do not count")
    if torch.equal(x, x_adv):
        flags.append("found nothing in a shard: returned its images unchanged")
    if not logits.isfinite().all():
        flags.append("the target answered with NaN or Inf; counted as an error")
    return tuple(flags)
