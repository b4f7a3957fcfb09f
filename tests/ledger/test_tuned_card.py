"""The card of a fine-tuned model: beside its own base, named after it, and repeated by its own command."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import build_card, write_card
from hpm_robustbench.ledger.pages import command
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
    asked = command(tuned_card.hpm_bench)
    assert "--recipe uniform-v1 --control static --tune epochs=3" in asked
    assert "--name resnet4b_linf2_eps8-255 " in asked
    assert "tuning" not in asked


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
