"""A number that other attacks have found than those of today is marked wherever it is ranked."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from functools import partial

import pytest

from hpm_robustbench.attacks.protocols import find_protocol
from hpm_robustbench.ledger.leaderboard import build, check
from hpm_robustbench.ledger.model_card import build_card, write_card
from hpm_robustbench.ledger.plan import MSA, Step
from hpm_robustbench.ledger.record import RunRecord, StepResult, Verdict
from hpm_robustbench.ledger.rows import tracks
from hpm_robustbench.ledger.step_list import OtherSteps, other_steps
from hpm_robustbench.ledger.transfers import LENT, TRANSFER, made_for
from hpm_robustbench.threat import Batching


def lent(record: RunRecord) -> RunRecord:
    """The run of HPM after it was shown what broke the base model: nothing falls to that."""
    verdict = tuple(int(Verdict.STANDING if stands else Verdict.SKIPPED) for stands in record.standing())
    nothing = (None,) * record.n
    return replace(record, lent=StepResult(LENT.name, tuple(range(record.n)), verdict, nothing, nothing))


def showing(record: RunRecord, **answers: tuple[None, ...]) -> RunRecord:
    """The run, whose first step told what another model took its images for."""
    first, *others = record.steps
    return replace(record, steps=(replace(first, **answers), *others))


@pytest.fixture
def card(spec, records):
    base, *hpm = records
    unharmed = {"base_predicted": (None,) * base.n}
    solo, joint = (showing(lent(record), **unharmed) for record in hpm)
    joint = showing(joint, solo_predicted=(None,) * joint.n)
    return build_card(spec, [base, solo, joint], n_classes=10)


@pytest.fixture
def as_it_was(card):
    """MSA as the card of the fixture runs met it."""

    def steps(target: str, batching: Batching, fine_tuned: bool) -> tuple[Step, ...]:
        met = card.hpm_bench.evaluation(target, batching).steps
        return tuple(
            Step(step.view, step.attack, step.group, step.parameters) for step in met if step.attack != TRANSFER
        )

    return steps


@pytest.fixture
def with_one_more(as_it_was):
    """And with one step more on every target, and in every batching another one."""

    def steps(target: str, batching: Batching, fine_tuned: bool) -> tuple[Step, ...]:
        return *as_it_was(target, batching, fine_tuned), Step(target, f"new-{batching.value}", MSA)

    return steps


def test_the_same_steps_are_no_other_ones(card, as_it_was):
    hpm = [Batching.SOLO, Batching.JOINT]
    assert [other_steps(evaluation, as_it_was, hpm) for evaluation in card.hpm_bench.evaluations] == [None] * 3


def test_a_base_model_was_shown_what_was_made_for_each_hpm_of_its_card(card, as_it_was):
    base, *_ = card.hpm_bench.evaluations
    solo, joint = (made_for(batching).name for batching in (Batching.SOLO, Batching.JOINT))
    assert other_steps(base, as_it_was, [Batching.SOLO]) == OtherSteps((), (joint,))
    shorter = base.model_copy(update={"steps": [step for step in base.steps if step.name != solo]})
    assert other_steps(shorter, as_it_was, [Batching.SOLO, Batching.JOINT]) == OtherSteps((solo,), ())


def test_hpm_alone_is_shown_what_was_made_for_the_joint_of_its_card(spec, records, card, as_it_was):
    """Where there is one; and a card that has one and never showed it is marked."""
    told = made_for(Batching.JOINT).name
    base, *hpm = records
    [track] = tracks([build_card(spec, [base, *map(lent, hpm)], n_classes=10)], as_it_was)
    row = track.rows[0]
    assert row.other_steps(row.solo) == OtherSteps(without=(told,), besides=())
    assert row.other_steps(row.joint) is None
    assert other_steps(card.hpm_bench.headline, as_it_was) == OtherSteps(without=(), besides=(told,))
    [track] = tracks([build_card(spec, [base, lent(hpm[0])], n_classes=10)], as_it_was)
    assert not track.rows[0].marked


@pytest.mark.parametrize("batching", list(Batching))
@pytest.mark.parametrize("fine_tuned", [False, True])
def test_a_card_made_of_todays_steps_has_them_all(card, batching, fine_tuned):
    """After fine-tuning MSA is another list, not only a longer one."""
    msa = partial(find_protocol, MSA)
    some = card.hpm_bench.headline.steps[0]
    made = tuple(
        some.model_copy(update={"name": step.name, "view": step.view, "attack": step.attack})
        for step in (*msa("hpm", batching, fine_tuned), LENT)
    )
    evaluation = card.hpm_bench.headline.model_copy(update={"batching": batching, "steps": made})
    assert other_steps(evaluation, msa) is None
    shorter = evaluation.model_copy(update={"steps": made[1:]})
    assert other_steps(shorter, msa) == OtherSteps(without=(made[0].name,), besides=())
    longer = evaluation.model_copy(update={"steps": (*made, some.model_copy(update={"name": "fab-t@base2"}))})
    assert other_steps(longer, msa) == OtherSteps(without=(), besides=("fab-t@base2",))


def test_what_is_missing_and_what_was_dropped_are_named(card, as_it_was):
    def newer(target, batching, fine_tuned):
        first, *rest = as_it_was(target, batching, fine_tuned)
        return (replace(first, parameters={"targets": 3}), *rest)

    found = other_steps(card.hpm_bench.headline, newer, [Batching.JOINT])
    assert found == OtherSteps(without=("apgd-ce@hpm.targets-3",), besides=("apgd-ce@hpm",))


def test_hpm_that_was_never_shown_what_broke_its_base_is_marked(make_card, as_it_was):
    assert other_steps(make_card("Lone").hpm_bench.headline, as_it_was).without == (LENT.name,)


def test_each_target_has_a_list_of_its_own(card, with_one_more):
    base, solo, joint = card.hpm_bench.evaluations
    assert other_steps(base, with_one_more, [Batching.SOLO, Batching.JOINT]).without == ("new-solo@base",)
    assert other_steps(solo, with_one_more).without == ("new-solo@hpm",)
    assert other_steps(joint, with_one_more).without == ("new-joint@hpm",)


def test_index_page_and_files_tell_of_other_steps(card, as_it_was, with_one_more, tmp_path, read_html):
    write_card(card, tmp_path / "cards")
    for name, steps, marks in (("old", as_it_was, 0), ("new", with_one_more, 2)):
        index = build(tmp_path / "cards", tmp_path / name, steps)
        check(tmp_path / "cards", index.parent, steps)
        page = read_html(index)
        assert [tag for tag, _ in page.tags].count("abbr") == marks
        assert ("400 BSD-3-Clause † Found by other attack steps than MSA has now" in page.text) == bool(marks)
        assert page.text.count("Found by other attack steps") == bool(marks), "not in a legend that is closed"
        model = read_html(index.parent / "cifar10/Linf/resnet4b_linf2.html").text
        assert model.count("† ") == 3 * marks, "at the number, and below the table"
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
    [track] = tracks([card], partial(find_protocol, MSA))
    assert track.rows[0].flat()["solo_steps_of_today"] is False
    assert track.rows[0].flat()["joint_steps_of_today"] is None
