"""The conjunction attack on an HPM classifier that answers each image alone (SOLO).

Alone, an image is compared with the dataset prototypes, and the class k that FC chose has its distance D_k multiplied
by a discount g_k <= 1. The answer leaves y exactly where, for some other class c, one of these holds:

    FC chooses c          and  g_c D_c < D_y
    FC does not choose y  and  D_c < D_y
                               D_c < g_y D_y

The gradient of the classifier itself sees only the side of the FC decision that it is on. Here each condition is a
search of its own, whose loss is the least of the condition's terms: positive exactly where the condition holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.base import View, packed, seeded
from hpm_robustbench.attacks.losses import margin, pick, ranked_others, targeted_margin
from hpm_robustbench.hpm.views import Region
from hpm_robustbench.shapes import Images, Labels, Logits, Losses
from hpm_robustbench.threat import ThreatModel

Condition = Callable[[Region, Labels, Labels], Float[Tensor, "N T"]]
"""Region, y and target c to terms that are all positive exactly where the condition holds."""


@runtime_checkable
class RegionView(View, Protocol):
    """A view that shows what decides the answer for a lone image."""

    def region(self, x: Images) -> Region:
        """FC logits, distances and discounts, differentiable."""
        ...


def fc_chooses_target(region: Region, y: Labels, target: Labels) -> Float[Tensor, "N 2"]:
    """FC chooses c, and c's discounted distance is below y's distance."""
    discounted = pick(region.discount * region.distances, target)
    return torch.stack([-margin(region.fc, target), pick(region.distances, y) - discounted], dim=1)


def fc_leaves_label(region: Region, y: Labels, target: Labels) -> Float[Tensor, "N 2"]:
    """FC does not choose y, and c is nearer than y."""
    return torch.stack([margin(region.fc, y), -targeted_margin(region.distances, y, target)], dim=1)


def target_beats_discount(region: Region, y: Labels, target: Labels) -> Float[Tensor, "N 1"]:
    """Even at y's discount c is nearer, whatever FC chooses."""
    discounted = pick(region.discount * region.distances, y)
    return (discounted - pick(region.distances, target)).unsqueeze(1)


CONDITIONS: tuple[Condition, ...] = (fc_chooses_target, fc_leaves_label, target_beats_discount)


class _Search:
    """The state of the search for one batch of rows: what was found, and where the loss was highest otherwise."""

    def __init__(self, view: RegionView, x: Images, y: Labels) -> None:
        self._view, self._x, self._y = view, x, y
        self._clean = view.region(x)
        self.best_x = x.clone()
        self._best_loss = x.new_full((len(x),), float("-inf"))
        self._found = torch.zeros_like(y, dtype=torch.bool)

    def targets(self, count: int) -> Int[Tensor, "N R"]:
        """The other classes that need the smallest move, judged on the clean image: first the most promising."""
        region = _in_units_of(self._clean, self._clean)
        score = region.fc - (region.discount * region.distances)
        return ranked_others(score, self._y)[:, :count]

    def attempt(
        self, condition: Condition, target: Labels, threat: ThreatModel, steps: int, generator: torch.Generator
    ) -> None:
        """Ascend one condition for one target per row, for the rows that still stand."""
        rows = (~self._found).nonzero().squeeze(1)
        if not len(rows):
            return
        clean = Region(*(part[rows] for part in self._clean))

        def loss(point: Images) -> Losses:
            region = _in_units_of(clean, self._view.region(point))
            return condition(region, self._y[rows], target[rows]).amin(dim=1)

        def observe(point: Images, losses: Losses) -> bool:
            self._keep_best(rows, point, losses)
            return bool(self._found[rows].all())

        ascend(loss, self._x[rows], threat, steps=steps, generator=generator, observe=observe)

    def _keep_best(self, rows: Tensor, point: Images, losses: Losses) -> None:
        """Remember the best points so far; the true target has the last word on those inside the region."""
        standing = ~self._found[rows]
        wrong = torch.zeros_like(standing)
        inside = standing & (losses > 0)
        if inside.any():
            wrong[inside] = self._view.target_logits(point[inside]).argmax(dim=1) != self._y[rows[inside]]
        kept = standing & (wrong | (losses > self._best_loss[rows]))
        self._best_loss[rows[kept]] = losses[kept]
        self.best_x[rows[kept]] = point[kept]
        self._found[rows] |= wrong


def _in_units_of(clean: Region, region: Region) -> Region:
    """Logits and distances in units of what separates the row's classes on the clean image.

    No condition changes when either is scaled, and neither term of one then drowns the other.
    """
    return Region(region.fc / _spread(clean.fc), region.distances / _spread(clean.distances), region.discount)


def _spread(values: Logits) -> Float[Tensor, "N 1"]:
    """Standard deviation over the classes; never zero, not even where all classes are equal."""
    rounding = 1e-6 * values.abs().amax(dim=1, keepdim=True)
    return values.std(dim=1, keepdim=True).maximum(rounding).clamp_min(torch.finfo(values.dtype).tiny)


def _conjunction(
    view: RegionView, x: Images, y: Labels, threat: ThreatModel, seed: int, *, steps: int = 100, targets: int = 9
) -> Images:
    search, generator = _Search(view, x, y), seeded(seed)
    for target in search.targets(targets).unbind(dim=1):
        for condition in CONDITIONS:
            search.attempt(condition, target, threat, steps, generator)
    return search.best_x


CONJUNCTION = packed(_conjunction)
