"""Whether a card's attacks are those that MSA has today: two cards that both say MSA may have met unlike attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from hpm_robustbench.ledger.card_evaluation import Evaluation, StepSummary
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import Batching

StepsOf: TypeAlias = Callable[[Batching], tuple[Step, ...]]
"""The steps of MSA in a batching, as the code has them now."""


@dataclass(frozen=True)
class OtherSteps:
    """The steps of today that an evaluation was made without, and those that it had besides."""

    without: tuple[str, ...]
    besides: tuple[str, ...]


def other_steps(evaluation: Evaluation, msa: StepsOf) -> OtherSteps | None:
    """How the steps of MSA differ from today's; None if they do not, or if the base model was attacked, without MSA."""
    if evaluation.target == "base":
        return None
    then, now = _names(evaluation.steps), _names(msa(evaluation.batching))
    found = OtherSteps(*(tuple(name for name in a if name not in b) for a, b in ((now, then), (then, now))))
    return found if found.without or found.besides else None


def _names(steps: Iterable[Step | StepSummary]) -> list[str]:
    """Names of the steps that every card has: only some have an FC head that was fine-tuned, and so attacked."""
    return [step.name for step in steps if step.view != "fc"]
