"""A fine-tuned classifier on the same road to trial as any other, beside the model it was made from."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hpm_robustbench.case import Case, fine_tune, prepare
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.ledger.model_card import place, read_card
from hpm_robustbench.pipeline import evaluate, screen
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training import features
from hpm_robustbench.training.learner import features_as_images
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe
from hpm_robustbench.zoo.builtin import builtin_specs

SPEC = next(spec for spec in builtin_specs() if spec.dataset == "digits")
TUNING = Tuning(find_recipe("head").with_knobs({"epochs": 1}))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    return RunOptions(n_ex=6, batch_size=6, joint_size=6, tuning=TUNING, output=tmp_path_factory.mktemp("trial"))


def keys(case: Case) -> dict[tuple[str, Batching], str]:
    return {(plan.target, plan.batching): plan.run_key for plan, _ in case.trials}


def names(case: Case) -> list[str]:
    return [plan.model for plan, _ in case.trials]


def test_the_base_model_is_not_tried_twice_and_hpm_is_tried_anew(options: RunOptions) -> None:
    plain, tuned = prepare(SPEC, replace(options, tuning=None)), prepare(SPEC, options)
    assert names(plain) == [SPEC.name] * 3
    assert names(tuned) == [SPEC.name, *[f"{SPEC.name}_{TUNING.name}"] * 2]
    same = {trial for trial, key in keys(plain).items() if keys(tuned)[trial] == key}
    assert same == {("base", Batching.SOLO)}
    assert tuned.spec.base_name == plain.spec.base_name
    assert any(step.view == "fc" for step in tuned.trials[1][0].steps)
    assert not any(step.view == "fc" for step in plain.trials[1][0].steps)


def test_the_fc_head_that_was_trained_alone_is_a_base_of_its_own(options: RunOptions) -> None:
    alone = prepare(SPEC, replace(options, tuning=replace(TUNING, control=Control.FC)))
    assert names(alone) == [f"{SPEC.name}_{TUNING.name}_fc"] * 2
    assert keys(alone)["base", Batching.SOLO] != keys(prepare(SPEC, options))["base", Batching.SOLO]


def test_what_was_fine_tuned_before_is_read_and_not_made_again(options: RunOptions) -> None:
    (made,) = fine_tune(SPEC, options, [TUNING])
    before = {path: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    prepare(SPEC, options)
    assert {path: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert [folder for folder in made.folder.parent.iterdir() if folder.name.startswith(f"{SPEC.name}_{TUNING.name}-")]


def test_the_short_looks_look_at_the_fine_tuned_one(options: RunOptions) -> None:
    with_hpm = [record.plan for record in screen(SPEC, options).records if record.plan.target == "hpm"]
    assert {plan.model for plan in with_hpm} == {f"{SPEC.name}_{TUNING.name}"}
    coupled = prepare(SPEC, replace(options, screen="coupling"))
    assert set(names(coupled)) == {f"{SPEC.name}_{TUNING.name}"}


def test_all_controls_go_to_trial_with_it_and_the_base_model_once(options: RunOptions) -> None:
    case = prepare(SPEC, replace(options, controls=True))
    assert list(case.controls) == list(Control)
    for control, load in case.controls.items():
        alone = prepare(SPEC, replace(options, tuning=replace(TUNING, control=control)))
        assert keys(load()) == keys(alone)
    tried = [plan.run_key for plan, _ in case.all_trials()]
    # HPM and four controls, all alone and all but C1 in batches; the base model; C1, which is a base of its own
    assert len(set(tried)) == len(tried) == 5 + 4 + 2


def test_controls_are_loaded_when_their_turn_comes_and_then_forgotten(options: RunOptions) -> None:
    case, loaded, alive = prepare(SPEC, replace(options, controls=True)), [], []

    def watched(load: Callable[[], Case]) -> Case:
        gc.collect()
        alive.append(sum(classifier() is not None for classifier in loaded))
        beside = load()
        loaded.append(weakref.ref(beside.wrapped.classifier))
        return beside

    controls = {control: partial(watched, load) for control, load in case.controls.items()}
    for _ in replace(case, controls=controls).all_trials():
        pass
    gc.collect()
    assert len(loaded) == len(Control)
    assert max(alive) <= 1, "only the one before may still be on trial"
    assert not any(classifier() for classifier in loaded)


def test_a_head_and_its_controls_learn_from_features_that_are_computed_once(
    options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counted(*arguments: Any) -> torch.Tensor:
        computed.append(arguments)
        return features_as_images(*arguments)

    monkeypatch.setattr(features, "features_as_images", counted)
    made = fine_tune(SPEC, replace(options, output=tmp_path), TUNING.with_controls())
    assert len({kept.folder for kept in made}) == 5
    assert len(computed) == 1


@pytest.mark.parametrize("control", [None, Control.LEAVE_ONE_OUT])
def test_a_card_in_the_way_is_told_before_the_first_training(
    options: RunOptions, tmp_path: Path, control: Control | None
) -> None:
    name = SPEC.tuned(replace(TUNING, control=control).name).name
    path = place(tmp_path / "model_cards", SPEC.dataset, SPEC.threat.name, name)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UsageProblem, match=f"{name}.*--overwrite"):
        prepare(SPEC, replace(options, controls=True, output=tmp_path))
    assert not (tmp_path / "finetuned").exists()


def test_a_control_that_is_gone_is_met_before_the_first_attack(options: RunOptions) -> None:
    together = replace(options, controls=True)
    prepare(SPEC, together)
    (static,) = (options.output / "finetuned").glob(f"*{TUNING.name}_static-*")
    (static / "classifier.safetensors").unlink()
    with pytest.raises(UsageProblem, match="nothing is trained here"):
        prepare(SPEC, together, train=False)


def test_controls_of_nothing_or_of_a_control_are_refused(options: RunOptions) -> None:
    with pytest.raises(UsageProblem, match="no recipe"):
        replace(options, tuning=None, controls=True)
    with pytest.raises(UsageProblem, match="_static alone"):
        replace(options, tuning=replace(TUNING, control=Control.STATIC), controls=True)


def test_its_card_tells_of_every_control_and_each_control_has_its_own(options: RunOptions) -> None:
    """Under a budget that breaks everything at the first step, so that it takes seconds."""
    easy = replace(SPEC, threat=ThreatModel.parse("Linf", "1/2"))
    outcome = evaluate(easy, replace(options, batchings=(Batching.SOLO,), n_ex=4, controls=True))
    bench = outcome.card.hpm_bench
    assert [control.control for control in bench.controls] == [control.value for control in Control]
    assert len(bench.fine_tuning.curves) == 2
    for control in bench.controls:
        own = read_card(outcome.card_path.with_name(f"{bench.model_id}_{control.control}.json")).hpm_bench
        answered = own.evaluation("base" if control.control == "fc" else "hpm", Batching.SOLO)
        assert (answered.run_key, answered.clean, answered.robust) == (control.run_key, control.clean, control.robust)
        assert own.verdicts == []
    again = evaluate(easy, replace(options, batchings=(Batching.SOLO,), n_ex=4, controls=True))
    assert again.card == outcome.card
    with pytest.raises(UsageProblem, match="tells of controls, too"):
        evaluate(easy, replace(options, batchings=(Batching.SOLO,), n_ex=4))
