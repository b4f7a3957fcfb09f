"""Ranks in a list of cards: models compete, and their controls stand below them without a rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hpm_robustbench.ledger.card_control import CONTROLS
from hpm_robustbench.ledger.card_schema import ModelCard


def ranked(cards: Sequence[ModelCard]) -> list[tuple[int | None, ModelCard]]:
    """Cards of one list with their ranks, given the best first.

    Controls have no rank. They follow the model in whose place they were fine-tuned, in the order of the method; those
    of a model without a card in this list come last.
    """
    models = []
    controls: defaultdict[str, list[ModelCard]] = defaultdict(list)
    for card in cards:
        assert card.hpm_bench is not None
        if card.hpm_bench.control:
            controls[card.hpm_bench.parent_id].append(card)
        else:
            models.append((card.hpm_bench.model_id, card))
    placed: list[tuple[int | None, ModelCard]] = []
    for rank, (name, card) in enumerate(models, start=1):
        placed += [(rank, card), *_unranked(controls.pop(name, []))]
    return [*placed, *(each for name in sorted(controls) for each in _unranked(controls[name]))]


def _unranked(controls: Sequence[ModelCard]) -> list[tuple[None, ModelCard]]:
    return [(None, card) for card in sorted(controls, key=_place)]


def _place(card: ModelCard) -> int:
    assert card.hpm_bench is not None and card.hpm_bench.control is not None
    return list(CONTROLS).index(card.hpm_bench.control)
