"""The card of a fine-tuned model: beside its base and its controls, named after it, repeated by its own command."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.card_bench import judged
from hpm_robustbench.ledger.card_control import CONTROLS
from hpm_robustbench.ledger.fine_tuning import FineTuning, Point
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import ModelCard, Tuned, build_card, check_replaceable, write_card
from hpm_robustbench.ledger.pages import in_words
from hpm_robustbench.ledger.repetition import repetition
from hpm_robustbench.ledger.rows import tracks
from hpm_robustbench.ledger.statistics import compare, outcome
from hpm_robustbench.report.cards import render_card
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe

TUNING = Tuning(find_recipe("uniform-v1").with_knobs({"epochs": 3}), Control.STATIC, seed=0)


@pytest.fixture(scope="session")
def wider(spec):
    """The model of the fixture runs under another budget, which its name says."""
    return replace(spec, name="resnet4b_linf2_eps8-255", threat=ThreatModel.parse("Linf", "8/255"))


@pytest.fixture(scope="session")
def runs(wider, make_record):
    """The base model before it was fine-tuned, and HPM after."""
    base = make_record(wider, "base", Batching.SOLO, clean=0.8, strengths=[0.4] * 4)
    hpm = make_record(wider.tuned(TUNING.name), "hpm", Batching.SOLO, clean=0.78, strengths=[0.3] * 7)
    return [base, replace(hpm, plan=replace(hpm.plan, defence={"beta": 0.0, "tuning": TUNING.to_json()}))]


@pytest.fixture(scope="session")
def tuned_card(wider, runs):
    return build_card(wider.tuned(TUNING.name), runs, n_classes=10)


def test_it_stands_beside_the_model_before_and_leads_back_to_the_catalog(tuned_card):
    bench = tuned_card.hpm_bench
    assert bench.model_id == f"resnet4b_linf2_eps8-255_{TUNING.name}"
    assert (bench.untuned_id, bench.base_model) == ("resnet4b_linf2_eps8-255", "resnet4b_linf2")
    assert [evaluation.target for evaluation in bench.evaluations] == ["base", "hpm"]
    assert bench.knobs == {"beta": 0.0}


def test_its_command_asks_for_the_same_fine_tuning_of_the_untuned_model(tuned_card):
    asked = repetition(tuned_card.hpm_bench)
    assert "--recipe uniform-v1 --control static --tune epochs=3" in asked
    assert "--name resnet4b_linf2_eps8-255 " in asked
    assert "tuning" not in asked


def test_the_command_of_a_control_asks_for_hpm_as_it_was_before_the_control(wider, runs):
    """Wrapped with the control's beta, another tau would be fitted, and another model tried."""
    base, hpm = runs
    options = RunOptions(tuning=TUNING, defence=HPMConfig(beta=0.3))
    tried = replace(hpm, plan=replace(hpm.plan, defence=options.defence_facts))
    bench = build_card(wider.tuned(TUNING.name), [base, tried], n_classes=10).hpm_bench
    assert bench.knobs["beta"] == 0.0
    assert "--hpm beta=0.3" in repetition(bench)


def test_its_page_tells_of_the_fine_tuning_and_no_other_page_does(tuned_card, card, tmp_path, read_html):
    for each in (tuned_card, card):
        write_card(each, tmp_path / "cards")
    build(tmp_path / "cards", tmp_path / "board")
    place = tmp_path / "board/cifar10/Linf"
    tuned = read_html(place / f"{tuned_card.hpm_bench.model_id}.html").text
    assert f"Fine-tuning control = static , name = {TUNING.name} , seed = 0" in " ".join(tuned.split())
    assert "HPM configuration beta = 0.0" in " ".join(tuned.split())
    assert "Fine-tuning" not in read_html(place / "resnet4b_linf2.html").text


def test_a_base_of_another_model_is_refused(wider, runs):
    other = replace(runs[0], plan=replace(runs[0].plan, model="Other"))
    with pytest.raises(InvalidInput, match="Other on cifar10"):
        build_card(wider.tuned(TUNING.name), [other, runs[1]], n_classes=10)


