"""What images made for one model do to another: a number is lowered by whatever is found, wherever that was.

HPM meets more attacks than its base model, and that one's own besides. A base model that is asked only what was made
for itself would be credited with images that had fallen, had anybody shown them to it. Nor is HPM credited with an
image that its base model's own trial has broken in a way that breaks HPM as well; or HPM SOLO with one that was made
for HPM in another batching and breaks it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from hpm_robustbench.ledger.plan import MSA, Step
from hpm_robustbench.ledger.record import RunRecord, StepResult, Verdict
from hpm_robustbench.threat import Batching

TRANSFER = "transfer"
"""Name of the attack that shows a model what was made for another, or for itself in another batching."""
LENT = Step("base", TRANSFER, MSA)
"""The last step of HPM: what was made of the base model. It is measured when both runs are finished."""


def with_transfers(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The same runs, each with what images of the others broke.

    That of the base model ends with a step for each run of HPM; a run of HPM with what the base model lent; and HPM
    SOLO then with a step for each run of HPM in another batching.

    Args:
        records: finished runs of one model on the same images.
    """
    return [reduce(_shown, _made_elsewhere(record, records), with_lent(record)) for record in records]


def with_lent(record: RunRecord) -> RunRecord:
    """The run, at its end what images of the base model broke, if it was shown them."""
    if record.lent is None:
        return record
    plan = replace(record.plan, steps=(*record.plan.steps, LENT))
    return replace(record, plan=plan, steps=(*record.steps, record.lent), lent=None)


def made_for(batching: Batching) -> Step:
    """The step that shows what was made for HPM in a batching."""
    return Step("hpm", TRANSFER, MSA, {"batching": batching.value})


def _made_elsewhere(record: RunRecord, records: Sequence[RunRecord]) -> list[tuple[Batching, Sequence[int | None]]]:
    """By the batching of each run of HPM whose images this model was shown, what it wrongly took them for."""
    if record.plan.target == "base":
        told = [(other.plan.batching, other.base_predicted) for other in records]
    elif record.plan.batching is Batching.SOLO:
        told = [(other.plan.batching, other.solo_predicted) for other in records]
    else:
        told = []
    return [(batching, predicted) for batching, predicted in told if predicted]


def _shown(record: RunRecord, made: tuple[Batching, Sequence[int | None]]) -> RunRecord:
    """The run with one step more: every row that stands meets what was made for it, where anything was."""
    batching, predicted = made
    step = made_for(batching)

    def verdict(stands: bool, taken_for: int | None) -> Verdict:
        if not stands:
            return Verdict.SKIPPED
        return Verdict.STANDING if taken_for is None else Verdict.BROKEN

    result = StepResult(
        name=step.name,
        rows=tuple(range(record.n)),
        verdict=tuple(map(verdict, record.standing(), predicted)),
        predicted=tuple(predicted),
        distance=(None,) * record.n,
    )
    return replace(record, plan=replace(record.plan, steps=(*record.plan.steps, step)), steps=(*record.steps, result))
