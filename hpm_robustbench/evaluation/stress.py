"""What attacks of growing strength leave standing: more budget, more iterations, and noise that seeks nothing."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.base import seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.noise import random_points
from hpm_robustbench.evaluation.sample import Sample, wrong
from hpm_robustbench.shapes import Images, Losses, Mask
from hpm_robustbench.threat import Eps, Norm, ThreatModel

_NOISES = 10
"""Draws of noise for each row."""


def broken_by_gradients(sample: Sample, steps: int, multiple: Fraction = Fraction(1)) -> Mask:
    """Rows that are wrong at some iterate of an APGD that ascends the margin of the target itself.

    Every iterate of a batch is one that could be submitted whole, so what one of them breaks is broken.

    Args:
        sample: rows and target.
        steps: of APGD.
        multiple: of the budget.
    """
    threat = _times(sample.threat, multiple)
    return torch.cat([_broken_in_batch(batch, threat, steps) for batch in sample.batches()])


def _broken_in_batch(batch: Sample, threat: ThreatModel, steps: int) -> Mask:
    broken = torch.zeros_like(batch.counted)

    def observe(_: Images, margins: Losses) -> bool:
        broken.logical_or_(wrong(margins))
        return bool(broken[batch.counted].all())

    ascend(batch.margin, batch.x, threat, steps=steps, start=seeded(batch.seed), observe=observe)
    return broken


def broken_by_noise(sample: Sample) -> Mask:
    """Rows that one of several random perturbations breaks."""
    return torch.cat([_broken_by_noise_in_batch(batch) for batch in sample.batches()])


def _broken_by_noise_in_batch(batch: Sample) -> Mask:
    broken = torch.zeros_like(batch.counted)
    for point in random_points(batch.x, batch.threat, batch.seed, _NOISES):
        broken |= wrong(margin(batch.view.target_logits(point), batch.y))
    return broken


def multiples(threat: ThreatModel, pixels: int) -> list[Fraction]:
    """A quarter of the budget, doubled until the ball holds every image, and at last just that.

    Args:
        threat: the budget.
        pixels: values of an image.
    """
    diameter = Fraction(1) if threat.norm is Norm.LINF else Fraction(math.sqrt(pixels))
    largest = diameter / threat.eps.value
    found = [Fraction(1, 4)]
    while found[-1] * 2 < largest:
        found.append(found[-1] * 2)
    return [*(multiple for multiple in found if multiple < largest), largest]


def _times(threat: ThreatModel, multiple: Fraction) -> ThreatModel:
    radius = threat.eps.value * multiple
    return ThreatModel(threat.norm, Eps(str(radius), radius))
