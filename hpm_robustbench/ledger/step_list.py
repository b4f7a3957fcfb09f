"""Whether a card's attacks are those that MSA has today: two cards that both say MSA may have met unlike attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.ledger.transfers import LENT, made_for
from hpm_robustbench.threat import Batching

StepsOf: TypeAlias = Callable[[str, Batching, bool], tuple[Step, ...]]
"""The steps of MSA on a target in a batching, with an FC head that was fine-tuned or not, as the code has them now."""


@dataclass(frozen=True)
class OtherSteps:
    """The steps of today that an evaluation was made without, and those that it had besides."""

    without: tuple[str, ...]
    besides: tuple[str, ...]


def other_steps(evaluation: Evaluation, msa: StepsOf, hpm: Sequence[Batching] = ()) -> OtherSteps | None:
    """How the steps of MSA differ from today's; None if they do not.

    Args:
        evaluation: of a card.
        msa: the steps of today.
        hpm: the batchings in which the card has HPM; the base model is shown what was made for each, and HPM SOLO
            what was made for the others.
    """
    then = [step.name for step in evaluation.steps]
    own = msa(evaluation.target, evaluation.batching, _fine_tuned(evaluation))
    now = [step.name for step in (*own, *_shown(evaluation, hpm))]
    found = OtherSteps(*(tuple(name for name in a if name not in b) for a, b in ((now, then), (then, now))))
    return found if found.without or found.besides else None


def _shown(evaluation: Evaluation, hpm: Sequence[Batching]) -> list[Step]:
    if evaluation.target == "base":
        return [made_for(batching) for batching in hpm]
    others = hpm if evaluation.batching is Batching.SOLO else ()
    return [LENT, *(made_for(batching) for batching in others if batching is not Batching.SOLO)]


def _fine_tuned(evaluation: Evaluation) -> bool:
    """Whether the FC head is another than the base model's: only then it is attacked, under a name of its own."""
    return any(step.view == "fc" for step in evaluation.steps)
