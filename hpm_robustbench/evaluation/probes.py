"""What the target answers without any attack: its gradients, whether it repeats itself, the scale of its outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpm_robustbench.attacks.base import seeded
from hpm_robustbench.attacks.losses import cross_entropy, margin
from hpm_robustbench.attacks.slope import borrowed, flat, misled_by, rounding, slope_of
from hpm_robustbench.evaluation.sample import Sample
from hpm_robustbench.shapes import Labels, Logits, Losses, Mask

_SIZES = (1, 8)
_OF_ONE = 1e-4
"""How far from 1 the sum of probabilities may lie."""


def dead_gradients(sample: Sample, loss: Callable[[Logits, Labels], Losses]) -> Mask:
    """Rows at which the gradient of ``loss`` towards the image is exactly zero, or not finite."""
    return torch.cat([flat(slope_of(batch.view, batch.x, batch.y, loss)) for batch in sample.batches()])


def misled(sample: Sample) -> Mask:
    """Rows whose margin's gradient is another when they are asked alone, or promises twice what a small step gains."""
    return torch.cat([_misled_in_batch(batch) for batch in sample.batches()])


def _misled_in_batch(batch: Sample) -> Mask:
    slope, every = slope_of(batch.view, batch.x, batch.y, margin), torch.ones_like(batch.y, dtype=torch.bool)
    judged_by = (slope, batch.view, batch.x, batch.y, every)
    return misled_by(*judged_by, batch.threat) | borrowed(*judged_by)


def repeated(sample: Sample) -> Mask:
    """Rows that are answered with other bits when the same batches are asked again."""
    return ~(_answers(sample) == _answers(sample)).all(dim=1)


def reordered(sample: Sample) -> Mask:
    """Rows that get another label, beyond rounding, when the rows of their batch come in another order."""
    flips = []
    for batch in sample.batches():
        order = torch.randperm(len(batch.x), generator=seeded(batch.seed)).to(batch.x.device)
        before = batch.view.target_logits(batch.x)
        shuffled = torch.empty_like(before)
        shuffled[order] = batch.view.target_logits(batch.x[order])
        flips.append(_relabelled(before, shuffled))
    return torch.cat(flips)


def regrouped(sample: Sample) -> Mask:
    """Rows that get another label, beyond rounding, in batches of another size."""
    before = _answers(sample)
    flips = [_relabelled(before, _answers(sample, size)) for size in _SIZES if size != sample.batch_size]
    return torch.stack(flips).any(dim=0)


def probabilities(logits: Logits) -> Mask:
    """Rows that lie in [0, 1] and sum to 1."""
    inside = ((logits >= 0) & (logits <= 1)).all(dim=1)
    return inside & ((logits.sum(dim=1) - 1).abs() < _OF_ONE)


def saturated(sample: Sample, logits: Logits) -> Mask:
    """Rows whose cross-entropy rounds to exactly 0 in single precision."""
    return cross_entropy(logits.float(), sample.y) == 0


def logit_gap(sample: Sample, logits: Logits) -> float:
    """Median distance between the two largest logits of the rows that count."""
    largest = logits.float().topk(2, dim=1).values[sample.counted]
    return float((largest[:, 0] - largest[:, 1]).median())


def _answers(sample: Sample, size: int | None = None) -> Logits:
    batches = torch.split(sample.x, size or sample.batch_size)
    return torch.cat([sample.view.target_logits(batch) for batch in batches])


def _relabelled(before: Logits, after: Logits) -> Mask:
    """Rows with another label whose logits differ by more than rounding does, or are not finite any more."""
    within_rounding = (after - before).abs().amax(dim=1) <= rounding(before).amax()
    flips: Tensor = ~within_rounding & (after.argmax(dim=1) != before.argmax(dim=1))
    return flips
