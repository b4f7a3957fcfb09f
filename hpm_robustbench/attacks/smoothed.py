"""Ascent of the share of wrong labels around a point: which way the decision lies, where there is no gradient.

How often noise around a point turns its label changes smoothly with the point, whatever the target is, and the labels
at opposite points tell the slope of it (antithetic evolution strategies; Tramer et al. 2020, arXiv 2002.08347, smooth
k-winners-take-all so; Ilyas et al. 2018, arXiv 1804.08598, where scores are hidden). No gradient and no logit is asked
for. The noise leaves the ball, since only what is submitted has to keep to it: where pixels are rounded, what can be
changed within the ball is one jump per pixel, and to wait for the right ones at once is to wait for luck.

The classes that noise meets most often are climbed to one after the other: where several pull in different directions,
their sum may lead nowhere. Where rows share a batch, all that still stand move together, beside mates that stay clean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hpm_robustbench.attacks.ball import Ball, per_image
from hpm_robustbench.attacks.base import Submissions, View, packed, seeded
from hpm_robustbench.attacks.losses import ranked_others
from hpm_robustbench.attacks.slope import EVERYWHERE, flat, rows_for
from hpm_robustbench.attacks.whole_batches import Cover, batchwise
from hpm_robustbench.shapes import Images, Labels, Mask
from hpm_robustbench.threat import Norm, ThreatModel

INERTIA = 0.9
"""Share of the last direction that a new one keeps; few samples are noisy, and so their noise averages out."""
Noise = Float[Tensor, "S C H W"]
RowNoise = Float[Tensor, "S R C H W"]
Rows = Int[Tensor, "R"]


class _Budget(NamedTuple):
    """``steps`` steps to each of ``targets`` classes, each by 2 ``samples`` labels.

    ``sigma`` is the noise's share of eps, its deviation per pixel in Linf, its usual length in L2, and shrinks to half.
    """

    steps: int
    samples: int
    sigma: float
    targets: int


class _Labels:
    """What noise around a batch makes of the labels of some of its rows; ``at_once`` images pass through together."""

    def __init__(self, view: View, x: Images, at_once: int) -> None:
        self._view, self._at_once = view, at_once
        self.coupled = not view.row_independent
        self.n_classes = view.target_logits(x).shape[1]

    def parts(self, noise: Noise, n_rows: int) -> Iterator[RowNoise]:
        """The same noise for each row, as many at a time as pass through together.

        Each row meets it in an order of its own: to draw it is what costs most on a small network, and rows of one
        batch that all moved alike would move the prototypes too.
        """
        turns = torch.arange(len(noise)).unsqueeze(1) + torch.arange(n_rows)
        together = 1 if self.coupled else max(1, self._at_once // n_rows)
        for part in torch.split(turns % len(noise), together):
            yield noise[part]

    def under(self, noise: RowNoise, point: Images, rows: Rows) -> Int[Tensor, "S R"]:
        """Labels of the rows, each moved by its noise; the other rows of a coupled batch stay where they are."""
        moved = (point[rows] + noise).clamp(0, 1)
        if not self.coupled:
            return self._view.target_logits(moved.flatten(0, 1)).argmax(dim=1).view(moved.shape[:2])
        batches = (point.index_copy(0, rows, each) for each in moved)
        return torch.stack([self._view.target_logits(batch).argmax(dim=1)[rows] for batch in batches])


def _climb(
    labels: _Labels,
    x: Images,
    y: Labels,
    standing: Mask,
    threat: ThreatModel,
    seed: int,
    fallen: Callable[[Images], Mask],
    budget: _Budget,
) -> None:
    """Rows that still stand go to one target after the other, by steps that shrink to nothing.

    ``fallen`` sees each iterate, and tells which rows need no more.
    """
    ball, eps, generator = Ball(x, threat), float(threat.eps), seeded(seed)
    width = budget.sigma * eps / (1 if threat.norm is Norm.LINF else math.sqrt(x[0].numel()))

    def drawn(progress: float) -> Noise:
        return torch.randn(budget.samples, *x.shape[1:], generator=generator).to(x) * (width * (2 - progress) / 2)

    for target in _most_met(labels, drawn(0.0), x, y, standing, budget.targets):
        point, direction = x, torch.zeros_like(x)
        for step in range(budget.steps):
            rows = standing.nonzero().squeeze(1)
            if not len(rows):
                return
            left = 1 - step / budget.steps
            found = _slope(labels, drawn(1 - left), point, rows, y, target)
            direction[rows] = INERTIA * direction[rows] + functional.normalize(found.flatten(1)).view_as(found)
            moved = ball.project(point + 2 * eps * left * ball.direction(direction))
            point = torch.where(per_image(standing), moved, point)
            standing = standing & ~fallen(point)


def _most_met(labels: _Labels, noise: Noise, x: Images, y: Labels, standing: Mask, most: int) -> Sequence[Labels]:
    """Up to ``most`` wrong classes for each row, those first into which noise turns it most often."""
    rows = standing.nonzero().squeeze(1)
    counts = torch.zeros(len(x), labels.n_classes, device=x.device)
    for part in labels.parts(noise, len(rows)) if len(rows) else ():
        counts[rows] += functional.one_hot(labels.under(part, x, rows), labels.n_classes).sum(dim=0)
    return ranked_others(counts, y)[:, :most].unbind(dim=1)


def _slope(
    labels: _Labels, noise: Noise, point: Images, rows: Rows, y: Labels, target: Labels
) -> Float[Tensor, "R C H W"]:
    """For each of the rows, of how much more often noise turns it into its target than it leaves it right.

    A row of a coupled batch that no noise turns goes where the others are turned: it cannot fall, but may help.
    """
    own, shared = torch.zeros_like(point[rows]), torch.zeros_like(point[rows])
    for part in labels.parts(noise, len(rows)):
        one, opposite = labels.under(part, point, rows), labels.under(-part, point, rows)
        rise = (_nearer(one, y[rows], target[rows]) - _nearer(opposite, y[rows], target[rows])).to(point)
        own += torch.einsum("sr,srchw->rchw", rise, part)
        shared += torch.einsum("s,srchw->rchw", rise.sum(dim=1), part)
    return torch.where(per_image(flat(own)), shared, own) if labels.coupled else own


def _nearer(labels: Int[Tensor, "S R"], y: Rows, target: Rows) -> Int[Tensor, "S R"]:
    """1 at the target, -1 at the true class, 0 elsewhere."""
    return (labels == target).long() - (labels == y).long()


def _smoothed(
    view: View,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    seed: int,
    *,
    at_once: int,
    steps: int = 40,
    samples: int = 50,
    sigma: float = 2.0,
    targets: int = 3,
    where: str = EVERYWHERE,
) -> Images:
    """Rows that still stand; ``where`` says which of them (``rows_for``)."""
    answer = x.clone()
    standing = rows_for(where, view, x, y, torch.ones_like(y, dtype=torch.bool), threat)

    def fallen(point: Images) -> Mask:
        wrong = view.target_logits(point).argmax(dim=1) != y
        answer[standing] = point[standing]
        standing[wrong] = False
        return wrong

    if standing.any():
        _climb(
            _Labels(view, x, at_once),
            x,
            y,
            standing.clone(),
            threat,
            seed,
            fallen,
            _Budget(steps, samples, sigma, targets),
        )
    return answer


def _joint_smoothed(
    view: View,
    x: Images,
    y: Labels,
    active: Mask,
    threat: ThreatModel,
    seed: int,
    *,
    steps: int = 40,
    samples: int = 50,
    sigma: float = 2.0,
    targets: int = 3,
    where: str = EVERYWHERE,
) -> Submissions:
    """As ``smoothed``, on a whole batch."""
    kept = Cover(view, y, active)

    def fallen(point: Images) -> Mask:
        kept.observe(point, torch.zeros(len(point)))
        return kept.wrong

    standing = rows_for(where, view, x, y, active, threat)
    if standing.any():
        _climb(_Labels(view, x, len(x)), x, y, standing, threat, seed, fallen, _Budget(steps, samples, sigma, targets))
    return kept.submissions or (x,)


SMOOTHED = packed(_smoothed, shares_passes=True)
JOINT_SMOOTHED = batchwise(_joint_smoothed)