def test_a_name_that_only_looks_fine_tuned_is_nobodys_alias(wider, runs):
    posing = replace(wider, name=f"{wider.name}_{TUNING.name}")
    with pytest.raises(InvalidInput, match="finished runs of"):
        build_card(posing, runs, n_classes=10)


# Beside its controls

PLAIN = Tuning(find_recipe("uniform-v1"))
ALL = {"fc": 0.3, "static": 0.25, "shuffled": 0.35, "leave-one-out": 0.22}


def page_of(cards, tmp_path, read_html, name):
    for each in cards:
        write_card(each, tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    return read_html(index.parent / f"cifar10/Linf/{name}.html")


def test_the_controls_are_those_that_can_be_trained():
    assert list(CONTROLS) == [control.value for control in Control]


@pytest.mark.parametrize(
    ("fc", "verdict"),
    [({"fc": 0.38}, "helps"), ({"fc": 0.212}, "undecided"), ({"fc": 0.05}, "hurts"), ({}, "undecided")],
)
def test_it_helps_only_beside_the_base_and_beside_c1(spec, make_tuned_card, fc, verdict):
    bench = make_tuned_card(spec, PLAIN, base=0.4, hpm=0.2, controls=fc).hpm_bench
    assert bench.verdict(Batching.SOLO).verdict == verdict
    assert outcome(bench.verdicts[0].test) == "helps"
    for claim in bench.verdicts:
        control = bench.fc(claim.batching)
        assert (control is None) == (not fc)
        if control:
            hpm = bench.evaluation("hpm", claim.batching)
            assert control.only_hpm - control.only_control == hpm.robust.count - control.robust.count
            assert control.autoattack == control.robust


def test_c1_takes_no_help_back_from_a_base_that_is_better(spec, make_tuned_card):
    bench = make_tuned_card(spec, PLAIN, base=0.05, hpm=0.2, controls={"fc": 0.4}).hpm_bench
    assert {claim.verdict for claim in bench.verdicts} == {"hurts"}


@given(*[st.tuples(st.integers(0, 60), st.integers(0, 60))] * 2)
def test_the_rule_is_that_of_both_comparisons(base, fc):
    pairs = [compare(*base), compare(*fc)]
    both = {outcome(test) for test in pairs}
    found = judged(*pairs, tuned=True)
    assert (found == "helps") == (both == {"helps"})
    assert (found == "hurts") == ("hurts" in both)
    assert judged(pairs[0], None, tuned=True) != "helps"
    assert judged(pairs[0], None, tuned=False) == outcome(pairs[0])


def test_its_page_shows_base_every_control_and_hpm(spec, make_tuned_card, tmp_path, read_html):
    card = make_tuned_card(spec, PLAIN, controls=ALL)
    fc = make_tuned_card(spec, replace(PLAIN, control=Control.FC), controls={})
    name = card.hpm_bench.model_id
    page = page_of([card, fc], tmp_path, read_html, name)
    shown = page.text[
        page.text.index("HPM SOLO beside its controls") : page.text.index("HPM JOINT beside its controls")
    ]
    places = [shown.index(title) for title in ("Base model, before fine-tuning", *CONTROLS.values())]
    assert places == sorted(places)
    for control in card.hpm_bench.beside(Batching.SOLO):
        assert f"{control.robust.text}% {control.robust.low:.1f}–{control.robust.high:.1f}" in shown
        assert f"{control.only_hpm} {control.only_control} p" in shown
    leads = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert f"{name}_fc.html" in leads
    assert f"{name}_static.html" not in leads, "its card is not here"
    assert "After the same fine-tuning" in page.text
    assert "no gain can be credited" not in page.text
    assert card.hpm_bench.fc(Batching.SOLO).autoattack.text in read_html(tmp_path / "board/index.html").text


def test_without_c1_page_and_terminal_say_that_nothing_is_credited(spec, make_tuned_card, tmp_path, read_html):
    card = make_tuned_card(spec, PLAIN, controls={"static": 0.3})
    page = page_of([card], tmp_path, read_html, card.hpm_bench.model_id)
    assert "HPM SOLO: undecided, better than the base model (p < 0.001), but C1 is not on this card; no" in page.text
    assert page.text.count("no gain can be credited to HPM") == 4
    assert "C1 not tried" in read_html(tmp_path / "board/index.html").text
    assert "no gain can be credited to HPM" in render_card(card)
    assert "no gain" not in render_card(make_tuned_card(spec, PLAIN, controls=ALL))


def test_a_control_speaks_neither_for_nor_against_hpm_and_leads_back(spec, make_tuned_card, tmp_path, read_html):
    card = make_tuned_card(spec, PLAIN, controls=ALL)
    alone = make_tuned_card(spec, replace(PLAIN, control=Control.STATIC), controls={})
    assert alone.hpm_bench.verdicts == []
    page = page_of([card, alone], tmp_path, read_html, alone.hpm_bench.model_id)
    assert "says nothing for or against HPM" in page.text
    assert f"{card.hpm_bench.model_id}.html" in {a.get("href") for tag, a in page.tags if tag == "a"}
    rows = {row.bench.model_id: row for track in tracks([card, alone]) for row in track.rows}
    assert rows[alone.hpm_bench.model_id].p_holm is None
    assert rows[card.hpm_bench.model_id].p_holm == rows[card.hpm_bench.model_id].p_value


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda bench: bench["verdicts"][0].update(verdict="helps"), "does not follow from the counts"),
        (lambda bench: bench["controls"].pop(0), "does not follow from the counts"),
        (lambda bench: bench["controls"][0].update(only_hpm=50), "p_value"),
        (lambda bench: bench["controls"].append(bench["controls"][0]), "or twice"),
        (lambda bench: bench["controls"][0].update(control="other"), "controls.0.control"),
        (lambda bench: bench["controls"][2].update(robust=bench["controls"][4]["robust"]), "does not fit HPM"),
        (lambda bench: bench["defence"].pop("tuning"), "stands beside no HPM that was fine-tuned"),
        (lambda bench: bench["defence"]["tuning"].update(control="<b>"), "an unknown control"),
        (lambda bench: bench["defence"]["tuning"].pop("name"), "without a name"),
        (lambda bench: bench["fine_tuning"].update(curves=[]), "fine_tuning.curves"),
        (lambda bench: bench["fine_tuning"]["curves"][0].update(clean=1.5), "fine_tuning.curves.0.clean"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(spec, make_tuned_card, change, problem):
    data = make_tuned_card(spec, PLAIN, controls={"fc": 0.05, "static": 0.1, "shuffled": 0.35}).to_json()
    assert ModelCard.model_validate_json(json.dumps(data)).hpm_bench.controls
    change(data["hpm_bench"])
    with pytest.raises(ValueError, match=problem):
        ModelCard.model_validate_json(json.dumps(data))


def test_controls_under_another_budget_are_refused(spec, wider, make_record):
    own = make_record(spec.tuned("a"), "hpm", Batching.SOLO, clean=0.8, strengths=[0.3] * 7)
    other = make_record(wider, "base", Batching.SOLO, clean=0.8, strengths=[0.3] * 4)
    tuned = Tuned(FineTuning(curves=[Point(epoch=0)], reports=[]), {"fc": [other]})
    with pytest.raises(InvalidInput, match="the control fc on the images and budget of"):
        build_card(spec.tuned("a"), [own], n_classes=10, tuned=tuned)


def test_a_card_with_controls_is_not_replaced_by_one_without(spec, make_tuned_card, tmp_path):
    card = make_tuned_card(spec, PLAIN, controls=ALL)
    path, bench = write_card(card, tmp_path), card.hpm_bench
    trials = {evaluation.trial for evaluation in bench.evaluations}
    check_replaceable(path, trials, bench.defence, bench.weights.sha256, controls=True)
    with pytest.raises(UsageProblem, match=r"tells of controls, too.*--controls"):
        check_replaceable(path, trials, bench.defence, bench.weights.sha256)


# How the fine-tuning went


def test_the_command_of_a_card_with_controls_asks_for_them(spec, make_tuned_card):
    assert "--recipe uniform-v1 --controls" in repetition(make_tuned_card(spec, PLAIN, controls=ALL).hpm_bench)


def test_a_card_that_is_not_read_any_more_may_be_overwritten(tmp_path):
    path = tmp_path / "old.json"
    path.write_text("{}")
    with pytest.raises(UsageProblem, match="--overwrite"):
        check_replaceable(path, [], {}, [])


def test_its_page_holds_the_curves_and_what_was_lost(spec, make_tuned_card, tmp_path, read_html):
    card = make_tuned_card(spec, PLAIN, controls=ALL)
    data = card.to_json()
    data["hpm_bench"]["fine_tuning"]["reports"].append("</ul><script>alert(1)</script>")
    page = page_of([ModelCard.model_validate_json(json.dumps(data))], tmp_path, read_html, card.hpm_bench.model_id)
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    kind, _, content = picture["src"].partition(",")
    assert kind == "data:image/svg+xml"
    tags = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(unquote(content)).iter()]
    assert tags.count("polyline") == 3
    assert "the table below has the values" in picture["alt"]
    values = "0 – 80.00% 40.00% 1 1.25 79.00% 50.00% 2 1 77.00% 55.00%"
    assert f"The values by epoch Epoch Loss Clean Robust {values}" in page.text
    assert "On held-out training images clean accuracy fell from 80.00% to 77.00%" in page.text
    assert "through HPM's straight-through gradient, which misleads" in page.text
    assert "Made from 900 train images, measured on 100 others" in page.text
    assert f"{'7e' * 32} ), in float32 on cpu, python 3.11, torch 2.13.0." in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "fine-tuning: On held-out training images clean accuracy fell" in render_card(card)


