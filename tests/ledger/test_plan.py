"""How a plan composes its batches, and what it says of that."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.ledger.journal import overview
from hpm_robustbench.ledger.plan import AUTOATTACK, MSA, Examples, Plan, Step, plan_from_json
from hpm_robustbench.threat import Batching, Composition, ThreatModel

WINDOW = 2
"""Batches inside which ``sorted`` sorts."""


def plan_of(labels: list[int], batch_size: int, composition: Composition, **changes: object) -> Plan:
    plan = Plan(
        model="Small",
        target="hpm",
        batching=Batching.JOINT,
        threat=ThreatModel.parse("Linf", "0.1"),
        protocol="test",
        steps=(),
        examples=Examples("digits", "test", "5e" * 32, len(labels)),
        state_sha256="ab" * 32,
        defence={},
        software={},
        batch_size=batch_size,
        shard_size=batch_size,
        composition=composition,
        labels=() if composition is Composition.IID else tuple(labels),
    )
    return replace(plan, **changes)


any_labels = st.lists(st.integers(0, 3), min_size=1, max_size=40)
any_size = st.integers(1, 12)


@given(any_labels, any_size, st.sampled_from(Composition), st.integers(1, 3), st.integers(0, 3))
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(labels, size, composition, per_shard, seed):
    plan = plan_of(labels, size, composition, shard_size=size * per_shard, seed=seed)
    batches = plan.batches()
    assert sorted(row for batch in batches for row in batch) == list(range(len(labels)))
    assert all(0 < len(batch) <= size for batch in batches)
    assert [row for batch in batches for row in batch] == [row for shard in plan.shards() for row in shard]
    assert all(len(shard) <= size * per_shard for shard in plan.shards())


@given(any_labels, any_size, st.integers(1, 3))
def test_single_class_batches_are_of_one_class_and_as_few_as_can_be(labels, size, per_shard):
    batches = plan_of(labels, size, Composition.SINGLE_CLASS, shard_size=size * per_shard).batches()
    assert all(len({labels[row] for row in batch}) == 1 for batch in batches)
    assert len(batches) == sum(-(-count // size) for count in Counter(labels).values())


@given(any_labels, any_size)
def test_sorted_batches_are_the_iid_ones_sorted_two_at_a_time(labels, size):
    by_chance = plan_of(labels, size, Composition.IID).batches()
    in_order = plan_of(labels, size, Composition.SORTED).batches()
    assert [len(batch) for batch in in_order] == [len(batch) for batch in by_chance]
    for start in range(0, len(in_order), WINDOW):
        windows = (batches[start : start + WINDOW] for batches in (in_order, by_chance))
        met, drawn = ([row for batch in window for row in batch] for window in windows)
        assert sorted(met) == sorted(drawn)
        assert [labels[row] for row in met] == sorted(labels[row] for row in drawn)


def test_the_last_batch_may_be_a_partial_one():
    assert [len(batch) for batch in plan_of([0] * 10_000, 128, Composition.IID).batches()] == [128] * 78 + [16]


def test_a_plan_of_iid_batches_says_nothing_of_it():
    """So that its run key is what it was before batches could be composed otherwise."""
    plan = plan_of([0, 1, 0], 2, Composition.IID)
    assert set(plan.to_json()).isdisjoint({"composition", "labels"})
    assert plan.run_key == "92a613ade969391a"


@pytest.mark.parametrize("composition", Composition)
def test_a_plan_reads_back_equal(composition):
    plan = plan_of([0, 1, 0], 2, composition)
    assert plan_from_json(plan.to_json()) == plan


def test_each_composition_is_a_trial_of_its_own():
    plans = [plan_of([0, 1, 0], 2, composition) for composition in Composition]
    assert len({plan.run_key for plan in plans}) == len({plan.trial for plan in plans}) == len(Composition)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, 1]},
        {"batching": "solo"},
        {"composition": "by-size"},
        {"batch_size": 0},
        {"threat": {"norm": "Linf", "eps": "1/0", "eps_exact": "1/0"}},
        {"threat": "Linf"},
        {"steps": [[]]},
        {"examples": None},
    ],
)
def test_a_plan_that_cannot_be_is_refused(change):
    data = plan_of([0, 1, 0], 2, Composition.SORTED).to_json()
    with pytest.raises(IntegrityError, match="run plan"):
        plan_from_json({**data, **change})


def test_only_the_attacks_of_autoattack_share_a_seed():
    first, second = (plan_of([0] * 4, 2, Composition.IID, seed=seed) for seed in (7, 8))
    autoattack = [Step("hpm", attack, AUTOATTACK) for attack in ("apgd-ce", "square")]
    others = [Step("hpm", "apgd-ce", MSA, {"n_iter": 9}), Step("base", "apgd-ce", MSA), Step("hpm", "joint", MSA)]
    assert [plan.seed_of(step) for plan in (first, second) for step in autoattack] == [7, 7, 8, 8]
    drawn = [plan.seed_of(step) for plan in (first, second) for step in others]
    assert len({7, 8, *drawn}) == 8
    assert all(0 <= seed < 2**32 for seed in drawn), "NumPy takes no larger ones"


def test_what_is_no_plan_is_left_out_of_the_overview(tmp_path, caplog):
    for name, plan in (("whole", {}), ("empty", {"batch_size": 0}), ("odd", {"steps": None})):
        (tmp_path / name).mkdir()
        data = {**plan_of([0, 1, 0], 2, Composition.SORTED).to_json(), **plan}
        (tmp_path / name / "plan.json").write_text(json.dumps(data))
    assert [row["run"] for row in overview(tmp_path)] == ["whole"]
    assert caplog.text.count("wanted a run plan") == 2
