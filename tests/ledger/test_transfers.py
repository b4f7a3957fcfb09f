"""What was made for HPM counts against the base model, too: nothing is credited to HPM that others would have found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpm_robustbench.ledger.model_card import build_card
from hpm_robustbench.ledger.plan import AUTOATTACK, MSA, Step
from hpm_robustbench.ledger.provenance import fates
from hpm_robustbench.ledger.record import RunRecord, StepResult, Verdict
from hpm_robustbench.ledger.transfers import LENT, with_transfers
from hpm_robustbench.threat import Batching


@pytest.fixture
def base(records) -> RunRecord:
    return records[0]


def misreading(record: RunRecord, step: int, classes: dict[int, int], who: str = "base") -> RunRecord:
    """The run, whose step had the base model, or HPM ``solo``, take some rows for those classes."""
    answers = {f"{who}_predicted": tuple(classes.get(row) for row in range(record.n))}
    found = replace(record.steps[step], **answers)
    return replace(record, steps=(*record.steps[:step], found, *record.steps[step + 1 :]))


def test_rows_fall_on_the_base_and_keep_the_class(records, base):
    stands = [row for row, right in enumerate(base.standing()) if right]
    fallen = next(row for row, right in enumerate(base.standing()) if not right)
    solo = misreading(records[1], 2, {stands[0]: 7, fallen: 3})
    joint = misreading(records[2], 1, {stands[0]: 1, stands[1]: 5})
    lowered = with_transfers([base, solo, joint])[0]
    assert [step.name for step in lowered.steps[-2:]] == ["transfer@hpm.batching-solo", "transfer@hpm.batching-joint"]
    assert [row for row in stands if not lowered.standing()[row]] == stands[:2]
    assert [lowered.lost_to[row] for row in stands[:2]] == [step.name for step in lowered.steps[-2:]]
    assert lowered[lowered.lost_to[stands[0]]].predicted[stands[0]] == 7
    assert lowered.lost_to[fallen] == base.lost_to[fallen]
    assert lowered.standing(AUTOATTACK) == base.standing(AUTOATTACK)
    assert lowered.run_key == base.run_key != lowered.plan.run_key


def test_hpm_alone_loses_what_was_made_for_a_batch_and_breaks_it_alone(spec, records, base):
    solo = records[1]
    stands = [row for row, right in enumerate(solo.standing()) if right]
    joint = misreading(records[2], 1, dict.fromkeys(stands[:3], 4), who="solo")
    lowered = with_transfers([base, solo, joint])
    assert [row for row in stands if not lowered[1].standing()[row]] == stands[:3]
    assert lowered[0] == base
    assert lowered[2] == joint
    told = build_card(spec, [base, solo, joint], n_classes=10).hpm_bench.headline
    assert told.robust.count == len(stands) - 3
    assert told.steps[-1].name == "transfer@hpm.batching-joint"
    assert fates(told.provenance)[stands[0]] == ("transfer@hpm.batching-joint", 4)


def test_the_first_misreading_counts(records):
    solo = misreading(misreading(records[1], 3, {5: 2}), 2, {5: 8, 6: 4})
    assert solo.base_predicted[5:7] == (8, 4)


def test_runs_that_asked_no_base_model_change_nothing(records):
    assert with_transfers(records) == records


def test_the_card_compares_what_stands_under_everything(spec, records, base):
    stands = {row for row, right in enumerate(base.standing()) if right}
    only_base = [row for row in stands if not records[1].standing()[row]]
    assert len(only_base) > 2
    before = build_card(spec, records, n_classes=10).hpm_bench
    shown = [base, misreading(records[1], 4, dict.fromkeys(only_base[:2], 0)), records[2]]
    bench = build_card(spec, shown, n_classes=10).hpm_bench
    told, claim = bench.evaluation("base", Batching.SOLO), bench.verdict(Batching.SOLO)
    assert claim.only_base == before.verdict(Batching.SOLO).only_base - 2
    assert told.robust.count == len(stands) - 2
    assert told.autoattack.count == len(stands)
    assert fates(told.provenance)[only_base[0]] == ("transfer@hpm.batching-solo", 0)
    assert bench.cost(bench.headline) == before.cost(before.headline)


def test_cost_is_told_in_autoattack_whatever_else_the_base_model_met(spec, records, base):
    before = build_card(spec, records, n_classes=10).hpm_bench
    steps = (*base.plan.steps, Step("base", "conjunction", MSA))
    found = replace(base.steps[-1], name=steps[-1].name, forward=9999, backward=9999)
    longer = replace(base, plan=replace(base.plan, protocol="msa", steps=steps), steps=(*base.steps, found))
    bench = build_card(spec, [longer, *records[1:]], n_classes=10).hpm_bench
    assert bench.evaluation("base", Batching.SOLO).passes > before.evaluation("base", Batching.SOLO).passes
    assert bench.cost(bench.headline) == before.cost(before.headline)


def test_hpm_loses_what_it_was_shown_last_and_its_own_last_attack_is_still_named(spec, records, base):
    """That images of the base model broke nothing more does not say that its own last attack had run dry."""
    joint = records[2]
    stands = [row for row, right in enumerate(joint.standing()) if right]
    verdict = [int(Verdict.STANDING)] * joint.n
    verdict[stands[0]] = int(Verdict.BROKEN)
    lent = StepResult(LENT.name, tuple(range(joint.n)), tuple(verdict), (3,) * joint.n, (0.0,) * joint.n, forward=7)
    [shown] = with_transfers([replace(joint, lent=lent)])
    assert [row for row in stands if not shown.standing()[row]] == stands[:1]
    bench = build_card(spec, [base, records[1], replace(joint, lent=lent)], n_classes=10).hpm_bench
    told = bench.evaluation("hpm", Batching.JOINT)
    assert told.steps[-1].name == "transfer@base"
    assert fates(told.provenance)[stands[0]] == ("transfer@base", 3)
    before = build_card(spec, records, n_classes=10).hpm_bench.evaluation("hpm", Batching.JOINT)
    assert before.flags == told.flags
    assert any(flag.startswith("the last attack still broke") for flag in told.flags)
    assert told.steps[-1].flags == []
