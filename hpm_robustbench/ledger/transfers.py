"""What images made for one of two models do to the other: a number is lowered by whatever is found, wherever that was.

HPM meets many more attacks than AutoAttack, and the base's own besides. A base model that is asked only what AutoAttack
finds would be credited with images that had fallen, had anybody shown them to it. Nor is HPM credited with an image
that AutoAttack, in the base model's own trial, has broken in a way that breaks HPM as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpm_robustbench.ledger.plan import MSA, Step
from hpm_robustbench.ledger.record import RunRecord, StepResult, Verdict

TRANSFER = "transfer"
"""Name of the attack that shows one model what was made for the other."""
LENT = Step("base", TRANSFER, MSA)
"""The last step of HPM: what AutoAttack made of the base model. It is measured when both runs are finished."""


def with_transfers(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The same runs, each with what images of the others broke.

    That of the base model ends with a step for each run of HPM, and a run of HPM with what the base model lent.

    Args:
        records: finished runs of one model on the same images.
    """
    tried = [record for record in records if record.base_predicted]
    return [_transferred(record, tried) if record.plan.target == "base" else with_lent(record) for record in records]


def with_lent(record: RunRecord) -> RunRecord:
    """The run, at its end what images of the base model broke, if it was shown them."""
    if record.lent is None:
        return record
    plan = replace(record.plan, steps=(*record.plan.steps, LENT))
    return replace(record, plan=plan, steps=(*record.steps, record.lent), lent=None)


def _transferred(base: RunRecord, tried: Sequence[RunRecord]) -> RunRecord:
    for record in tried:
        step = Step("hpm", TRANSFER, MSA, {"batching": record.plan.batching.value})
        result = _shown(base, step.name, record.base_predicted)
        plan = replace(base.plan, steps=(*base.plan.steps, step))
        base = replace(base, plan=plan, steps=(*base.steps, result))
    return base


def _shown(base: RunRecord, name: str, predicted: Sequence[int | None]) -> StepResult:
    """One step: every row that stands meets what was made for it, where anything was."""

    def verdict(stands: bool, taken_for: int | None) -> Verdict:
        if not stands:
            return Verdict.SKIPPED
        return Verdict.STANDING if taken_for is None else Verdict.BROKEN

    return StepResult(
        name=name,
        rows=tuple(range(base.n)),
        verdict=tuple(map(verdict, base.standing(), predicted)),
        predicted=tuple(predicted),
        distance=(None,) * base.n,
    )
