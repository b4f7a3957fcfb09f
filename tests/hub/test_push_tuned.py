"""A fine-tuned model on the Hub: the head alone where the backbone is the base's own, else all of it."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import hpm_robustbench
from hpm_robustbench.case import Case, prepare
from hpm_robustbench.cli import cli
from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.hub import trial
from hpm_robustbench.hub.found import find
from hpm_robustbench.hub.trial import published
from hpm_robustbench.pipeline import attack, conclude, examine
from hpm_robustbench.request.models import under
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.published import record
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


@pytest.fixture
def recipe(case: Case) -> str:
    return "uniform-v1" if "uniform" in case.spec.name else "head"


def arguments(case: Case, recipe: str) -> list[str]:
    tuned = ["--recipe", recipe, *[part for knob in QUICK for part in ("--tune", knob)]]
    return ["push", *ASKED, *tuned, "--output", str(case.output)]


def asked(*given: str) -> dict[str, Any]:
    return json.loads(CliRunner().invoke(cli, given, obj=given, catch_exceptions=False).stdout)


def test_it_comes_back_bit_for_bit_with_no_more_than_it_needs(case, recipe, hub, clean_cache, tmp_path):
    assert asked(*arguments(case, recipe), "--format", "json")["changed"]
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
    changed = "fc, tau, beta" if recipe == "head" else "backbone, fc, tau"
    assert f"Changed, too: {changed}, as far as hpm-bench finetune --recipe {recipe}" in files["NOTICE"].decode()
    page = files["README.md"].decode()
    assert "no gain can be credited to HPM" in page
    assert "put it on trial again" in page
    back.save_pretrained(tmp_path / "saved", include_backbone=recipe != "head")
    again = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert again == {name: files[name] for name in ("config.json", "model.safetensors", "training.json")}


def test_it_meets_the_same_verdicts_beside_its_base_model(case, recipe, hub, clean_cache, tmp_path):
    sent = asked(*arguments(case, recipe), "--format", "json")
    clean_cache("another")
    place = f"hf:{REPO}@{sent['commit']}"
    trial = ["--n-ex", "4", "--batching", "solo", "--workers", "1", "--output", str(tmp_path), "--format", "json"]
    again = asked("run", "--model", place, *trial)
    first = json.loads(hub.head(REPO)["hpm_card.json"])
    assert again["hpm_bench"]["notes"].pop("published") == place
    assert "taken as it was found" in again["hpm_bench"]["fine_tuning"]["reports"].pop()
    for card in (first, again):
        for evaluation in card["hpm_bench"]["evaluations"]:
            evaluation.pop("environment")
    assert again == first
    assert not (tmp_path / "finetuned").exists()


def test_what_it_says_itself_nobody_else_says(case, recipe, hub):
    asked(*arguments(case, recipe), "--format", "json")
    options = RunOptions(output=case.output)
    with pytest.raises(UsageProblem, match="as it was published; got --weights beside it"):
        published(f"hf:{REPO}@main", options, factory=None, weights="mine.pth")
    given = ["run", "--model", f"hf:{REPO}@main", "--recipe", recipe, "--controls", "--finetuned", str(case.output)]
    with pytest.raises(UsageProblem, match="as it was published; got --recipe, --controls, --finetuned beside it"):
        CliRunner().invoke(cli, given, obj=given, catch_exceptions=False)


def test_what_does_not_tell_how_it_was_made_is_not_tried(case, recipe, hub, tmp_path, monkeypatch):
    asked(*arguments(case, recipe), "--folder", str(tmp_path), "--format", "json")
    folder = tmp_path / REPO
    monkeypatch.setattr(trial, "on_hub", lambda *_: find(str(folder)))

    def refused(kind, match):
        with pytest.raises(kind, match=match):
            published(f"hf:{REPO}@main", RunOptions(output=case.output), factory=None)

    told = json.loads((folder / "config.json").read_text())
    (folder / "training.json").write_bytes(b"{}")
    refused(IntegrityError, "of .*training.json")
    (folder / "training.json").unlink()
    refused(UsageProblem, "training.json in .*; got no such file")
    words = {"tuned_by": ["--recipe", "head", "--tune"]}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in told.items() if k != "training"}))
    refused(UsageProblem, f"which is without it.*fine-tune {DIGITS_MODEL} anew with --recipe {recipe}")
    (folder / "training.json").write_bytes(record(next((case.output / "finetuned").iterdir())))
    (folder / "config.json").write_text(json.dumps({**told, **words}))
    refused(UsageProblem, "the options of a fine-tuning.*got --recipe head --tune")


def test_a_folder_of_publications_is_taken_as_a_finished_fine_tuning(case, recipe, hub, tmp_path):
    asked(*arguments(case, recipe), "--folder", str(tmp_path), "--format", "json")
    again = asked(*arguments(case, recipe), "--folder", str(tmp_path), "--finetuned", str(tmp_path), "--format", "json")
    assert again["folder"] == str(tmp_path / REPO)
    assert hub.asked == []


def test_without_its_recipe_another_model_is_meant(case, hub):
    with pytest.raises(UsageProblem, match="only a model that was tried is published"):
        CliRunner().invoke(cli, ["push", *ASKED, "--output", str(case.output)], catch_exceptions=False)


def test_a_push_reads_what_was_trained_and_never_trains(case, recipe, hub, tmp_path):
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