def test_a_page_does_not_hide_that_nobody_wrote_down_how_it_was_made(spec, make_tuned_card, tmp_path, read_html):
    data = make_tuned_card(spec, PLAIN, controls=ALL).to_json()
    del data["hpm_bench"]["fine_tuning"]["made"]
    card = ModelCard.model_validate_json(json.dumps(data))
    page = page_of([card], tmp_path, read_html, card.hpm_bench.model_id)
    assert "From which images it was made, and on what kind of machine, was not yet written down" in page.text
    assert "Made from" not in page.text


@pytest.mark.parametrize(("bound", "control", "told"), [(0.02, None, True), (0.06, None, False), (0.02, "fc", False)])
def test_lost_clean_accuracy_is_that_of_the_test_images_beside_the_base_model(wider, make_record, bound, control, told):
    tuning = Tuning(find_recipe("uniform-v1").with_knobs({"clean_bound": bound}), control and Control(control))
    base = make_record(wider, "base", Batching.SOLO, clean=0.8, strengths=[0.4] * 4)
    hpm = make_record(wider.tuned(tuning.name), "hpm", Batching.SOLO, clean=0.75, strengths=[0.3] * 7)
    hpm = replace(hpm, plan=replace(hpm.plan, defence={"tuning": tuning.to_json()}))
    joint = replace(hpm, plan=replace(hpm.plan, batching=Batching.JOINT))
    tuned = Tuned(FineTuning(curves=[Point(epoch=0)], reports=["said of the training"]))
    *lost, own = tuned.fields([base, hpm, joint])["fine_tuning"].reports
    before, after = (f"{sum(run.clean_correct) / run.n:.2%}" for run in (base, hpm))
    assert own == "said of the training"
    assert [report.partition(", by more")[0] for report in lost] == [
        f"On the test images clean accuracy fell from {before} of the base model to {after} of HPM {batching}"
        for batching in (("SOLO", "JOINT") if told else ())
    ]


def test_a_gain_beside_neither_is_told_of_neither(spec, make_tuned_card):
    bench = make_tuned_card(spec, PLAIN, base=0.22, hpm=0.2, controls={"fc": 0.22}).hpm_bench
    assert in_words(bench.verdicts[0], bench) == "undecided, as far as 400 images can tell"
