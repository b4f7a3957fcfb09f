"""The conjunction attack on whole batches: every row attacks its own region, beside mates that move as well.

The batch's prototypes are constants for each row's gradient and are made anew at every iterate (A5 for more than one
image). Where FC decides, both sides of its jump are in the loss.
"""

from __future__ import annotations

import torch

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.base import Submissions, seeded
from hpm_robustbench.attacks.conjunction import CONDITIONS, RegionView, in_units_of, least, promising_targets
from hpm_robustbench.attacks.whole_batches import Cover, batchwise
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import ThreatModel


def _joint_conjunction(
    view: RegionView,
    x: Images,
    y: Labels,
    active: Mask,
    threat: ThreatModel,
    seed: int,
    *,
    steps: int = 100,
    target_rank: int = 2,
) -> Submissions:
    """Each row aims at the class of rank ``target_rank`` (2 is the most promising), by the nearest condition."""
    with torch.no_grad():
        clean = view.region(x)
    others = promising_targets(clean, y)
    target = others[:, min(target_rank - 2, others.shape[1] - 1)]
    kept = Cover(view, y, active)

    def loss(point: Images) -> Losses:
        region = in_units_of(clean, view.region(point))
        nearest = [least(condition(region, y, target)) for condition in CONDITIONS]
        return torch.stack(nearest).amax(dim=0)

    ascend(loss, x, threat, steps=steps, start=seeded(seed), observe=kept.observe)
    return kept.submissions


JOINT_CONJUNCTION = batchwise(_joint_conjunction)
