"""Which flags follow from what was measured, and that a card cannot show the one without the other."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.card_block import DOUBT
from hpm_robustbench.ledger.diagnostics import AtBudget, AtSteps, Diagnostics
from hpm_robustbench.ledger.indicators import indicators, of_transfers, overstates
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.model_card import ModelCard, build_card, read_card, write_card
from hpm_robustbench.ledger.pages import render_model
from hpm_robustbench.ledger.rows import tracks
from hpm_robustbench.ledger.statistics import exceeds
from hpm_robustbench.report.cards import render_card
from hpm_robustbench.threat import Batching


def curve(point, key, *pairs):
    return [point(**{key: at, "standing": standing}) for at, standing in pairs]


RISING = curve(AtBudget, "multiple", (0.5, 50), (1.0, 40), (2.0, 45), (127.5, 0))
HOLDING = curve(AtBudget, "multiple", (1.0, 40), (2.0, 20), (127.5, 1))
ONE_MORE = curve(AtBudget, "multiple", (1.0, 40), (2.0, 41), (127.5, 0))
UNFINISHED = curve(AtSteps, "steps", (50, 50), (100, 45), (200, 43))
PERHAPS = curve(AtSteps, "steps", (50, 50), (100, 44), (200, 43))
FAULTS = [
    ({"dead_margin": 2}, f"{DOUBT}: the margin has no gradient at 2 of 64 images: gradient attacks see nothing there"),
    (
        {"dead_cross_entropy": 2},
        "cross-entropy has no gradient at 2 of 64 images: attacks that ascend it see nothing there",
    ),
    (
        {"misled": 2},
        f"{DOUBT}: the gradient of the margin misleads at 2 of 64 images: a small step along it gains less than half "
        "of what it promises",
    ),
    ({"repeated": 1}, f"{DOUBT}: 1 of 64 images got another answer when they were asked again"),
    ({"reordered": 1}, f"{DOUBT}: 1 of 64 images got another label in another order of the same batch"),
    ({"regrouped": 1}, f"{DOUBT}: 1 of 64 images got another label in batches of other sizes"),
    ({"probabilities": 64}, f"{DOUBT}: the outputs look like probabilities, whose gradients vanish"),
    ({"saturated": 7}, "cross-entropy rounds to 0 at 7 of 64 images: attacks that ascend it start blind there"),
    ({"budgets": RISING}, "the gradient attack fails: more images stand under 2 times the budget than under less"),
    ({"budgets": HOLDING}, "the gradient attack fails: 1 of 64 images stand although the whole box is allowed"),
    (
        {"iterations": UNFINISHED},
        "the gradient attack has not converged: 45 of 64 images stand after 100 steps, 43 after 200",
    ),
    (
        {"iterations": PERHAPS},
        "the gradient attack may not have converged: 44 of 64 images stand after 100 steps, 43 after 200, no more than "
        "chance explains",
    ),
    ({"noise_alone": 1}, "random noise broke 1 of 64 images that the gradient attack had left standing"),
]


def flags(found: Diagnostics, *, coupled: bool = False, autoattack: bool = True) -> list[str]:
    return [i.flag for i in indicators(found, coupled=coupled, autoattack=autoattack) if i.flag]


def test_nothing_fires_where_attacks_work(sound):
    assert flags(sound) == []


@pytest.mark.parametrize(("fault", "flag"), FAULTS, ids=[str(list(fault)) for fault, _ in FAULTS])
def test_each_fault_fires_its_own_indicator_and_no_other(sound, fault, flag):
    found = sound.model_copy(update=fault)
    assert flags(found) == [flag]
    assert flags(found, autoattack=False) == [flag.removeprefix(f"{DOUBT}: ")]


@pytest.mark.parametrize(
    "chance",
    [
        {"dead_margin": 1},
        {"misled": 1},
        {"dead_cross_entropy": 1},
        {"probabilities": 63},
        {"saturated": 6},
        {"budgets": ONE_MORE},
    ],
    ids=lambda chance: next(iter(chance)),
)
def test_what_luck_explains_fires_nothing(sound, chance):
    assert flags(sound.model_copy(update=chance)) == []


@pytest.mark.parametrize(("changed", "fires"), [(0, False), (4, False), (5, True)])
def test_of_many_images_a_doubling_may_change_less_than_half_a_point(sound, changed, fires):
    iterations = curve(AtSteps, "steps", (100, 400), (200, 400 - changed))
    assert bool(flags(sound.model_copy(update={"n": 1000, "iterations": iterations}))) == fires


def test_a_batch_coupled_target_may_answer_other_batches_otherwise_but_not_the_same_ones(sound):
    assert flags(sound.model_copy(update={"regrouped": 30}), coupled=True) == []
    assert len(flags(sound.model_copy(update={"reordered": 1}), coupled=True)) == 1


def test_slopes_that_nobody_measured_are_no_indicator(sound):
    old = sound.model_copy(update={"misled": None})
    told = [{i.name for i in indicators(found, coupled=False, autoattack=True)} for found in (sound, old)]
    assert told[0] - told[1] == {"Slope of the margin"}


@pytest.mark.parametrize(
    ("count", "n", "too_many"),
    [
        (0, 64, False),
        (1, 64, False),
        (2, 64, True),
        (1, 10, True),
        (1, 11, False),
        (3, 128, True),
        (2, 128, False),
        (60, 10_000, False),
        (70, 10_000, True),
    ],
)
def test_half_a_point_of_few_images_is_a_matter_of_chance(count, n, too_many):
    assert exceeds(count, n, 0.005) is too_many


@pytest.mark.parametrize(
    "impossible",
    [
        {"dead_margin": 65},
        {"misled": 65},
        {"noise": 1, "noise_alone": 2},
        {"budgets": curve(AtBudget, "multiple", (1.0, 5), (0.5, 4))},
        {"iterations": curve(AtSteps, "steps", (100, 5), (100, 4))},
        {"iterations": curve(AtSteps, "steps", (100, 65), (200, 4))},
        {"budgets": curve(AtBudget, "multiple", (1.0, 5))},
        {"logit_gap": float("nan")},
    ],
    ids=lambda impossible: next(iter(impossible)),
)
def test_impossible_counts_are_refused(sound, impossible):
    with pytest.raises(ValidationError):
        Diagnostics(**{**dict(sound), **impossible})


# On the card and the pages


@pytest.fixture
def doubted(spec, records, sound) -> ModelCard:
    """The fixture's card, had the gradients of HPM SOLO been blind."""
    base, solo, joint = records
    blind = replace(solo, diagnostics=sound.model_copy(update={"dead_margin": 5}))
    return build_card(spec, [base, blind, joint], n_classes=10)


