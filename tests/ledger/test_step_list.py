"""A number that other attacks have found than those of today is marked wherever it is ranked."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from hpm_robustbench.attacks.protocols import msa
from hpm_robustbench.ledger.leaderboard import build, check
from hpm_robustbench.ledger.model_card import write_card
from hpm_robustbench.ledger.plan import MSA, Step
from hpm_robustbench.ledger.rows import tracks
from hpm_robustbench.ledger.step_list import OtherSteps, other_steps
from hpm_robustbench.threat import Batching


@pytest.fixture
def as_it_was(card):
    """MSA as the card of the fixture runs met it; it lists an FC head's attack, which not every card has."""

    def steps(batching: Batching) -> tuple[Step, ...]:
        met = card.hpm_bench.evaluation("hpm", batching).steps
        return tuple(Step(step.view, step.attack, step.group, step.parameters) for step in met)

    return steps


@pytest.fixture
def with_one_more(as_it_was):
    return lambda batching: (*as_it_was(batching), Step("hpm", f"new-{batching.value}", MSA))


def test_the_same_steps_are_no_other_ones(card, as_it_was):
    assert [other_steps(evaluation, as_it_was) for evaluation in card.hpm_bench.evaluations] == [None] * 3


def test_steps_that_only_some_cards_have_do_not_count(card, as_it_was):
    """A head that was fine-tuned is attacked too; one that was not is the base model's."""

    def without_fc(batching):
        return tuple(step for step in as_it_was(batching) if step.view != "fc")

    assert any(step.view == "fc" for step in card.hpm_bench.headline.steps)
    assert other_steps(card.hpm_bench.headline, without_fc) is None


def test_what_is_missing_and_what_was_dropped_are_named(card, as_it_was):
    def newer(batching):
        first, *rest = as_it_was(batching)
        return (replace(first, parameters={"targets": 3}), *rest)

    found = other_steps(card.hpm_bench.headline, newer)
    assert found == OtherSteps(without=("apgd-ce@hpm.targets-3",), besides=("apgd-ce@hpm",))


def test_the_base_model_has_no_list_of_msa(card, with_one_more):
    base, solo, joint = card.hpm_bench.evaluations
    assert other_steps(base, with_one_more) is None
    assert other_steps(solo, with_one_more).without == ("new-solo@hpm",)
    assert other_steps(joint, with_one_more).without == ("new-joint@hpm",)


def test_index_page_and_files_tell_of_other_steps(card, as_it_was, with_one_more, tmp_path, read_html):
    write_card(card, tmp_path / "cards")
    for name, steps, marks in (("old", as_it_was, 0), ("new", with_one_more, 3)):
        index = build(tmp_path / "cards", tmp_path / name, steps)
        check(tmp_path / "cards", index.parent, steps)
        page = read_html(index)
        assert [tag for tag, _ in page.tags].count("abbr") == marks
        assert ("Found by another list of attack steps" in page.text) == bool(marks)
        model = read_html(index.parent / "cifar10/Linf/resnet4b_linf2.html").text
        assert ("another list of attack steps" in model) == bool(marks)
        assert ("without new-joint@hpm ." in model) == bool(marks)
        [line] = csv.DictReader(io.StringIO((index.parent / "leaderboard.csv").read_text()))
        assert line["solo_steps_of_today"] == line["joint_steps_of_today"] == str(not marks)


def test_where_today_is_unknown_nothing_is_said(make_card, tmp_path, read_html):
    card = make_card("Lone")
    write_card(card, tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    assert "attack steps than" not in read_html(index).text
    [row] = json.loads((index.parent / "leaderboard.json").read_text())["rows"]
    assert (row["solo_steps_of_today"], row["joint_steps_of_today"]) == (None, None)
    [track] = tracks([card], msa)
    assert track.rows[0].flat()["solo_steps_of_today"] is False
    assert track.rows[0].flat()["joint_steps_of_today"] is None
