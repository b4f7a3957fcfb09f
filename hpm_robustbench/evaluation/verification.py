"""Do kept adversarial images still break the target: in another process, in other batches, in another order?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.evaluation.kept_images import KeptImages, kept_path, read_kept
from hpm_robustbench.hpm.views import Subject
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.shapes import Mask

_SIZES = (1, 8)
"""Batch sizes beside the plan's own in which a row-independent target is asked again."""


@dataclass(frozen=True)
class Verification:
    """How many broken rows were kept, and how many of them did not break again in one of the ways to ask."""

    run_key: str
    kept: int
    lost: int


def verify(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path) -> Verification:
    """Judge every kept image of a run again, budget and box included.

    Args:
        plan: of the run.
        subject: what stood trial, loaded anew.
        examples: the images that the plan's fingerprint names.
        runs: folder of all runs.

    Raises:
        IntegrityError: a file is torn or foreign.
    """
    journal = Journal(runs, plan)
    kept = lost = 0
    for index, rows in enumerate(plan.shards()):
        for step in plan.steps:
            path = kept_path(journal, index, step.name)
            if path.exists():
                found = read_kept(path, rows, examples.dataset.image_shape)
                kept += int(found.broken.sum())
                lost += int((found.broken & ~_breaks_again(plan, subject, examples, found)).sum())
    return Verification(plan.run_key, kept, lost)


def _breaks_again(plan: Plan, subject: Subject, examples: ExampleSet, found: KeptImages) -> Mask:
    """Rows broken in every way to ask: as they were, in reverse and, if they are independent, in other batches."""
    _, sizes = torch.unique_consecutive(found.batch, return_counts=True)
    submitted = _slices(sizes.tolist())
    n = len(found.rows)
    ways = [submitted] if plan.coupled else [submitted, *(_slices([size] * (-(-n // size))) for size in _SIZES)]
    again = torch.ones_like(found.broken)
    for batches in ways:
        for reverse in (False, True):
            again &= _broken(plan, subject, examples, found, batches, reverse=reverse)
    return again


def _broken(
    plan: Plan, subject: Subject, examples: ExampleSet, found: KeptImages, batches: list[slice], *, reverse: bool
) -> Mask:
    order = torch.cat([torch.arange(len(found.rows))[batch].flip(0) for batch in batches])
    if not reverse:
        order = order.sort().values
    clean = examples.take(found.rows[order].tolist())
    x, y, x_adv = (tensor.to(subject.device) for tensor in (clean.images, clean.labels, found.images[order]))
    verdict = judge(subject.target_logits, x, x_adv, y, plan.threat, batches).verdict.cpu()
    broken = torch.zeros_like(found.broken)
    broken[order] = verdict == Verdict.BROKEN
    return broken


def _slices(sizes: list[int]) -> list[slice]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
