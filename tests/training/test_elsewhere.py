"""What another machine has trained is taken as it is, if it is what was asked for, and the card says so."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from hpm_robustbench.case import fine_tune, prepare
from hpm_robustbench.cli import cli
from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.load import wrap
from hpm_robustbench.pipeline import evaluate
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training import finetuned as finetuned_module
from hpm_robustbench.training.checkpoint import Saved, read_saved, write_saved
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.elsewhere import take_finished
from hpm_robustbench.training.finetuned import finetune_once
from hpm_robustbench.training.kept import Finetuned
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe
from hpm_robustbench.training.status import trainings
from hpm_robustbench.zoo.builtin import builtin_specs

LINF = ThreatModel.parse("Linf", "0.1")
SPEC = next(spec for spec in builtin_specs() if spec.dataset == "digits")


@pytest.fixture
def tuning(quick) -> Tuning:
    return Tuning(quick.with_knobs({"epochs": 1, "attack_steps": 0}))


@pytest.fixture
def elsewhere(wrapped, digits, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finetuned:
    """Trained by other code, as a version before this one had it."""
    with monkeypatch.context() as other_version:
        other_version.setattr(finetuned_module, "code_sha256", lambda *_: "of another version")
        return finetune_once("Small", wrapped, digits, LINF, tuning, tmp_path / "brought", Compute())


def test_it_is_taken_bit_for_bit_and_said_to_be_from_elsewhere(
    wrapped, digits, tuning: Tuning, elsewhere: Finetuned
) -> None:
    place = elsewhere.folder.parent
    with pytest.raises(UsageProblem, match="nothing is trained here"):
        finetune_once("Small", wrapped, digits, LINF, tuning, place, None)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    taken = take_finished("Small", wrapped, digits, LINF, tuning, place)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert taken.folder == elsewhere.folder
    assert state_sha256(taken.classifier) == state_sha256(elsewhere.classifier) != state_sha256(wrapped.classifier)
    assert not any(parameter.requires_grad for parameter in taken.classifier.parameters())
    assert taken.course.reports == [
        *elsewhere.course.reports,
        "The fine-tuning was taken as it was found: this trial neither made it nor saw how it was made.",
    ]
    assert taken.course.made == elsewhere.course.made is not None
    assert "hpm-robustbench" in taken.course.made.versions


def test_what_was_trained_for_something_else_is_refused_and_told(
    wrapped, digits, tuning: Tuning, elsewhere: Finetuned
) -> None:
    def refused(model=wrapped, images=digits, threat=LINF, asked=tuning) -> str:
        with pytest.raises(UsageProblem, match=f"{elsewhere.folder.name}, which differs in ") as refusal:
            take_finished("Small", model, images, threat, asked, elsewhere.folder.parent)
        return refusal.value.got.rpartition("which differs in ")[2]

    other = copy.deepcopy(wrapped.base)
    with torch.no_grad():
        other[1].bias += 1
    weights = wrap(copy.deepcopy(other), digits)
    assert refused(asked=Tuning(tuning.recipe, seed=1)) == "recipe, knobs or seed"
    assert refused(images=digits.head(150)) == "training images"
    assert refused(threat=ThreatModel.parse("Linf", "0.2")) == "budget"
    assert refused(model=weights) == "weights of the base model"
    knobs = wrap(other, digits, HPMConfig(kappa=1.0))
    assert refused(model=knobs) == "weights of the base model and knobs of HPM"


def test_two_that_fit_are_not_chosen_between(wrapped, digits, tuning: Tuning, elsewhere: Finetuned) -> None:
    place = elsewhere.folder.parent
    own = finetune_once("Small", wrapped, digits, LINF, tuning, place, Compute())
    with pytest.raises(UsageProblem, match=r"2 that fit: Small_.*move all but one away"):
        take_finished("Small", wrapped, digits, LINF, tuning, place)
    shutil.rmtree(elsewhere.folder)
    assert take_finished("Small", wrapped, digits, LINF, tuning, place).folder == own.folder


def test_a_folder_that_holds_none_is_refused(
    wrapped, digits, tuning: Tuning, elsewhere: Finetuned, tmp_path: Path
) -> None:
    for place in (tmp_path / "nowhere", elsewhere.folder):
        with pytest.raises(UsageProblem, match="got none"):
            take_finished("Small", wrapped, digits, LINF, tuning, place)
    file = elsewhere.folder / "classifier.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageProblem, match="not whole or not what its name says"):
        take_finished("Small", wrapped, digits, LINF, tuning, elsewhere.folder.parent)


def spoiled(change: Callable[[Saved], None], folder: Path) -> None:
    """A file that agrees with its own checksum, and is none of ours."""
    file, key = folder / "classifier.safetensors", folder.name[-16:]
    saved = read_saved(file, key)
    assert saved is not None
    change(saved)
    write_saved(file, saved)


def tensor(name: str, value: Any) -> Callable[[Saved], None]:
    return lambda saved: saved.tensors[name].fill_(value)


def fact(name: str, value: Any) -> Callable[[Saved], None]:
    return lambda saved: saved.facts.update({name: value})


def made(name: str, value: Any) -> Callable[[Saved], None]:
    return lambda saved: saved.facts["made"].update({name: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (tensor("fc.weight", float("nan")), "NaN or Inf in fc.weight"),
        (lambda saved: saved.tensors.update({"fc.weight": torch.zeros(3)}), "fc.weight"),
        (
            lambda saved: saved.tensors.update({"fc.bias": saved.tensors["fc.bias"].double()}),
            "'fc.bias' in torch.float64",
        ),
        (lambda saved: saved.tensors.pop("prototypes"), "prototypes"),
        (
            lambda saved: saved.tensors.update(odd=torch.zeros(3).to(torch.float8_e4m3fn)),
            "'odd' in torch.float8_e4m3fn",
        ),
        (tensor("backbone.1.running_mean", 0.5), "another backbone.1.running_mean than the base model's"),
        (tensor("beta", 0.25), "another beta"),
        (tensor("tau", -1.0), "another tau"),
        (fact("curves", []), "curves"),
        (fact("curves", [{"epoch": -1}]), r"curves\.0\.epoch"),
        (fact("curves", [{"epoch": 0}]), "other epochs"),
        (fact("curves", [{"epoch": 0}, {"epoch": 1, "unsupported": [10]}]), "a loss or an accuracy in epoch 0"),
        (lambda saved: saved.facts["curves"][-1].update(unsupported=[10]), "classes in epoch 1"),
        (lambda saved: saved.facts["curves"][-1].update(unsupported=[3, 3]), "classes in epoch 1"),
        (lambda saved: saved.facts["curves"][0].update(unsupported=[3]), "classes in epoch 0"),
        (lambda saved: saved.facts["curves"][-1].update(loss=None), "a loss or an accuracy in epoch 1"),
        (lambda saved: saved.facts["curves"][-1].update(clean=None), "a loss or an accuracy in epoch 1"),
        (fact("made", None), "'made'"),
        (made("device", "\x1b[2J"), r"made\.device"),
        (made("versions", {"torch": "2" * 100}), r"made\.versions"),
        (made("held_out", 1), "held_out 1 where it is 16"),
        (made("trained_on", 10**9), "trained_on 1000000000 where it is 144"),
        (made("fingerprint", "0" * 64), "fingerprint '000"),
        (made("split", "test"), "split 'test' where it is 'train'"),
    ],
)
def test_what_does_not_hold_together_is_refused(
    wrapped, digits, tuning: Tuning, elsewhere: Finetuned, change: Callable[[Saved], None], told: str
) -> None:
    spoiled(change, elsewhere.folder)
    with pytest.raises(IntegrityError, match=told):
        take_finished("Small", wrapped, digits, LINF, tuning, elsewhere.folder.parent)


@pytest.mark.parametrize(
    ("recipe", "control", "name", "refused"),
    [
        ("prototypes", None, "backbone.0.weight", True),
        ("prototypes", None, "fc.weight", True),
        ("prototypes", None, "prototypes", True),
        ("head", None, "backbone.0.weight", True),
        ("head", None, "beta", False),
        ("head", Control.STATIC, "beta", True),
        ("head", Control.FC, "tau", False),  # fitted to the images, with other last bits elsewhere
    ],
)
def test_what_a_recipe_leaves_alone_has_to_be_the_base_models(
    wrapped, digits, tmp_path: Path, recipe: str, control: Control | None, name: str, refused: bool
) -> None:
    short = find_recipe(recipe).with_knobs({} if recipe == "prototypes" else {"epochs": 1})
    asked = Tuning(short, control)
    trained = finetune_once("Small", wrapped, digits, LINF, asked, tmp_path, Compute())
    assert take_finished("Small", wrapped, digits, LINF, asked, tmp_path).folder == trained.folder
    spoiled(tensor(name, 0.75), trained.folder)
    if not refused:
        assert (
            take_finished("Small", wrapped, digits, LINF, asked, tmp_path).classifier.state_dict()[name] == 0.75
        ).all()
        return
    with pytest.raises(IntegrityError, match=f"other {name}"):
        take_finished("Small", wrapped, digits, LINF, asked, tmp_path)


def test_metadata_that_is_nested_too_deeply_is_nothing(
    wrapped, digits, tuning: Tuning, elsewhere: Finetuned, caplog: pytest.LogCaptureFixture
) -> None:
    file = elsewhere.folder / "classifier.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, file, metadata={"facts": "[" * 100_000})
    assert read_saved(file, elsewhere.folder.name[-16:]) is None
    assert "ignoring" in caplog.text
    assert trainings(elsewhere.folder.parent) == []
    with pytest.raises(UsageProblem, match="can be read of it: nothing"):
        take_finished("Small", wrapped, digits, LINF, tuning, elsewhere.folder.parent)


def test_hpm_and_its_controls_have_to_be_made_alike(tmp_path: Path) -> None:
    head = Tuning(find_recipe("head").with_knobs({"epochs": 1}))
    there = RunOptions(n_ex=4, tuning=head, controls=True, output=tmp_path / "there")
    kept = fine_tune(SPEC, there, head.with_controls())
    here = replace(there, output=tmp_path / "here", finetuned=tmp_path / "there" / "finetuned")
    assert len(prepare(SPEC, here, train=False).controls) == 4
    spoiled(lambda saved: saved.facts["made"]["versions"].pop("hpm-robustbench"), kept[1].folder)
    assert len(prepare(SPEC, here, train=False).controls) == 4, "an older one did not yet tell"
    spoiled(made("device", "cuda"), kept[1].folder)
    with pytest.raises(UsageProblem, match=f"{head.name} and {head.name}_fc made otherwise: device cpu and cuda"):
        prepare(SPEC, here, train=False)


def test_one_that_does_not_say_what_it_was_asked_for_is_refused(
    wrapped, digits, tuning: Tuning, elsewhere: Finetuned
) -> None:
    spoiled(lambda saved: saved.facts.pop("asked"), elsewhere.folder)
    with pytest.raises(UsageProblem, match="did not yet write down what was asked for"):
        take_finished("Small", wrapped, digits, LINF, tuning, elsewhere.folder.parent)


def test_a_trial_of_it_and_its_controls_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a budget that breaks everything at the first step, so that it takes seconds."""
    easy = replace(SPEC, threat=ThreatModel.parse("Linf", "1/2"))
    head = Tuning(find_recipe("head").with_knobs({"epochs": 1}))
    options = RunOptions(
        n_ex=4, batch_size=4, batchings=(Batching.SOLO,), tuning=head, controls=True, output=tmp_path / "there"
    )
    here = replace(options, output=tmp_path / "here", finetuned=tmp_path / "there" / "finetuned")
    with pytest.raises(UsageProblem, match="got none"):
        prepare(easy, here)
    fine_tune(easy, options, head.with_controls())
    monkeypatch.setattr(finetuned_module, "code_sha256", lambda *_: "of another version")
    bench = evaluate(easy, here).card.hpm_bench
    assert bench is not None and len(bench.controls) == 4
    assert bench.fine_tuning.reports[-1].startswith("The fine-tuning was taken as it was found")
    assert not (tmp_path / "here" / "finetuned").exists()


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="add --recipe"):
        RunOptions(finetuned=tmp_path)


