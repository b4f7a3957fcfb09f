"""What each step breaks by itself, what no other step does, and what the whole trial had left of it."""

from __future__ import annotations

from dataclasses import replace

from hpm_robustbench.ledger.matrix import matrix_rows, members
from hpm_robustbench.ledger.plan import AUTOATTACK, COMPONENTS, MSA, QUICK, Plan, Step
from hpm_robustbench.ledger.record import CLEAN, RunRecord, StepResult, Verdict
from hpm_robustbench.ledger.transfers import LENT
from hpm_robustbench.threat import Batching

STEPS = (Step("hpm", "apgd-ce", MSA), Step("fc", "apgd-t", MSA, {"n_iter": 5}), Step("hpm", "square", MSA))
N = 6


def result(name: str, broken: set[int], met: set[int], fooled: set[int] | None = None) -> StepResult:
    """The step broke these of the rows that it met; row 0 is wrong without any attack."""
    verdict = [
        (Verdict.BROKEN if row in broken else Verdict.STANDING) if row in met else Verdict.SKIPPED for row in range(N)
    ]
    told = () if fooled is None else tuple(row in fooled if row in met else None for row in range(N))
    return StepResult(name, tuple(range(N)), tuple(verdict), (0,) * N, (0.0,) * N, 3 * N, N, fooled=told)


def clean() -> StepResult:
    return replace(result(CLEAN, set(), {*range(N)}), verdict=(Verdict.CLEAN_WRONG, *(Verdict.STANDING,) * (N - 1)))


def alone(plan: Plan, broken: set[int], fooled: set[int] | None = None) -> RunRecord:
    (step,) = plan.steps
    return RunRecord(plan, (clean(), result(step.name, broken, {*range(1, N)}, fooled)), {})


def trial(make_record, spec, **changes) -> Plan:
    plan = make_record(spec, "hpm", Batching.SOLO, clean=1.0, strengths=[0.1] * 7).plan
    return replace(plan, steps=STEPS, examples=replace(plan.examples, n=N), **changes)


def test_every_step_has_a_run_of_its_own_that_is_a_screen(make_record, spec):
    plan = trial(make_record, spec, lender="ab" * 8)
    found = members(plan)
    assert [step.name for member in found for step in member.steps] == [step.name for step in STEPS]
    assert {step.group for member in found for step in member.steps} == {QUICK}
    assert len({plan.run_key, *(member.run_key for member in found)}) == 4
    assert not any(member.lender for member in found)
    standard = replace(plan, steps=tuple(Step("hpm", attack, AUTOATTACK) for attack in COMPONENTS))
    for each in (plan, standard):
        in_trial = [each.seed_of(step) for step in each.steps]
        assert [member.seed_of(member.steps[0]) for member in members(each)] == in_trial, "as in the trial"
    joint = replace(plan, batching=Batching.JOINT)
    assert joint.aggregated
    assert not any(member.aggregated for member in members(joint))


def test_counts_are_of_images_that_are_right_without_any_attack(make_record, spec):
    first, second, third = members(trial(make_record, spec))
    records = [alone(first, {1, 2}), alone(second, {2, 3}, fooled={2, 3, 4}), alone(third, {1})]
    rows = matrix_rows(records, [])
    assert [row["step"] for row in rows] == [step.name for step in STEPS]
    assert [row["broken"] for row in rows] == [2, 2, 1]
    assert [row["only"] for row in rows] == [0, 1, 0]
    assert [row["fooled"] for row in rows] == [None, 3, None]
    assert {(row["right"], row["beyond"], row["passes_per_image"]) for row in rows} == {(5, None, 8)}


def test_what_the_whole_trial_had_left_is_told_what_was_made_elsewhere_counts(make_record, spec):
    plan = trial(make_record, spec)
    first, second, _ = members(plan)
    skipped = [result(step.name, set(), set()) for step in STEPS[1:]]
    whole = RunRecord(plan, (clean(), result(STEPS[0].name, {1}, {*range(1, N)}), *skipped), {})
    records = [alone(first, {1, 2}), alone(second, {3}, fooled=set())]
    assert [row["beyond"] for row in matrix_rows(records, [whole])] == [1, 1]
    lent = replace(whole, lent=result(LENT.name, {2}, {2, 3, 4, 5}))
    assert [row["beyond"] for row in matrix_rows(records, [lent])] == [0, 1]
    of_batches = replace(clean(), solo_predicted=(None, None, None, 4, None, None))
    joint = RunRecord(replace(plan, batching=Batching.JOINT), (of_batches,), {})
    assert [row["beyond"] for row in matrix_rows(records, [lent, joint])] == [0, 0]


def test_members_of_other_trials_take_nothing_away(make_record, spec):
    solo = trial(make_record, spec)
    joint = replace(solo, batching=Batching.JOINT)
    records = [alone(members(solo)[0], {1, 2}), alone(members(joint)[0], {2})]
    assert [row["only"] for row in matrix_rows(records, [])] == [2, 1]
