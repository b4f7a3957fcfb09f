"""A card on which MSA would be weaker than one of its members does not pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpm_robustbench.ledger.card_evaluation import Evaluation, Metric

CARD = Path(__file__).parents[2] / "model_cards" / "digits" / "Linf" / "Digits2026ResNet-Linf.json"


def stands_more_than_under_autoattack(solo: dict[str, Any]) -> None:
    fewer = solo["robust"]["count"] - 1
    solo["autoattack"] = Metric.from_count(fewer, solo["n"]).model_dump()


def a_member_skipped_an_image(solo: dict[str, Any]) -> None:
    solo["steps"][-1]["attempted"] -= 1


def a_broken_image_stands(solo: dict[str, Any]) -> None:
    step = next(step for step in solo["steps"] if step["broken"])
    step["broken"] += 1


def the_last_member_is_not_counted(solo: dict[str, Any]) -> None:
    last = next(step for step in reversed(solo["steps"]) if step["broken"])
    solo["robust"] = Metric.from_count(last["robust"]["count"] + last["broken"], solo["n"]).model_dump()


def solo_of_the_card() -> dict[str, Any]:
    evaluations = json.loads(CARD.read_text())["hpm_bench"]["evaluations"]
    return next(e for e in evaluations if e["target"] == "hpm" and e["batching"] == "solo")


def test_the_card_itself_passes() -> None:
    Evaluation.model_validate_json(json.dumps(solo_of_the_card()))


@pytest.mark.parametrize(
    "violate",
    [
        stands_more_than_under_autoattack,
        a_member_skipped_an_image,
        a_broken_image_stands,
        the_last_member_is_not_counted,
    ],
)
def test_a_planted_violation_is_caught(violate: Callable[[dict[str, Any]], None]) -> None:
    solo = solo_of_the_card()
    violate(solo)
    with pytest.raises(ValueError, match=r"stood before|outside what stands|after the last step"):
        Evaluation.model_validate_json(json.dumps(solo))
