"""Do kept adversarial images still break the target: in another process, in other batches, in another order?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.evaluation.kept_images import KeptImages, kept_path, named_rows, read_kept
from hpm_robustbench.evaluation.lent import kept_of_lent
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.ledger.record import RunRecord, Verdict
from hpm_robustbench.ledger.transfers import LENT
from hpm_robustbench.shapes import Mask
from hpm_robustbench.surrogates.views import Subject

_SIZES = (1, 8)
"""Batch sizes beside the plan's own in which a row-independent target is asked again."""


@dataclass(frozen=True)
class Verification:
    """A run whose every broken row was broken again by its kept image, in every way to ask."""

    run_key: str
    target: str
    batching: str
    broken_again: int


def verify(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path) -> Verification:
    """See that every row that an attack of a finished run took falls to its kept image again, budget and box included.

    Args:
        plan: of the run.
        subject: what stood trial, loaded anew.
        examples: the images that the plan's fingerprint names.
        runs: folder of all runs.

    Raises:
        UsageProblem: the run is not finished.
        IntegrityError: images are missing, torn or foreign, or do not break what they broke.
    """
    journal = Journal(runs, plan)
    lost_to = _finished(journal).lost_to
    count, failures = 0, []
    for index, rows in enumerate(plan.shards()):
        for step in plan.steps:
            fallen = [row for row in rows if lost_to[row] == step.name]
            if fallen:
                batches = plan.batches() if plan.coupled else None
                kept = read_kept(kept_path(journal, index, step.name), fallen, examples.dataset.image_shape, batches)
                count += len(fallen)
                failures += [f"{step.name}, shard {index}: {how}" for how in _failures(plan, subject, examples, kept)]
    lent = kept_of_lent(plan, examples, runs)
    if lent is not None:
        count += int(lent.broken.sum())
        failures += [f"{LENT.name}: {how}" for how in _failures(plan, subject, examples, lent)]
    if failures:
        raise IntegrityError(
            wanted=f"the {count} broken rows of run {plan.run_key} to fall to their kept images again",
            got="; ".join(failures),
            next_step=f"remove {journal.folder / 'images'} and run the same command again with --keep-images, without "
            "--verify; what does not fall to the new images either hangs on rounding",
        )
    return Verification(plan.run_key, plan.target, plan.batching.value, count)


def _finished(journal: Journal) -> RunRecord:
    record = journal.record()
    if record is None:
        done, steps = journal.progress()
        raise UsageProblem(
            wanted=f"a finished run {journal.plan.run_key} ({journal.plan.target} {journal.plan.batching.value})",
            got=f"{done} of {steps} steps",
            next_step="run the same command with --keep-images, without --verify, first",
        )
    return record


def _failures(plan: Plan, subject: Subject, examples: ExampleSet, kept: KeptImages) -> list[str]:
    """Rows that stand in one of the ways to ask."""
    failures = []
    for way, batches in _ways(kept, coupled=plan.coupled).items():
        rows = kept.rows[kept.broken & ~_broken(plan, subject, examples, kept, batches)].tolist()
        if rows:
            failures.append(f"{named_rows(rows)} {'stand' if len(rows) > 1 else 'stands'} {way}")
    return failures


def _ways(kept: KeptImages, *, coupled: bool) -> dict[str, list[Tensor]]:
    """Images in batches as they were, in reverse and, if rows are independent, in batches of other sizes."""
    ways = {"as submitted": kept.submitted, "in another order": [batch.flip(0) for batch in kept.submitted]}
    if not coupled:
        everything = torch.arange(len(kept.rows))
        ways |= {f"in batches of {size}": list(torch.split(everything, size)) for size in _SIZES}
    return ways


def _broken(plan: Plan, subject: Subject, examples: ExampleSet, kept: KeptImages, batches: list[Tensor]) -> Mask:
    order = torch.cat(batches)
    ends = accumulate(map(len, batches), initial=0)
    clean = examples.take(kept.rows[order].tolist())
    x, y, x_adv = (tensor.to(subject.device) for tensor in (clean.images, clean.labels, kept.images[order]))
    slices = [slice(start, end) for start, end in pairwise(ends)]
    verdict = judge(subject.target_logits, x, x_adv, y, plan.threat, slices).verdict.cpu()
    broken = torch.zeros_like(kept.broken)
    broken[order] = verdict == Verdict.BROKEN
    return broken
