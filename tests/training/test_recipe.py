"""Recipes are values: changed ones are named apart, written ones can be asked for again, wrong ones are refused."""

from __future__ import annotations

import inspect
import json

import pytest

from hpm_robustbench.commands.finetune import finetune
from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.request.options import run_options
from hpm_robustbench.training.recipe import RECIPES, Control, Recipe, Tuning, find_control, find_recipe


def test_the_default_recipe_of_the_command_is_known() -> None:
    default = next(option.default for option in finetune.params if option.name == "recipe")
    assert find_recipe(str(default)).name == "uniform-v1"


def test_every_knob_is_documented() -> None:
    text = inspect.getdoc(Recipe) or ""
    assert [knob for knob in Recipe.model_fields if f"{knob}: " not in text] == []


def test_changed_values_change_the_name_and_equal_ones_do_not() -> None:
    recipe = find_recipe("uniform-v1")
    assert recipe.with_knobs({"epochs": "5"}) == recipe
    names = {recipe.with_knobs({"epochs": str(n)}).name for n in (5, 6, 7)}
    assert len(names) == 3
    twice = recipe.with_knobs({"epochs": "6"}).with_knobs({"shift": "0"})
    assert twice == recipe.with_knobs({"shift": "0", "epochs": "6"})
    assert twice.with_knobs({"shift": "0.125", "epochs": "5"}) == recipe
    assert all(name.startswith("uniform-v1") for name in names)


def test_a_recipe_of_ones_own_stands_for_itself() -> None:
    own = Recipe(name="mine", epochs=1)
    assert Tuning(own, Control.STATIC).to_json()["options"] == ["--recipe", "mine", "--control", "static"]
    changed = own.with_knobs({"epochs": 2})
    assert changed.name.startswith("mine-") and changed.epochs == 2
    assert changed.with_knobs({"shift": 0}).name != changed.name


def test_features_are_computed_once_only_of_images_that_stay_as_they_are() -> None:
    head = find_recipe("head")
    assert head.from_features
    for knob, value in {"shift": 0.1, "mirror": "always", "attack_steps": 1, "learned": "backbone"}.items():
        assert not head.with_knobs({knob: value}).from_features


def test_the_options_of_a_tuning_ask_for_the_same_tuning() -> None:
    knobs = {"epochs": "2", "loss": "trades", "learned": "fc,tau", "learning_rate": "0.05", "attack_view": "soft"}
    for recipe in (*RECIPES.values(), find_recipe("head").with_knobs(knobs)):
        for control in (None, *Control):
            tuning = Tuning(recipe, control, 3)
            words = tuning.options
            pairs = list(zip(words[::2], words[1::2], strict=True))
            asked = {flag: value for flag, value in pairs if flag != "--tune"}
            again = run_options(
                batching=(),
                knobs=(),
                recipe=asked["--recipe"],
                control=asked.get("--control"),
                tune=[value for flag, value in pairs if flag == "--tune"],
                seed=3,
            )
            assert again.tuning == tuning
            assert json.loads(json.dumps(tuning.to_json())) == tuning.to_json()


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("epochs", "-1"),
        ("loss", "mse"),
        ("learning_rate", "nan"),
        ("learned", "head"),
        ("batch_size", "many"),
        ("batch_size", str(10**20)),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(knob: str, value: str) -> None:
    with pytest.raises(UsageProblem, match=f"{knob}.*--tune {knob}="):
        find_recipe("uniform-v1").with_knobs({knob: value})


def test_the_value_that_is_suggested_is_one_that_is_taken() -> None:
    recipe = find_recipe("uniform-v1")
    with pytest.raises(UsageProblem, match=r"--tune learned=backbone,fc,tau, for example") as refused:
        recipe.with_knobs({"learned": "backbone,foo"})
    knob, _, value = refused.value.next_step.removeprefix("write --tune ").removesuffix(", for example").partition("=")
    assert recipe.with_knobs({knob: value}) == recipe


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="epochs"):
        find_recipe("uniform-v1").with_knobs({"epoch": "1"})
    with pytest.raises(UnknownName, match="uniform-v1"):
        find_recipe("uniform")
    with pytest.raises(UnknownName, match="static"):
        find_control("statik")
    with pytest.raises(UsageProblem, match="--recipe"):
        run_options(batching=(), knobs=(), control="fc")


def test_controls_change_what_the_method_says() -> None:
    recipe = find_recipe("head")
    config = HPMConfig()
    assert Tuning(recipe, Control.STATIC).defence(config) == HPMConfig(beta=0.0)
    assert Tuning(recipe, Control.LEAVE_ONE_OUT).defence(config) == HPMConfig(include_self=False)
    assert {Tuning(recipe, c).defence(config) for c in (None, Control.FC, Control.SHUFFLED)} == {config}
    assert Tuning(recipe, Control.FC).learned == ("fc",)
    assert Tuning(recipe, Control.STATIC).learned == ("fc", "tau")
    assert not Tuning(recipe, Control.FC).moves_fc
    assert Tuning(recipe).moves_fc
    assert not Tuning(find_recipe("prototypes")).moves_fc
