"""The conjunction attack on an HPM classifier whose answer for an image depends on no other image under attack.

An image is compared with one prototype per class, and the class that FC chose is nearer than it would otherwise be,
since the image is a member of its own prototype. Let D_c be the distance of class c, and G_c <= D_c what it becomes if
FC chooses c (G_c = g_c D_c with a discount g_c for a lone image). The answer leaves y exactly where, for some other
class c, one of these holds:

    FC chooses c          and  G_c < D_y
    FC does not choose y  and  D_c < D_y
                               D_c < G_y

The gradient of the classifier itself sees only the side of the FC decision that it is on. Here each condition is a
search of its own, whose loss is the least of the condition's terms: positive exactly where the condition holds.
Where a fixed reference set makes G_c > D_c, the region is a little smaller; the true target has the last word. Other
ways to define HPM than the default answer otherwise near the region's border: there the target is asked at every point.

A plain head is the case without a discount, with its logits for distances: one condition is left. So a base model meets
the same search, from as many starts, as the HPM that is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.base import View, packed, seeded
from hpm_robustbench.attacks.losses import margin, pick, ranked_others, targeted_margin
from hpm_robustbench.shapes import Images, Labels, Logits, Losses
from hpm_robustbench.surrogates.region import Region
from hpm_robustbench.threat import ThreatModel

SOFTNESS = 0.1
"""Of the minimum over a condition's terms, in the deviation of the row's classes."""

NEAR = 0.1
"""How far below zero, in the same unit, a climb may end for its condition to be climbed again from other starts."""

Condition = Callable[[Region, Labels, Labels], Float[Tensor, "N T"]]
"""Region, y and target c to terms that are all positive exactly where the condition holds."""

_Rows: TypeAlias = Int[Tensor, "M"]
"""Numbers of rows, each at most once."""


@runtime_checkable
class RegionView(View, Protocol):
    """A view that shows what decides the answer for an image beside constant mates."""

    @property
    def region_is_exact(self) -> bool:
        """Whether no image outside the region is misclassified."""
        ...

    def region(self, x: Images) -> Region:
        """FC logits, and distances of classes that FC chooses or not, differentiable."""
        ...


def fc_chooses_target(region: Region, y: Labels, target: Labels) -> Float[Tensor, "N K"]:
    """FC chooses c, by its lead over each other class, and c is nearer by that than y."""
    lead = pick(region.fc, target).unsqueeze(1) - region.fc
    nearer = pick(region.distances, y) - pick(region.chosen, target)
    return lead.scatter(1, target.unsqueeze(1), nearer.unsqueeze(1))  # no class leads itself


def fc_leaves_label(region: Region, y: Labels, target: Labels) -> Float[Tensor, "N 2"]:
    """FC does not choose y, and c is nearer than y."""
    return torch.stack([margin(region.fc, y), -targeted_margin(region.distances, y, target)], dim=1)


def target_beats_label(region: Region, y: Labels, target: Labels) -> Float[Tensor, "N 1"]:
    """Even if FC chooses y, c is nearer."""
    return (pick(region.chosen, y) - pick(region.distances, target)).unsqueeze(1)


CONDITIONS: tuple[Condition, ...] = (fc_chooses_target, fc_leaves_label, target_beats_label)


class _Aim(NamedTuple):
    """A condition to reach, with one other class per row."""

    condition: Condition
    target: Labels


class _Search:
    """The state of the search for one batch of rows: what was found, and where the loss was highest otherwise."""

    def __init__(
        self, view: RegionView, x: Images, y: Labels, threat: ThreatModel, seed: int, *, steps: int, softness: float
    ) -> None:
        self._view, self._x, self._y, self._threat = view, x, y, threat
        self._steps, self._softness, self._start = steps, softness, seeded(seed)
        self._clean = view.region(x)
        self.best_x = x.clone()
        self._best_loss = self._clean.distances.new_full((len(x),), float("-inf"))
        self._found = torch.zeros_like(y, dtype=torch.bool)

    def aims(self, count: int) -> list[_Aim]:
        """Every condition for each row's most promising classes; the last one says all where no choice discounts."""
        conditions = CONDITIONS[-1:] if torch.equal(self._clean.chosen, self._clean.distances) else CONDITIONS
        targets = promising_targets(self._clean, self._y)[:, :count].unbind(dim=1)
        return [_Aim(condition, target) for target in targets for condition in conditions]

    def climb(self, aim: _Aim) -> _Rows:
        """Ascend for the rows that still stand; those for which it ended near."""
        rows = (~self._found).nonzero().squeeze(1)
        return rows[self._ascend(aim, rows) > -NEAR] if len(rows) else rows

    def climb_again(self, aim: _Aim, rows: _Rows, starts: int, at_once: int) -> None:
        """Ascend from other starts for those of ``rows`` that still stand, from several of each row together."""
        while starts > 0 and len(rows := rows[~self._found[rows]]):
            together = min(starts, max(1, at_once // len(rows)))
            self._ascend(aim, rows, together)
            starts -= together

    def _ascend(self, aim: _Aim, rows: _Rows, starts: int = 1) -> Losses:
        """One ascent for each of ``rows`` from each start, rows fastest; the highest hard minimum that each met."""
        repeated = rows.repeat(starts)
        clean, y, target = Region(*(part[repeated] for part in self._clean)), self._y[repeated], aim.target[repeated]
        nearest = self._best_loss.new_full((len(repeated),), float("-inf"))

        def loss(point: Images) -> Losses:
            terms = aim.condition(in_units_of(clean, self._view.region(point)), y, target)
            torch.fmax(nearest, terms.detach().amin(dim=1), out=nearest)
            return least(terms, self._softness)

        def observe(point: Images, losses: Losses) -> bool:
            self._keep_best(rows, repeated, point, losses)
            return bool(self._found[rows].all())

        ascend(loss, self._x[repeated], self._threat, steps=self._steps, start=self._start, observe=observe)
        return nearest

    def _keep_best(self, rows: _Rows, repeated: Labels, point: Images, losses: Losses) -> None:
        """Remember each row's best point so far; the true target has the last word on those that may be errors."""
        standing = ~self._found[repeated]
        wrong, suspected = torch.zeros_like(standing), standing
        if self._view.region_is_exact:
            below = self._softness * math.log(self._clean.fc.shape[1])  # so far, at most, from the hard minimum
            suspected = standing & (losses > -below)
        if suspected.any():
            wrong[suspected] = self._view.target_logits(point[suspected]).argmax(dim=1) != self._y[repeated[suspected]]
        worth = losses.masked_fill(~standing | losses.isnan(), float("-inf")).masked_fill(wrong, float("inf"))
        best_loss, start = worth.view(-1, len(rows)).max(dim=0)
        best_x = point[start * len(rows) + torch.arange(len(rows), device=start.device)]
        kept = best_loss > self._best_loss[rows]
        self._best_loss[rows[kept]] = best_loss[kept]
        self.best_x[rows[kept]] = best_x[kept]
        self._found[repeated[wrong]] = True


def least(terms: Float[Tensor, "N T"], softness: float = SOFTNESS) -> Losses:
    """A minimum with a gradient from every term; at most log(T) units of softness below the hard one, which 0 gives.

    The hard minimum sees one term at a time, and where raising one lowers another its steps go back and forth: on
    linear HPM it missed 3 of 100 images whose region is thin. On the digits it took two that the soft one missed.
    """
    return terms.amin(dim=1) if softness == 0 else -softness * torch.logsumexp(-terms / softness, dim=1)


def promising_targets(clean: Region, y: Labels) -> Int[Tensor, "N R"]:
    """The other classes, first the one that needs the smallest move, judged on the clean image."""
    region = in_units_of(clean, clean)
    return ranked_others(region.fc - region.chosen, y)


def in_units_of(clean: Region, region: Region) -> Region:
    """Logits and distances in units of what separates the row's classes on the clean image.

    No condition changes when either is scaled, and neither term of one then drowns the other.
    """
    unit = _spread(clean.distances)
    return Region(region.fc / _spread(clean.fc), region.distances / unit, region.chosen / unit)


def _spread(values: Logits) -> Float[Tensor, "N 1"]:
    """Standard deviation over the classes; never zero, not even where all classes are equal."""
    rounding = 1e-6 * values.abs().amax(dim=1, keepdim=True)
    return values.std(dim=1, keepdim=True).maximum(rounding).clamp_min(torch.finfo(values.dtype).tiny)


def _conjunction(
    view: RegionView,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    seed: int,
    at_once: int,
    *,
    steps: int = 100,
    targets: int = 9,
    softness: float = SOFTNESS,
    restarts: int = 0,
) -> Images:
    """Climb every condition for every target once, and from ``restarts`` other starts those that ended near."""
    search = _Search(view, x, y, threat, seed, steps=steps, softness=softness)
    aims = search.aims(targets)
    near = [search.climb(aim) for aim in aims]
    for aim, rows in zip(aims, near, strict=True):
        search.climb_again(aim, rows, restarts, at_once)
    return search.best_x


CONJUNCTION = packed(_conjunction, shares_passes=True)
