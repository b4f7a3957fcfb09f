"""From a request in words to the model and the threat model that are meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.request.models import eps_text, find_spec, own_spec, spec_to_run
from hpm_robustbench.threat import parse_threat
from hpm_robustbench.zoo.builtin import DIGITS_MODEL


def test_a_model_is_found_on_a_corruption_track() -> None:
    spec = find_spec("Hendrycks2020AugMix_WRN", "cifar100", "corruptions")
    assert (spec.dataset, spec.threat.name) == ("cifar100", "corruptions")
    with pytest.raises(UsageProblem, match="got a model of cifar10 corruptions, cifar100 corruptions"):
        find_spec("Hendrycks2020AugMix_WRN", "cifar10", "Linf")


def test_one_name_on_two_tracks_is_two_models() -> None:
    assert find_spec("Standard").threat.name == "Linf"
    assert find_spec("Standard", threat_model="corruptions").factory == "robustbench:cifar10/corruptions/Standard"


def test_a_model_runs_under_its_own_budget_in_any_spelling() -> None:
    spec = find_spec("Carmon2019Unlabeled")
    assert spec_to_run("Carmon2019Unlabeled", None, None, None) == spec
    assert spec_to_run("Carmon2019Unlabeled", None, "linf", "16/510") == spec


@pytest.mark.parametrize(
    ("model", "threat_model", "eps", "name", "threat"),
    [
        ("Carmon2019Unlabeled", None, "4/255", "Carmon2019Unlabeled_eps4-255", "Linf 4/255"),
        ("Carmon2019Unlabeled", "L2", "0.5", "Carmon2019Unlabeled_eps0.5", "L2 0.5"),
        ("Carmon2019Unlabeled", "corruptions", None, "Carmon2019Unlabeled", "corruptions"),
        ("Hendrycks2020AugMix_WRN", "Linf", "8/255", "Hendrycks2020AugMix_WRN_eps8-255", "Linf 8/255"),
    ],
)
def test_a_model_may_be_tried_under_a_threat_model_it_was_not_made_for(
    model: str, threat_model: str | None, eps: str | None, name: str, threat: str
) -> None:
    home, asked = find_spec(model), spec_to_run(model, None, threat_model, eps)
    assert (asked.name, str(asked.threat)) == (name, threat)
    assert (asked.factory, asked.weights, asked.paper.clean_acc) == (home.factory, home.weights, home.paper.clean_acc)
    assert (asked.paper.autoattack_acc, asked.paper.corruptions_acc, asked.paper.reported) == (None, None, None)


def test_a_fine_tuned_model_is_still_found_in_the_catalog() -> None:
    asked = spec_to_run("Carmon2019Unlabeled", None, None, "4/255")
    tuned = asked.tuned("uniform-v1")
    assert tuned.name == "Carmon2019Unlabeled_eps4-255_uniform-v1"
    assert (tuned.untuned_name, tuned.base_name) == (asked.name, "Carmon2019Unlabeled")
    assert (asked.untuned_name, asked.base_name) == (asked.name, "Carmon2019Unlabeled")


def test_what_was_published_of_other_weights_is_not_said_of_these() -> None:
    home, asked = find_spec("Carmon2019Unlabeled"), find_spec("Carmon2019Unlabeled", weights="mine.safetensors")
    assert (home.paper.clean_acc, home.paper.autoattack_acc) == ("89.69", "59.53")
    assert (asked.paper.clean_acc, asked.paper.autoattack_acc, asked.paper.unreliable) == (None, None, None)
    assert (asked.paper.title, asked.paper.license) == (home.paper.title, home.paper.license)
    assert str(asked.weights) == "file:mine.safetensors"


def test_other_weights_are_still_put_together_as_the_models_own() -> None:
    for name in ("Bai2024MixedNUTS", "Diffenderfer2021Winning_Binary"):
        home, asked = find_spec(name), find_spec(name, weights="mine.safetensors")
        kept = ("parts", "leftover", "constants")
        assert all(getattr(asked.weights, field) == getattr(home.weights, field) for field in kept)


@pytest.mark.parametrize("name", ["Carmon2019Unlabeled", "Debenedetti2022Light_XCiT-S12"])  # Drive, and a release
def test_robustbenchs_own_source_is_what_its_models_come_from_by_default(name: str) -> None:
    assert find_spec(name, weights="rb:") == find_spec(name)
    assert spec_to_run(name, None, None, None, "rb:") == find_spec(name)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("Carmon2019Unlabeled", "rb:Wong2020Fast", "rb: alone.*got 'rb:Wong2020Fast'.*write --weights rb:"),
        (DIGITS_MODEL, "rb:", f"a model of RobustBench's.*got {DIGITS_MODEL}, whose weights are package:"),
    ],
)
def test_robustbenchs_own_source_has_nothing_else(model: str, weights: str, message: str) -> None:
    with pytest.raises(UsageProblem, match=message):
        find_spec(model, weights=weights)


def test_a_model_of_ones_own_is_not_in_robustbenchs_source() -> None:
    facts = {"name": "Mine", "head": None, "about": None, "dataset": "scans", "threat_model": None, "eps": "8/255"}
    with pytest.raises(UsageProblem, match=r"weights that are a file.*'rb:'.*file:rb:"):
        own_spec("nets:one", "rb:", **facts)
    assert own_spec("nets:one", "file:rb:", **facts).weights.locators == ("rb:",)


@pytest.mark.parametrize(
    ("threat_model", "eps", "message"),
    [
        ("Linf", None, "a budget for Linf"),
        ("corruptions", "8/255", "no budget, which corruptions do not have"),
        (None, "8/255", "no budget, which corruptions do not have"),
    ],
)
def test_a_threat_model_that_is_not_asked_for_in_full(threat_model: str | None, eps: str | None, message: str) -> None:
    with pytest.raises(UsageProblem, match=message):
        spec_to_run("Hendrycks2020AugMix_WRN", None, threat_model, eps)


@pytest.mark.parametrize(
    ("threat_model", "eps", "threat"),
    [(None, "8/255", "Linf 8/255"), ("L2", "0.5", "L2 0.5"), ("corruptions", None, "corruptions")],
)
def test_a_model_of_ones_own_under_any_threat_model(threat_model: str | None, eps: str | None, threat: str) -> None:
    facts = {"name": "Mine", "head": None, "about": None, "dataset": "scans"}
    spec = own_spec("nets:one", Path("x.pt"), threat_model=threat_model, eps=eps, **facts)
    assert str(spec.threat) == threat


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (np.float64(8 / 255), "8/255"),
        (0.5 / 255, "1/510"),
        (0.3, "0.3"),
        (0.25, "0.25"),
        (0.031, "0.031"),
        (0.0313725, "0.0313725"),
        (128 / 255, "128/255"),
        (3, "3"),
        (2.0, "2"),
        ("8 / 255", "8 / 255"),
        (None, None),
    ],
)
def test_a_number_is_the_budget_that_was_meant(eps: str | float | None, text: str | None) -> None:
    assert eps_text(eps) == text
    if isinstance(eps, float):
        assert float(parse_threat("Linf", text).eps) == eps


def test_every_step_of_an_8_bit_image_is_a_fraction_of_255() -> None:
    for n in range(1, 255):
        given, meant = eps_text(n / 255), f"{n}/255"
        assert parse_threat("Linf", given) == parse_threat("Linf", meant)


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -8 / 255, 0, 0.0, [8]])
def test_what_is_no_budget_is_refused(eps: float) -> None:
    with pytest.raises(UsageProblem, match="eps as a positive number"):
        parse_threat("Linf", eps_text(eps))
