"""A fine-tuned classifier on the same road to trial as any other, beside the model it was made from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpm_robustbench.pipeline import Case, RunOptions, fine_tune, prepare, screen
from hpm_robustbench.threat import Batching
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
    assert names(alone) == [f"{SPEC.name}_{TUNING.name}_fc"] * 3
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
