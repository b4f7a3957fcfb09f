"""What counts cast doubt on is a flag, which nobody can take off a card without changing the counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.card_block import DOUBT
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.ledger.doubts import of_run, of_step
from hpm_robustbench.ledger.model_card import ModelCard, build_card, read_card
from hpm_robustbench.ledger.plan import AUTOATTACK, MSA
from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.threat import Batching

SOLO, JOINT = 1, 2
OVERSTATED = f"{DOUBT}: other attacks broke 9 images that it had left standing"
UNFINISHED = "the last attack still broke 5 images: more attacks would probably break more"


@pytest.mark.parametrize(
    ("groups", "standing", "left", "autoattack", "raised"),
    [
        ([AUTOATTACK, MSA], [90, 80, 76, 71], 71, 80, [OVERSTATED, UNFINISHED]),
        ([MSA, AUTOATTACK], [90, 80, 76, 71], 71, 80, [OVERSTATED]),
        ([AUTOATTACK, MSA], [90, 80, 71, 71], 71, 80, [OVERSTATED]),
        ([AUTOATTACK, MSA], [90, 80, 76, 76], 71, 80, [OVERSTATED]),
        ([AUTOATTACK, MSA], [90, 76, 71], 71, None, [UNFINISHED]),
        ([AUTOATTACK, MSA], [90, 76, 71], 60, None, [UNFINISHED]),
        ([AUTOATTACK, MSA], [90, 80, 80], 80, 80, []),
        ([], [90], 90, None, []),
    ],
)
def test_what_a_run_raises(groups, standing, left, autoattack, raised):
    assert of_run(groups, standing, left, autoattack, 100) == raised


def test_what_a_step_raises():
    of_autoattack = of_step("square", 3, 2, 1000, of_autoattack=True)
    assert of_autoattack == [
        f"{DOUBT}: 2 images came back outside the threat model and do not count",
        f"{DOUBT}: Square broke 3 images that the gradient attacks had left standing",
    ]
    added = of_step("square", 3, 2, 1000, of_autoattack=False)
    assert added == ["Square broke 3 images that the gradient attacks had left standing"]
    assert of_step("square", 2, 0, 1000, of_autoattack=True) == []
    assert of_step("apgd-ce", 300, 0, 1000, of_autoattack=True) == []


# Taken off a card


@pytest.fixture(scope="module")
def doubted(spec, records, by_square) -> ModelCard:
    """The fixture's card, had the surrogate of SOLO been attacked without gradients and one image come back illegal."""
    base, solo, joint = records
    row = solo["fab-t@hpm"].verdict.index(Verdict.STANDING)
    illegal = (*solo["fab-t@hpm"].verdict[:row], Verdict.INVALID, *solo["fab-t@hpm"].verdict[row + 1 :])
    steps = tuple(replace(step, verdict=illegal) if step.name == "fab-t@hpm" else step for step in solo.steps)
    return build_card(spec, [base, by_square(replace(solo, steps=steps), "apgd-t@fc"), joint], n_classes=10)


def read(data: dict[str, Any], folder: Path) -> ModelCard:
    path = folder / "card.json"
    path.write_text(json.dumps(data))
    return read_card(path)


def without(flags: list[str], part: str) -> list[str]:
    left = [flag for flag in flags if part not in flag]
    assert len(left) == len(flags) - 1
    return left


@pytest.mark.parametrize(
    ("evaluation", "part"),
    [(SOLO, "other attacks broke"), (SOLO, "the last attack still broke"), (JOINT, "the last attack still broke")],
)
def test_a_flag_of_a_run_stays(doubted, tmp_path, evaluation, part):
    data = doubted.to_json()
    told = data["hpm_bench"]["evaluations"][evaluation]
    told["flags"] = without(told["flags"], part)
    with pytest.raises(InvalidInput, match="counts of the steps raise a flag that is not among the flags"):
        read(data, tmp_path)


STEPS = {"fab-t@hpm": "1 images came back", "square@hpm": "Square broke", "square@fc": "Square broke"}


def take_off(data: dict[str, Any], name: str) -> None:
    [step] = [s for s in data["hpm_bench"]["evaluations"][SOLO]["steps"] if s["name"] == name]
    step["flags"] = without(step["flags"], STEPS[name])


@pytest.mark.parametrize("name", STEPS)
def test_a_flag_of_a_step_stays(doubted, tmp_path, name):
    data = doubted.to_json()
    take_off(data, name)
    with pytest.raises(InvalidInput, match="counts of a step raise a flag that is not among its flags"):
        read(data, tmp_path)


def test_older_cards_flagged_only_autoattacks_own_steps(doubted, tmp_path):
    data = doubted.to_json()
    for evaluation in data["hpm_bench"]["evaluations"]:
        del evaluation["provenance"]
    take_off(data, "square@fc")
    assert read(data, tmp_path).unreliable
    take_off(data, "square@hpm")
    with pytest.raises(InvalidInput, match="counts of a step raise a flag"):
        read(data, tmp_path)


def all_flags_go(bench: dict[str, Any]) -> None:
    for evaluation in bench["evaluations"]:
        for flagged in (evaluation, *evaluation["steps"]):
            flagged["flags"] = []


def autoattack_ends_lower(bench: dict[str, Any]) -> None:
    """So that nothing else seems to have broken anything."""
    solo = bench["evaluations"][SOLO]
    solo["autoattack"] = solo["robust"]


def the_last_step_of_joint_wins_nothing(bench: dict[str, Any]) -> None:
    joint = bench["evaluations"][JOINT]
    joint["steps"][-2]["robust"] = joint["robust"]
    joint["flags"] = []


@pytest.mark.parametrize("forge", [all_flags_go, autoattack_ends_lower, the_last_step_of_joint_wins_nothing])
def test_no_number_is_reliable_by_decree(card, tmp_path, forge: Callable[[dict[str, Any]], None]):
    data = card.to_json()
    forge(data["hpm_bench"])
    data["unreliable"] = False
    with pytest.raises(InvalidInput):
        read(data, tmp_path)


def test_what_was_made_for_hpm_shows_that_autoattack_overstates_the_base_model(spec, records):
    base, solo, _ = records
    stands = [row for row, right in enumerate(base.standing()) if right]
    misread = replace(solo.steps[1], base_predicted=tuple(7 if row in stands[:3] else None for row in range(solo.n)))
    shown = replace(solo, steps=(solo.steps[0], misread, *solo.steps[2:]))
    told = build_card(spec, [base, shown], n_classes=10).hpm_bench.evaluation("base", Batching.SOLO)
    assert told.robust == Metric.from_count(len(stands) - 3, base.n)
    assert told.flags == [f"{DOUBT}: other attacks broke 3 images that it had left standing"]
