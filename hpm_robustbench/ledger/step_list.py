"""Whether a card's attacks are those that MSA has today: two cards that both say MSA may have met unlike attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.ledger.transfers import LENT, made_for
from hpm_robustbench.threat import Batching

StepsOf: TypeAlias = Callable[[Batching, bool], tuple[Step, ...]]
"""The steps of MSA in a batching, on an FC head that was fine-tuned or not, as the code has them now."""


@dataclass(frozen=True)
class OtherSteps:
    """The steps of today that an evaluation was made without, and those that it had besides."""

    without: tuple[str, ...]
    besides: tuple[str, ...]


def other_steps(evaluation: Evaluation, msa: StepsOf, beside: Sequence[Batching] = ()) -> OtherSteps | None:
    """How the steps of MSA differ from today's; None if they do not, or if the base model was attacked, as of its HPM.

    Args:
        evaluation: of a card.
        msa: the steps of today.
        beside: the other batchings in which the card has HPM; HPM SOLO is shown what was made for them.
    """
    if evaluation.target == "base":
        return None
    then = [step.name for step in evaluation.steps]
    shown = [made_for(batching) for batching in beside] if evaluation.batching is Batching.SOLO else []
    now = [step.name for step in (*msa(evaluation.batching, _fine_tuned(evaluation)), LENT, *shown)]
    found = OtherSteps(*(tuple(name for name in a if name not in b) for a, b in ((now, then), (then, now))))
    return found if found.without or found.besides else None


def _fine_tuned(evaluation: Evaluation) -> bool:
    """Whether the FC head is another than the base model's: only then it is attacked, under a name of its own."""
    return any(step.view == "fc" for step in evaluation.steps)