def test_the_commands_take_it_where_they_would_train_or_refuse(tmp_path: Path) -> None:
    """Under a budget that breaks everything at the first step, so that it takes seconds."""
    budget = ["--threat-model", "Linf", "--eps", "1/2", "--recipe", "head", "--tune", "epochs=1"]
    here, brought = ["--output", str(tmp_path / "here")], ["--finetuned", str(tmp_path / "there" / "finetuned")]
    few = ["--n-ex", "4", *budget]

    def ask(*command: str) -> str:
        answer = CliRunner().invoke(cli, command, obj=command, catch_exceptions=False)
        assert answer.exit_code == 0
        return answer.output

    ask("finetune", *few, "--output", str(tmp_path / "there"))
    options = [*few, "--batch-size", "4", "--batching", "solo", "--workers", "1", *here, "--keep-images"]
    assert "taken as it was found" in ask("run", *options, *brought)
    assert not (tmp_path / "here" / "finetuned").exists()
    for command in (["run", *options, "--verify"], ["push", *budget, "--repo", "me/it", "--dry-run", *here]):
        with pytest.raises(UsageProblem, match="or with --finetuned if another machine has made it"):
            ask(*command)
        assert ask(*command, *brought)


def test_a_fixed_tau_has_to_be_the_one_that_was_asked_for(wrapped, digits, tmp_path: Path) -> None:
    fixed = wrap(copy.deepcopy(wrapped.base), digits, HPMConfig(tau=0.5))
    asked = Tuning(find_recipe("prototypes"))
    trained = finetune_once("Small", fixed, digits, LINF, asked, tmp_path, Compute())
    assert take_finished("Small", fixed, digits, LINF, asked, tmp_path).folder == trained.folder
    spoiled(tensor("tau", 0.75), trained.folder)
    with pytest.raises(IntegrityError, match="another tau"):
        take_finished("Small", fixed, digits, LINF, asked, tmp_path)
