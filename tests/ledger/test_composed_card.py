"""A number of composed batches says so wherever it is shown, so that nobody takes it for the one of random batches."""

from __future__ import annotations

import json

import pytest

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import build_card, check_replaceable, read_card, write_card
from hpm_robustbench.ledger.repetition import repetition
from hpm_robustbench.ledger.statistics import COUPLED
from hpm_robustbench.report.cards import render_card
from hpm_robustbench.threat import Batching, Composition


@pytest.fixture(scope="module")
def composed(spec, records, make_record):
    """The card of the fixture runs, but for JOINT in batches of one class each."""
    strengths = [0.18, 0.22, 0.2, 0.21]
    how = {"clean": 0.75, "strengths": strengths, "composed": Composition.SINGLE_CLASS}
    return build_card(spec, [*records[:2], make_record(spec, "hpm", Batching.JOINT, **how)], n_classes=10)


def test_the_card_names_it_and_a_card_of_random_batches_does_not(composed, card, tmp_path):
    told = [evaluation.get("composition") for evaluation in composed.to_json()["hpm_bench"]["evaluations"]]
    assert told == [None, None, "single-class"]
    assert "composition" not in card.to_text()
    assert read_card(write_card(composed, tmp_path)) == composed


def test_the_pages_the_table_and_the_command_name_it(composed, card, tmp_path, read_html):
    write_card(composed, tmp_path / "cards")
    build(tmp_path / "cards", tmp_path / "board")
    page = read_html(tmp_path / "board" / "cifar10" / "Linf" / "resnet4b_linf2.html").text
    assert "HPM JOINT, single-class batches: it does not help here, it hurts." in page
    assert "HPM JOINT, single-class batches, step by step" in page
    assert "B at most 128, single-class" in read_html(tmp_path / "board" / "index.html").text
    assert "single-class" in (tmp_path / "board" / "leaderboard.csv").read_text()
    assert "--batching joint --joint-size 128 --batches single-class" in repetition(composed.hpm_bench)
    assert "hpm joint B=128 single-class" in render_card(composed)
    assert COUPLED in render_card(composed)
    assert "joint B=128 single-class: HPM hurts" in render_card(composed)
    assert "single-class" not in repetition(card.hpm_bench) + render_card(card)


def test_it_does_not_replace_a_card_of_random_batches_unasked(composed, card, tmp_path):
    path, bench = write_card(card, tmp_path), composed.hpm_bench
    with pytest.raises(UsageProblem, match="--overwrite"):
        check_replaceable(path, [e.trial for e in bench.evaluations], bench.defence, bench.weights.sha256)


def test_a_lone_image_has_no_batch_to_compose(card, tmp_path):
    data = card.to_json()
    data["hpm_bench"]["evaluations"][1]["composition"] = "sorted"
    path = tmp_path / "card.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match="only the batches of JOINT are composed"):
        read_card(path)
