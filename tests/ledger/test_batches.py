"""A number of JOINT names the batches that there really were, wherever it is shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.card_batches import Batched
from hpm_robustbench.ledger.card_from_records import batched
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import build_card, read_card, write_card
from hpm_robustbench.ledger.repetition import repetition
from hpm_robustbench.report.cards import render_card
from hpm_robustbench.threat import Composition

JOINT = 2


@pytest.fixture(scope="module")
def few(spec, records):
    """The card of the fixture runs, had more images been asked for in a batch than there are."""
    joint = records[JOINT]
    plan = replace(joint.plan, batch_size=512, shard_size=512)
    return build_card(spec, [*records[:JOINT], replace(joint, plan=plan, aggregates=None)], n_classes=10)


def test_all_images_make_one_smaller_batch(few):
    solo, joint = few.hpm_bench.evaluations[1:]
    assert (joint.batch_size, joint.largest_batch, joint.batch_per_class) == (512, 400, 40.0)
    assert (solo.batch_size, solo.largest_batch, solo.batch_per_class) == (100, None, None)


def test_page_board_and_terminal_show_what_there_was_and_the_command_asks_for_what_was_asked(few, tmp_path, read_html):
    write_card(few, tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    for page in (index, index.parent / "cifar10/Linf/resnet4b_linf2.html"):
        text = read_html(page).text
        assert "B = 400, B/C = 40" in text
        assert "B = 512" not in text
    [row] = json.loads((index.parent / "leaderboard.json").read_text())["rows"]
    assert (row["joint_batch_size"], row["joint_batch_per_class"]) == (400, 40.0)
    assert "hpm joint B=400" in render_card(few)
    assert "--batching joint --joint-size 512" in repetition(few.hpm_bench)


def test_a_batch_of_one_class_has_no_mean_number_of_mates_per_class(records):
    plan = replace(records[JOINT].plan, composition=Composition.SINGLE_CLASS, labels=(0,) * 400)
    assert batched(plan, 10)["batch_per_class"] is None
    assert batched(replace(plan, composition=Composition.SORTED), 10)["batch_per_class"] == 12.8
    assert batched(records[1].plan, 10)["batch_per_class"] is None


@pytest.mark.parametrize(
    ("evaluation", "change"),
    [
        (1, {"batch_per_class": 10.0}),
        (JOINT, {"batch_per_class": None}),
        (JOINT, {"composition": "single-class"}),
    ],
)
def test_mates_per_class_that_cannot_be_are_refused(card, tmp_path, evaluation, change):
    data = card.to_json()
    data["hpm_bench"]["evaluations"][evaluation] |= change
    path = tmp_path / "card.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match="batch_per_class belongs to JOINT batches of several classes"):
        read_card(path)


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 32, 100, 365, 700, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 127, 128, 1000])
def test_the_number_of_classes_is_never_taken_for_less_than_it_is(card, size, classes):
    joint = card.hpm_bench.evaluations[JOINT]
    told = {"batch_size": size, "batch_per_class": round(size / classes, 4), "n": 1000, "composition": Composition.IID}
    found = Batched(batching=joint.batching, shard_size=size, **told)
    assert classes <= found.most_classes <= 1.1 * classes
    if size >= 127:
        assert found.most_classes == classes


def test_lone_images_are_lost_alone(card, tmp_path):
    data = card.to_json()
    data["hpm_bench"]["evaluations"][JOINT] |= {"batch_size": 1, "batch_per_class": 0.1}
    path = tmp_path / "card.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match="batch_worst is other than robust"):
        read_card(path)
