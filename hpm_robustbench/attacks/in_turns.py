"""One victim of a coupled batch at a time, in turns: its own image beside mates as they are, then the mates for it.

To move a whole batch for one row at once ends where its random start leads, and more steps do not lead out of there.
Each half of the task is easier. Beside constant mates HPM answers a lone image, whose error region is known
(``surrogates/region.py``): every condition is searched for every promising class at once, on copies of the one image,
which cost less than a few steps of its batch. For a constant image the mates only have to pull the prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.ball import per_image
from hpm_robustbench.attacks.base import seeded
from hpm_robustbench.attacks.conjunction import CONDITIONS, RegionView, in_units_of, least, promising_targets
from hpm_robustbench.attacks.joint import for_the_active
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.whole_batches import Cover, Remembering, batchwise
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.surrogates.region import Region
from hpm_robustbench.threat import ThreatModel


@runtime_checkable
class CoupledView(RegionView, Protocol):
    """A view of a batch that can also be asked about one image at a time."""

    def beside(self, mates: Images) -> RegionView:
        """The same beside these mates, which stay as they are: rows do not meet."""
        ...


class _Budget(NamedTuple):
    """``own_steps`` of the victim towards each of ``targets`` classes, then ``steps`` of its mates, in ``turns``."""

    turns: int
    steps: int
    own_steps: int
    targets: int


@dataclass(frozen=True, eq=False)
class _Hunt:
    """The search for one ``victim`` of the batch ``x``; ``kept`` holds what was found."""

    view: CoupledView
    x: Images
    y: Labels
    victim: Mask
    threat: ThreatModel
    kept: Cover

    def run(self, seed: int, budget: _Budget) -> None:
        """Begin with the victim beside its clean mates; it has the last word, too."""
        point, nothing = self.x, self.x.new_zeros(len(self.x))
        for turn in range(budget.turns + 1):
            point = self._own(point, seeded(seed + turn), budget)
            if self.kept.observe(point, nothing) or turn == budget.turns or self.victim.all():
                return
            point = self._mates(point, budget.steps)
            if self.kept.wrong[self.victim].all():
                return

    def _own(self, point: Images, generator: torch.Generator, budget: _Budget) -> Images:
        """The batch with that image of the victim which comes nearest to an error beside these mates."""
        view = self.view.beside(point[~self.victim])
        image = _nearest_to_an_error(view, self.x[self.victim], self.y[self.victim], self.threat, generator, budget)
        return torch.where(per_image(self.victim), image, point)

    def _mates(self, point: Images, steps: int) -> Images:
        """The iterate that is best for the victim, who stays as it is while its mates climb from their clean images."""
        centers = torch.where(per_image(self.victim), point, self.x)
        best, height = centers, -torch.inf

        def observe(x: Images, losses: Losses) -> bool:
            nonlocal best, height
            if float(losses[self.victim]) > height:
                best, height = x, float(losses[self.victim])
            return self.kept.observe(x, losses)

        ascend(
            for_the_active(lambda x: margin(self.kept.view(x), self.y), self.victim),
            centers,
            self.threat,
            steps=steps,
            start=centers,
            free=~self.victim,
            observe=observe,
        )
        return best


def _nearest_to_an_error(
    view: RegionView, x: Images, y: Labels, threat: ThreatModel, generator: torch.Generator, budget: _Budget
) -> Images:
    """Of one copy of the image [1 C H W] for each condition and class, that with the highest margin in the end."""
    with torch.no_grad():
        clean = view.region(x)
    classes = promising_targets(clean, y)[0, : budget.targets]
    target = classes.repeat(len(CONDITIONS))
    condition = torch.arange(len(CONDITIONS), device=x.device).repeat_interleave(len(classes))
    label, clean = y.expand(len(target)), Region(*(part.expand(len(target), -1) for part in clean))

    def loss(point: Images) -> Losses:
        region = in_units_of(clean, view.region(point))
        each = torch.stack([least(terms(region, label, target)) for terms in CONDITIONS])
        return each.gather(0, condition.unsqueeze(0)).squeeze(0)

    copies = x.expand(len(target), -1, -1, -1).contiguous()
    found = ascend(loss, copies, threat, steps=budget.own_steps, start=generator).x
    return found[margin(view.target_logits(found), label).argmax()].unsqueeze(0)


def _in_turns(
    view: CoupledView,
    x: Images,
    y: Labels,
    active: Mask,
    threat: ThreatModel,
    seed: int,
    *,
    turns: int = 2,
    steps: int = 25,
    own_steps: int = 20,
    targets: int = 9,
) -> Iterator[Images]:
    """One active row after the other, unless it has fallen on the way."""
    whole, won = Remembering(view), torch.zeros_like(active)
    for row in active.nonzero():
        if won[row]:
            continue
        victim = torch.zeros_like(active).index_fill(0, row, True)
        kept = Cover(whole, y, active & ~won, victim)
        _Hunt(view, x, y, victim, threat, kept).run(seed, _Budget(turns, steps, own_steps, targets))
        won |= kept.wrong
        if kept.wrong.any():
            yield from kept.submissions
    if not won.any():
        yield from kept.submissions  # the judge wants to see something, even if it is a failure


IN_TURNS = batchwise(_in_turns)
