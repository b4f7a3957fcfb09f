"""A fine-tuned model on the Hub: the head alone where the backbone is the base's own, else all of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import hpm_robustbench
from hpm_robustbench.case import Case, prepare
from hpm_robustbench.cli import cli
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hub.trial import published
from hpm_robustbench.pipeline import attack, conclude, examine
from hpm_robustbench.request import under
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.recipe import Tuning, find_recipe
from hpm_robustbench.zoo.builtin import DIGITS_MODEL, builtin_specs

REPO = "me/hpm-tuned"
EASY = ThreatModel.parse("Linf", "1/2")
"""A budget that breaks every image at the first step, so that a whole trial takes seconds."""
QUICK = ["epochs=1", "attack_steps=0", "held_out=0"]
ASKED = ["--model", DIGITS_MODEL, "--threat_model", "Linf", "--eps", "1/2", "--repo", REPO]


@pytest.fixture(scope="module", params=["head", "uniform-v1"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The embedded model, fine-tuned and tried."""
    [spec] = builtin_specs()
    tuning = Tuning(find_recipe(request.param).with_knobs(dict(knob.split("=") for knob in QUICK)))
    output = tmp_path_factory.mktemp(request.param)
    options = RunOptions(n_ex=4, batchings=(Batching.SOLO,), tuning=tuning, output=output)
    case = prepare(under(spec, EASY), options)
    attack(case)
    examine(case)
    conclude(case)
    return case


def arguments(case: Case, recipe: str) -> list[str]:
    tuned = ["--recipe", recipe, *[part for knob in QUICK for part in ("--tune", knob)]]
    return ["push", *ASKED, *tuned, "--output", str(case.output)]


def test_it_comes_back_bit_for_bit_with_no_more_than_it_needs(case, hub, clean_cache):
    recipe = "uniform-v1" if "uniform" in case.spec.name else "head"
    sent = CliRunner().invoke(cli, [*arguments(case, recipe), "--format", "json"], catch_exceptions=False)
    assert json.loads(sent.stdout)["changed"]
    files = hub.head(REPO)
    description, card = json.loads(files["config.json"]), json.loads(files["hpm_card.json"])
    assert description["contains"] == ("head" if recipe == "head" else "model")
    assert description["base"]["model"] == DIGITS_MODEL
    assert description["tuned_by"] == card["hpm_bench"]["defence"]["tuning"]["options"]
    assert card["hpm_bench"]["model_id"] == case.spec.name
    clean_cache("another")
    back = hpm_robustbench.HPMClassifier.from_pretrained(REPO, revision="main")
    images = case.test.images[:4]
    assert torch.equal(back(images), case.wrapped.classifier(images))
    page = files["README.md"].decode()
    assert "no gain can be credited to HPM" in page
    assert "put it on trial again" not in page
    untuned = replace(RunOptions(), output=case.output)
    with pytest.raises(UsageProblem, match=f"fine-tuned from {DIGITS_MODEL}.*--recipe {recipe}.* --controls"):
        published(f"hf:{REPO}@main", untuned, (), factory=None)


def test_without_its_recipe_another_model_is_meant(case, hub):
    with pytest.raises(UsageProblem, match="only a model that was tried is published"):
        CliRunner().invoke(cli, ["push", *ASKED, "--output", str(case.output)], catch_exceptions=False)


def test_a_push_reads_what_was_trained_and_never_trains(case, hub, tmp_path):
    recipe = "uniform-v1" if "uniform" in case.spec.name else "head"
    for folder in ("model_cards", "prototypes"):
        shutil.copytree(case.output / folder, tmp_path / folder)
    given = [*arguments(case, recipe)[:-1], str(tmp_path), "--dry-run"]
    with pytest.raises(UsageProblem, match=rf"a fine-tuned {DIGITS_MODEL}.* in .*finetuned.*; got none") as refused:
        CliRunner().invoke(cli, given, catch_exceptions=False)
    assert f"repeat the hpm-bench run with --recipe {recipe} --tune " in refused.value.next_step
    assert not (tmp_path / "finetuned").exists()
    assert hub.asked == []
    [finished] = (case.output / "finetuned").iterdir()
    shutil.copytree(finished, tmp_path / "finetuned" / finished.name)
    assert CliRunner().invoke(cli, given, catch_exceptions=False).exit_code == 0
    whole = tmp_path / "finetuned" / finished.name / "classifier.safetensors"
    whole.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(UsageProblem, match="none that is whole, and nothing is trained here"):
        CliRunner().invoke(cli, given, catch_exceptions=False)
