"""What a card tells of a fine-tuning, from its course and the finished runs of its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.card_control import Control, ControlName, written
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.ledger.fine_tuning import FineTuning
from hpm_robustbench.ledger.plan import AUTOATTACK
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.ledger.statistics import mcnemar
from hpm_robustbench.ledger.transfers import with_transfers
from hpm_robustbench.threat import Batching


@dataclass(frozen=True)
class Tuned:
    """How a fine-tuning went, and the finished runs of each control that stands beside it."""

    course: FineTuning
    controls: Mapping[str, Sequence[RunRecord]] = field(default_factory=dict)

    def fields(self, records: Sequence[RunRecord]) -> dict[str, Any]:
        """The fields of ``HpmBench``, beside the finished ``records`` of the fine-tuned HPM.

        Raises:
            InvalidInput: a control was tried on other images, or under another budget.
        """
        beside = [control for name, runs in self.controls.items() for control in _beside(records, name, runs)]
        course = self.course.model_copy(update={"reports": [*_lost(records), *self.course.reports]})
        return {"fine_tuning": course, **({"controls": beside} if beside else {})}


def _lost(records: Sequence[RunRecord]) -> list[str]:
    """What the trial shows of lost clean accuracy, on images that nobody has trained on."""
    base = next((run for run in records if run.plan.target == "base"), None)
    tuned = [run for run in records if run.plan.target == "hpm"]
    tuning = tuned[0].plan.defence.get("tuning")
    if base is None or not tuning or tuning["control"] == "fc":  # beside C1 stands no model from before
        return []
    bound, before = tuning["recipe"]["clean_bound"], _clean(base)
    fallen = [(run.plan.batching.name, _clean(run)) for run in tuned if before - _clean(run) > bound]
    return [
        f"On the test images clean accuracy fell from {before:.2%} of the base model to {after:.2%} of HPM {batching}, "
        f"by more than the recipe's bound of {bound:.2%}."
        for batching, after in fallen
    ]


def _clean(run: RunRecord) -> float:
    return sum(run.clean_correct) / run.n


def _beside(records: Sequence[RunRecord], name: str, runs: Sequence[RunRecord]) -> list[Control]:
    """One control beside HPM, in each batching in which both were tried; of C1, the run without HPM counts."""
    target = "base" if name == "fc" else "hpm"
    answers = {run.plan.batching: run for run in with_transfers(runs) if run.plan.target == target}
    pairs = [(answers.get(Batching.SOLO if name == "fc" else r.plan.batching), r) for r in records]
    return [_control(name, run, hpm) for run, hpm in pairs if run is not None and hpm.plan.target == "hpm"]


def _control(name: str, run: RunRecord, hpm: RunRecord) -> Control:
    if (run.plan.examples, run.plan.threat) != (hpm.plan.examples, hpm.plan.threat):
        raise InvalidInput(
            wanted=f"the control {name} on the images and budget of {hpm.plan.model}",
            got=f"{run.plan.model} on others",
            next_step="try both with one command: hpm-bench run --recipe ... --controls",
        )
    test = mcnemar(run.standing(), hpm.standing())
    return Control(
        control=cast(ControlName, name),
        batching=hpm.plan.batching,
        run_key=run.run_key,
        clean=Metric.of(run.clean_correct),
        autoattack=Metric.of(run.standing(AUTOATTACK)) if run.has_autoattack else None,
        robust=Metric.of(run.standing()),
        only_control=test.only_first,
        only_hpm=test.only_second,
        p_value=written(test.p_value),
    )
