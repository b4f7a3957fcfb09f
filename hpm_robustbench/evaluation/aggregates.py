"""The images by which a coupled target's rows were broken, put together: judged once more, and in other batches.

    runs/<run key>/broken/00003/02-joint@hpm.loss-ce.safetensors

A row is broken beside the mates of one submission. The composite shows every broken row as it was then, all at once,
so that mates meet that never met; what is right in it follows from no single submission. Until it was judged, the run
keeps one image of each broken row. A base model's run keeps its own, for HPM to be shown (``lent.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.identity import check_unchanged
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.evaluation.kept_images import KeptImages, read_kept
from hpm_robustbench.ledger.aggregates import Aggregates, Regrouping
from hpm_robustbench.ledger.journal import Journal, load_plan
from hpm_robustbench.ledger.plan import BasePlan, Plan
from hpm_robustbench.ledger.record import RunRecord, Verdict
from hpm_robustbench.ledger.transfers import LENT, with_lent
from hpm_robustbench.shapes import Images, Mask
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import ThreatModel

_REGROUPINGS = 3
Reader: TypeAlias = Callable[[Path, Sequence[int], ExampleSet], KeptImages]
"""Reads a file of images by which rows fell."""


def aggregate(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path) -> None:
    """Judge the composite of a finished run and other groupings of its images, unless that is written down already.

    Args:
        plan: of the run; only one of a coupled target has a composite.
        subject: what stood trial, on the device to use.
        examples: the images that the plan's fingerprint names.
        runs: folder of all runs.

    Raises:
        IntegrityError: an image that the run kept is missing or not whole.
        InvalidInput: the model changed its own weights or answers while it was asked.
        StorageProblem: the result could not be written.
    """
    journal = Journal(runs, plan)
    record = journal.record() if plan.aggregated else None
    if record is None:
        return
    if record.aggregates is None:
        whole = with_lent(record)
        composite = composite_of(whole, journal, examples, _read)
        lent = [row for row, step in enumerate(whole.lost_to) if step == LENT.name]
        if lent:
            composite[lent] = lent_images(plan, examples, runs)[lent]
        found = _measure(whole, subject, examples, composite)
        check_unchanged(plan, subject, examples)
        journal.write_aggregates(found)
    shutil.rmtree(_folder(journal), ignore_errors=True)


def broken_path(journal: Journal, shard: int, step: str) -> Path:
    """Where the images lie by which a step broke rows of a shard."""
    result = journal.path(shard, step)
    return _folder(journal) / result.parent.name / f"{result.stem}.safetensors"


def _folder(journal: Journal) -> Path:
    return journal.folder / "broken"


def lent_images(plan: BasePlan, examples: ExampleSet, runs: Path, read: Reader | None = None) -> Images:
    """All images: those by which the base model's trial lost rows that lends ``plan`` its images, the others clean.

    Args:
        plan: of HPM.
        examples: the images that both fingerprints name.
        runs: folder of all runs.
        read: how its files are read; by default one that is not whole goes, so that its step is done again.

    Raises:
        IntegrityError: an image that the base model's run kept is missing or not whole.
    """
    journal = Journal(runs, load_plan(runs / plan.lender))
    record = journal.record()
    assert record is not None, "a case attacks its base model first"
    return composite_of(record, journal, examples, read or _read)


def composite_of(record: RunRecord, journal: Journal, examples: ExampleSet, read: Reader) -> Images:
    """All images: the broken ones as they were first broken by a step of the journal's own, the others clean.

    Raises:
        IntegrityError: an image that the run kept is missing or not whole.
    """
    images, lost_to = examples.images.clone(), record.lost_to
    for shard, rows in enumerate(journal.plan.shards()):
        for step in journal.plan.steps:
            fallen = [row for row in rows if lost_to[row] == step.name]
            if fallen:
                kept = read(broken_path(journal, shard, step.name), fallen, examples)
                images[kept.rows] = kept.images
    return images


def _read(path: Path, fallen: Sequence[int], examples: ExampleSet) -> KeptImages:
    """Read a file that the run keeps for itself; one that is not whole goes, so that its step is done again."""
    try:
        return read_kept(path, fallen, examples.dataset.image_shape, None)
    except IntegrityError as error:
        path.unlink(missing_ok=True)
        raise IntegrityError(
            wanted=error.wanted, got=error.got, next_step="run the same command again; it does what is missing"
        ) from error


def _measure(record: RunRecord, subject: Subject, examples: ExampleSet, composite: Images) -> Aggregates:
    plan, standing = record.plan, torch.tensor(record.standing())
    right = _right(plan, subject, examples, composite)
    return Aggregates(
        composite=int(right.sum()),
        composite_alone=int((standing & ~right).sum()),
        composite_by_batch=[int(right[rows].sum()) for rows in plan.batches()],
        regroupings=[
            Regrouping(
                clean=int(_right(other, subject, examples, examples.images).sum()),
                composite=int(_right(other, subject, examples, composite).sum()),
            )
            for other in _regrouped(plan)
        ],
    )


def _regrouped(plan: BasePlan) -> list[BasePlan]:
    """The plan under other seeds; not one whose batches hold the same images, for there is nothing to measure."""
    others = [replace(plan, seed=plan.seed + k) for k in range(1, _REGROUPINGS + 1)]
    return [other for other in others if _met(other) != _met(plan)]


def _met(plan: BasePlan) -> set[frozenset[int]]:
    """Which rows meet."""
    return {frozenset(batch) for batch in plan.batches()}


def _right(plan: BasePlan, subject: Subject, examples: ExampleSet, submitted: Images) -> Mask:
    """Rows that are right when ``submitted`` is put to the target in the batches of the plan."""
    assert isinstance(plan.threat, ThreatModel)
    right = torch.zeros(len(examples), dtype=torch.bool)
    for rows in plan.batches():
        clean, shown, y = (each[rows].to(subject.device) for each in (examples.images, submitted, examples.labels))
        judged = judge(subject.target_logits, clean, shown, y, plan.threat, [slice(None)])
        right[rows] = (judged.verdict == Verdict.STANDING).cpu()
    return right
