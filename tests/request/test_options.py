"""What a person asks of a run, in words."""

from __future__ import annotations

import pytest

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.request.options import run_options
from hpm_robustbench.threat import Composition
from hpm_robustbench.training.recipe import Control


def test_a_recipe_is_read_with_its_knobs_and_never_guessed() -> None:
    asked = {"batching": (), "knobs": ()}
    assert run_options(**asked).tuning is None
    options = run_options(**asked, recipe="uniform-v1", control="fc", tune=["epochs=2", "learned=fc,tau"], seed=3)
    assert options.tuning is not None
    assert (options.tuning.control, options.tuning.seed, options.tuning.recipe.epochs) == (Control.FC, 3, 2)
    assert options.defence_facts["tuning"]["options"][:2] == ["--recipe", "uniform-v1"]
    for alone in ({"control": "fc"}, {"tune": ["epochs=2"]}):
        with pytest.raises(UsageProblem, match="add --recipe uniform-v1"):
            run_options(**asked, **alone)


def test_batches_are_composed_where_there_are_any() -> None:
    asked = {"batching": ("solo", "joint"), "knobs": ()}
    assert run_options(**asked).composition is Composition.IID
    assert run_options(**asked, batches="single-class").composition is Composition.SINGLE_CLASS
    with pytest.raises(UsageProblem, match="--batching joint beside --batches sorted"):
        run_options(batching=("solo", "reference"), knobs=(), batches="sorted")