def test_what_fires_is_a_flag_of_the_card_and_makes_autoattack_unreliable(spec, make_record, sound):
    record = make_record(spec, "hpm", Batching.SOLO, clean=0.8, strengths=[*[0.3] * 3, *[0.2] * 4])
    blind = sound.model_copy(update={"dead_margin": 5})
    for found, doubts in ((sound, 0), (blind, 1)):
        card = build_card(spec, [replace(record, diagnostics=found)], n_classes=10)
        raised = [flag for flag in card.hpm_bench.headline.flags if "the margin has no gradient at 5 of 64" in flag]
        assert (len(raised), card.unreliable) == (doubts, bool(doubts))


def test_a_card_cannot_hide_a_flag_that_its_measurements_raise(doubted, tmp_path):
    path = write_card(doubted, tmp_path)
    data = json.loads(path.read_text())
    solo = data["hpm_bench"]["evaluations"][1]
    solo["flags"] = [flag for flag in solo["flags"] if "no gradient" not in flag]
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match="diagnostics raise a flag that is not among the flags"):
        read_card(path)


def test_a_card_without_measurements_has_no_key_for_them(make_card):
    solo = make_card("Plain").hpm_bench.headline
    assert solo.indicators == []
    assert "diagnostics" not in make_card("Plain").to_text()


