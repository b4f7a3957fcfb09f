"""What AutoAttack made of the base model in its own trial, shown to HPM: it was computed once, and is not again.

    runs/<run key of the base model>/broken/00003/01-apgd-t@base.safetensors
    runs/<run key of HPM>/lent.json

So HPM is never credited with an image that an attack on its base model has in hand already. The images stay with the
base model's run, for trials of HPM to come.
"""

from __future__ import annotations

from pathlib import Path

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.aggregates import broken_images
from hpm_robustbench.evaluation.identity import check_unchanged
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.evaluation.kept_images import named_rows
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.ledger.record import RunRecord, StepResult, Verdict
from hpm_robustbench.ledger.transfers import LENT
from hpm_robustbench.shapes import Images
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import ThreatModel


def lend(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path, base: Plan) -> None:
    """Show HPM what broke the base model, in HPM's own batches, unless that is written down already.

    Args:
        plan: of a finished run of HPM.
        subject: HPM, on the device to use.
        examples: the images that both fingerprints name.
        runs: folder of all runs.
        base: of the base model's run on the same images.

    Raises:
        IntegrityError: an image that the base model's run kept is missing or not whole.
        InvalidInput: the model changed its own weights or answers while it was asked.
        StorageProblem: the result could not be written.
    """
    journal = Journal(runs, plan)
    record = journal.record()
    if record is None or record.lent is not None:
        return
    result = _shown(record, subject, examples, broken_images(base, examples, runs))
    check_unchanged(plan, subject, examples)
    journal.write_lent(result)


def lent_again(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path, base: Plan) -> int:
    """See that every row that fell to such an image falls to it again, and say how many there are.

    Raises:
        IntegrityError: one does not, or its image is missing or not whole.
    """
    record = Journal(runs, plan).record()
    if record is None or record.lent is None or Verdict.BROKEN not in record.lent.verdict:
        return 0
    again = _shown(record, subject, examples, broken_images(base, examples, runs))
    pairs = zip(record.lent.rows, record.lent.verdict, again.verdict, strict=True)
    fell = {row: now for row, before, now in pairs if before == Verdict.BROKEN}
    stand = [row for row, now in fell.items() if now != Verdict.BROKEN]
    if stand:
        raise IntegrityError(
            wanted=f"the {len(fell)} rows of run {plan.run_key} that images of the base model broke to fall again",
            got=f"{named_rows(stand)} standing",
            next_step="verify on the machine that wrote the run; what falls only there hangs on rounding",
        )
    return len(fell)


def _shown(record: RunRecord, subject: Subject, examples: ExampleSet, images: Images) -> StepResult:
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
        moved = (x_adv != x).flatten(1).any(dim=1)
        flags += judged.flags if moved.any() else ()
        told = zip(rows, judged.verdict, judged.predicted, judged.distance, moved, strict=True)
        for row, *values in told:
            verdict[row], predicted[row], distance[row], fooled[row] = (value.item() for value in values)
    return StepResult(
        name=LENT.name,
        rows=tuple(range(record.n)),
        verdict=tuple(verdict),
        predicted=tuple(predicted),
        distance=tuple(distance),
        fooled=tuple(fooled),
        forward=sum(each is not None for each in predicted),
        flags=tuple(dict.fromkeys(flags)),
    )
