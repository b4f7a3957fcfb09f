"""What was made of the base model in its own trial, shown to HPM: it was computed once, and is not again.

    runs/<run key of the base model>/broken/00003/01-apgd-t@base.safetensors
    runs/<run key of HPM>/lent.json

So HPM is never credited with an image that an attack on its base model has in hand already. The images stay with the
base model's run, for trials of HPM to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.aggregates import lent_images
from hpm_robustbench.evaluation.identity import check_unchanged
from hpm_robustbench.evaluation.judge import errs, judge
from hpm_robustbench.evaluation.kept_images import KeptImages, read_kept
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.ledger.record import RunRecord, StepResult, Verdict
from hpm_robustbench.ledger.transfers import LENT, with_lent
from hpm_robustbench.shapes import Images
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import ThreatModel


def lend(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path) -> None:
    """Show HPM what broke the base model, in HPM's own batches, unless that is written down already.

    Args:
        plan: of a finished run; nothing is shown if nobody lends it images.
        subject: HPM, on the device to use.
        examples: the images that both fingerprints name.
        runs: folder of all runs.

    Raises:
        IntegrityError: an image that the base model's run kept is missing or not whole.
        InvalidInput: the model changed its own weights or answers while it was asked.
        StorageProblem: the result could not be written.
    """
    journal = Journal(runs, plan)
    record = journal.record() if plan.lender else None
    if record is None or record.lent is not None:
        return
    result = _show(record, subject, examples, lent_images(plan, examples, runs))
    check_unchanged(plan, subject, examples)
    journal.write_lent(result)


def kept_of_lent(plan: Plan, examples: ExampleSet, runs: Path) -> KeptImages | None:
    """The images by which rows of a finished run fell to what it was lent; None if none did.

    Raises:
        IntegrityError: one is missing or not whole.
    """
    journal = Journal(runs, plan)
    record = journal.record()
    fallen = set() if record is None else {r for r, by in enumerate(with_lent(record).lost_to) if by == LENT.name}
    if not fallen:
        return None
    batches = plan.batches() if plan.coupled else [[row] for row in sorted(fallen)]
    met = [batch for batch in batches if fallen & {*batch}]
    rows = torch.tensor([row for batch in met for row in batch])
    return KeptImages(
        images=_lent_for_evidence(plan, examples, runs)[rows],
        rows=rows,
        broken=torch.tensor([row in fallen for row in rows.tolist()]),
        batch=torch.tensor([number for number, batch in enumerate(met) for _ in batch]),
    )


def _lent_for_evidence(plan: Plan, examples: ExampleSet, runs: Path) -> Images:
    """As they were lent; a file that is not whole stays where it is."""

    def read(path: Path, fallen: Sequence[int], examples: ExampleSet) -> KeptImages:
        return read_kept(path, fallen, examples.dataset.image_shape, None)

    try:
        return lent_images(plan, examples, runs, read)
    except IntegrityError as error:
        raise IntegrityError(
            wanted=error.wanted,
            got=error.got,
            next_step=f"remove that file, if it is there, and {Journal(runs, plan).lent_path}, and run the same "
            "command again without --verify; it makes both anew",
        ) from error


def _show(record: RunRecord, subject: Subject, examples: ExampleSet, images: Images) -> StepResult:
    """One step: every row that stands meets its image, beside those of its batch where rows meet."""
    plan, standing = record.plan, record.standing()
    assert isinstance(plan.threat, ThreatModel)
    verdict = [Verdict.SKIPPED.value] * record.n
    predicted: list[int | None] = [None] * record.n
    distance: list[float | None] = [None] * record.n
    fooled: list[bool | None] = [None] * record.n
    flags: tuple[str, ...] = ()
    for batch in plan.batches():
        rows = [row for row in batch if standing[row]]
        if not rows:
            continue
        rows = batch if plan.coupled else rows
        x, x_adv, y = (each[rows].to(subject.device) for each in (examples.images, images, examples.labels))
        judged = judge(subject.target_logits, x, x_adv, y, plan.threat, [slice(None)])
        flags += judged.flags if (x_adv != x).any() else ()
        with torch.no_grad():
            misread = errs(subject.base(x_adv), y)
        told = (column.tolist() for column in (judged.verdict, judged.predicted, judged.distance, misread))
        for row, *values in zip(rows, *told, strict=True):
            verdict[row], predicted[row], distance[row], fooled[row] = values
    return StepResult(
        name=LENT.name,
        rows=tuple(range(record.n)),
        verdict=tuple(verdict),
        predicted=tuple(predicted),
        distance=tuple(distance),
        fooled=tuple(fooled),
        forward=2 * sum(each is not None for each in predicted),
        flags=tuple(dict.fromkeys(flags)),
    )