def test_attacks_without_gradients_are_an_indicator_too(spec, make_record, sound):
    record = make_record(spec, "hpm", Batching.SOLO, clean=0.8, strengths=[0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2])
    solo = build_card(spec, [replace(record, diagnostics=sound)], n_classes=10).hpm_bench.headline
    *_, black_box = solo.indicators
    assert black_box.flag == f"square@hpm won {solo.steps[3].broken} images"
    assert solo.steps[3].broken > 1


def test_fooled_surrogates_are_a_doubt_only_where_nothing_attacks_the_target_itself():
    steps = [(30, 10), (5, 5)]
    told = of_transfers(steps, direct=True)
    assert (told.measured, told.flag) == ("35 times a surrogate was fooled, 15 times the target fell", None)
    flag = of_transfers(steps, direct=False).flag
    assert flag == "20 images fooled a surrogate and not the target, which no step attacks itself"
    assert of_transfers([(5, 5)], direct=False).flag is None


def test_what_other_attacks_break_casts_doubt_on_autoattack_and_is_said_once(spec, make_record, by_square):
    record = make_record(spec, "hpm", Batching.SOLO, clean=0.8, strengths=[*[0.1] * 3, 0.05, 0.05, 0.2, 0.2])
    card = build_card(spec, [by_square(record, "apgd-t@base")], n_classes=10)
    step = card.hpm_bench.headline.steps[5]
    assert step.flags == [f"Square broke {step.broken} images that the gradient attacks had left standing"]
    later = sum(step.broken for step in card.hpm_bench.headline.steps if step.group != "autoattack")
    doubts = [flag for flag in card.hpm_bench.headline.all_flags if "AutoAttack may be unreliable" in flag]
    assert doubts == [f"AutoAttack may be unreliable: other attacks broke {later} images that it had left standing"]
    assert card.unreliable


def test_to_look_for_gradients_makes_no_gradient_attack(spec, make_record, by_square):
    """Where none leads anywhere Square asks labels; the look at each image is one of some gradients, alone and not."""
    record = make_record(spec, "hpm", Batching.SOLO, clean=0.8, strengths=[*[0.1] * 4, 0.3, 0.3, 0.3])
    for gradients in (0, 3 * record.n):
        steps = [replace(s, backward=gradients) if s.name == "apgd-t@fc" else s for s in record.steps]
        card = build_card(spec, [by_square(replace(record, steps=tuple(steps)), "apgd-t@fc")], n_classes=10)
        [step] = [step for step in card.hpm_bench.headline.steps if step.name == "square@fc"]
        assert step.flags == [f"Square broke {step.broken} images that the gradient attacks had left standing"]


def test_autoattack_may_be_off_by_its_own_margin():
    assert not overstates(2, 1000)
    assert overstates(3, 1000)


def test_the_page_and_the_terminal_show_the_table(doubted):
    [track] = tracks([doubted])
    page = render_model(track.rows[0], track)
    assert page.count("Indicators of attack failure, HPM SOLO</h2>") == 1
    assert "Indicators of attack failure, HPM JOINT" not in page
    assert "zero or not finite at 5 of 64 images" in page
    assert '<span class="warn">yes</span>' in page.split("Gradient of the margin")[2].split("</tr>")[0]
    [line] = [line for line in render_card(doubted).splitlines() if line.startswith("hpm solo  Gradient of the margin")]
    assert line.split()[-1] == "yes"


# In the run's folder


def test_measurements_are_written_whole_and_read_back(spec, make_record, sound, tmp_path, caplog):
    journal = Journal(tmp_path, make_record(spec, "hpm", Batching.SOLO, clean=0.8, strengths=[0.3] * 7).plan).open({})
    assert journal.read_diagnostics() is None
    journal.write_diagnostics(sound)
    assert journal.read_diagnostics() == sound
    path = journal.folder / "diagnostics.json"
    path.write_bytes(path.read_bytes().replace(b'"dead_margin":0', b'"dead_margin":3'))
    assert journal.read_diagnostics() is None
    assert "not whole" in caplog.text
