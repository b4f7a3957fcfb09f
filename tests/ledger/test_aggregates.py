"""The third aggregate and the spread over other batches stand on card, page and table, and check themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.aggregates import Aggregates
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import build_card, read_card, write_card
from hpm_robustbench.report.cards import render_card
from hpm_robustbench.threat import Batching

JOINT = 2


def test_the_composite_stands_beside_the_other_aggregates(card):
    joint, solo = card.hpm_bench.evaluation("hpm", Batching.JOINT), card.hpm_bench.headline
    assert (joint.composite.count, joint.composite.text) == (236, "59.00")
    assert joint.spreads == {"clean": "74.25 to 75.75", "composite": "61.00 to 62.75"}
    assert (solo.composite, solo.spreads) == (None, {})


def test_a_card_from_before_there_was_one_stays_valid(spec, records, tmp_path):
    card = build_card(spec, [*records[:JOINT], replace(records[JOINT], aggregates=None)], n_classes=10)
    assert "aggregates" not in card.to_text()
    assert read_card(write_card(card, tmp_path)) == card


def test_where_there_are_no_other_batches_nothing_is_shown_of_them(spec, records, aggregates, tmp_path, read_html):
    alone = aggregates.model_copy(update={"regroupings": []})
    card = build_card(spec, [*records[:JOINT], replace(records[JOINT], aggregates=alone)], n_classes=10)
    assert read_card(write_card(card, tmp_path / "cards")) == card
    assert card.hpm_bench.evaluation("hpm", Batching.JOINT).spreads == {}
    build(tmp_path / "cards", tmp_path / "board")
    page = read_html(tmp_path / "board" / "cifar10" / "Linf" / "resnet4b_linf2.html").text
    assert "other batches" not in page
    assert "in other batches" not in render_card(card)


def test_page_and_table_show_them(card, tmp_path, read_html):
    write_card(card, tmp_path / "cards")
    build(tmp_path / "cards", tmp_path / "board")
    page = read_html(tmp_path / "board" / "cifar10" / "Linf" / "resnet4b_linf2.html").text
    assert "other batches 74.25 to 75.75" in page
    assert "other batches 61.00 to 62.75" in page
    table = render_card(card)
    assert "59.00" in table
    assert (
        "hpm joint B=128 in other batches, fewest to most: clean 74.25 to 75.75 %, composite 61.00 to 62.75 %" in table
    )


def test_what_the_composite_alone_broke_is_a_flag(spec, records, aggregates):
    found = aggregates.model_copy(update={"composite_alone": 3})
    card = build_card(spec, [*records[:JOINT], replace(records[JOINT], aggregates=found)], n_classes=10)
    joint = card.hpm_bench.evaluation("hpm", Batching.JOINT)
    assert any(flag.startswith("the composite broke 3 images") for flag in joint.flags)
    assert "the composite broke 3 images" in render_card(card)


def test_what_the_composite_alone_broke_may_take_batch_worst_below_sample_worst(spec, records, tmp_path):
    """Sample-worst does not count it; a trial that found it has a card all the same."""
    joint = records[JOINT]
    standing = sum(joint.standing())
    left, by_batch = standing - 1, []
    for batch in joint.plan.batches():
        by_batch.append(min(left, len(batch)))
        left -= by_batch[-1]
    found = Aggregates(composite=standing - 1, composite_alone=1, composite_by_batch=by_batch, regroupings=[])
    assert replace(joint, aggregates=found).batch_worst() < standing
    data = build_card(spec, [*records[:JOINT], replace(joint, aggregates=None)], n_classes=10).to_json()
    told = data["hpm_bench"]["evaluations"][2]
    told["aggregates"], told["flags"] = found.model_dump(), [*told["flags"], found.flag]
    path = tmp_path / "card.json"
    for count, legal in ((standing - 1, True), (standing - 2, False)):
        told["batch_worst"] = Metric.from_count(count, joint.n).model_dump()
        path.write_text(json.dumps(data))
        if legal:
            read_card(path)
        else:
            with pytest.raises(InvalidInput, match="a metric lies outside what stands"):
                read_card(path)


@pytest.mark.parametrize(
    ("evaluation", "change", "message"),
    [
        (1, {}, "aggregates belong to JOINT"),
        (2, {"composite": 401}, "count more than the 400 images"),
        (2, {"regroupings": [{"clean": 401, "composite": 0}]}, "count more than the 400 images"),
        (2, {"composite_by_batch": [129, 107]}, "a batch of the composite counts more than 128 images"),
        (2, {"composite_by_batch": [100, 35]}, "hold other than as many right images as all of it"),
        (2, {"composite_alone": 399}, "broke more images than stood"),
        (2, {"composite_alone": 1}, "raise a flag that is not among the flags"),
    ],
)
def test_aggregates_that_cannot_be_are_refused(card, aggregates, tmp_path, evaluation, change, message):
    data = card.to_json()
    data["hpm_bench"]["evaluations"][evaluation]["aggregates"] = {**aggregates.model_dump(), **change}
    path = tmp_path / "card.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match=message):
        read_card(path)


def test_the_composite_is_a_submission_like_any_other(spec, records, aggregates, tmp_path):
    """Batch by batch: where it leaves fewer than every step, it is the worst that the batch meets."""
    joint = records[JOINT]
    without, batches = replace(joint, aggregates=None), joint.plan.batches()
    told = [len(batch) for batch in batches]
    assert joint.batch_worst() == without.batch_worst(), "not told batch by batch"
    told[1] = 3
    found = aggregates.model_copy(update={"composite": sum(told), "composite_by_batch": told})
    lowered = replace(joint, aggregates=found).batch_worst()
    assert without.batch_worst() - len(batches[1]) + 3 <= lowered < without.batch_worst()


def test_batch_worst_is_never_above_the_composite(card, aggregates, tmp_path):
    data = card.to_json()
    joint = data["hpm_bench"]["evaluations"][2]
    few = joint["batch_worst"]["count"] - 1
    by_batch = [few // 4, few // 4, few // 4, few - 3 * (few // 4)]
    joint["aggregates"] = {**aggregates.model_dump(), "composite": few, "composite_by_batch": by_batch}
    path = tmp_path / "card.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match="batch_worst is above what stands in the composite"):
        read_card(path)


def test_a_torn_file_of_them_is_ignored_and_said(records, aggregates, tmp_path, caplog):
    journal = Journal(tmp_path, records[JOINT].plan).open({})
    assert journal.read_aggregates() is None
    journal.write_aggregates(aggregates)
    assert journal.read_aggregates() == aggregates
    path = journal.folder / "aggregates.json"
    path.write_text(path.read_text().replace("236", "237"))
    assert journal.read_aggregates() is None
    assert "aggregates.json" in caplog.text
