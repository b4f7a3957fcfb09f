"""A finished folder is found again, a damaged one is made again, and what cannot be trained is refused."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from hpm_robustbench.case import prepare
from hpm_robustbench.data import open_dataset
from hpm_robustbench.errors import Diverged, InvalidInput, UsageProblem
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.ledger.curves import render_curves
from hpm_robustbench.ledger.fine_tuning import Point
from hpm_robustbench.load import wrap
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Corruptions, ThreatModel
from hpm_robustbench.training import finetuned as finetuned_module
from hpm_robustbench.training.compute import Compute, compile_if_faster, precision_on, prefer_channels_last
from hpm_robustbench.training.elsewhere import take_finished
from hpm_robustbench.training.features import Features
from hpm_robustbench.training.finetuned import finetune_once, on_trial
from hpm_robustbench.training.kept import Finetuned
from hpm_robustbench.training.loop import Lesson, Loop
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe
from hpm_robustbench.zoo.builtin import builtin_specs

LINF = ThreatModel.parse("Linf", "0.1")


def finetuned(wrapped, digits, tuning: Tuning, place: Path, threat=LINF) -> Finetuned:
    return finetune_once("Small", wrapped, digits, threat, tuning, place, Compute())


def test_a_second_call_reads_what_the_first_has_finished(wrapped, digits, quick, tmp_path: Path) -> None:
    first = finetuned(wrapped, digits, Tuning(quick), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = finetuned(wrapped, digits, Tuning(quick), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert state_sha256(second.classifier) == state_sha256(first.classifier)
    assert second.course == first.course
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "classifier.json",
        "classifier.safetensors",
        "curves.svg",
    ]
    facts = json.loads((first.folder / "classifier.json").read_text())
    assert facts["tuning"] == Tuning(quick).to_json()
    made = first.course.made
    assert made is not None and facts["made"] == made.model_dump()
    assert (made.at_once, made.compiled, made.folded, made.threads) == (128, False, True, torch.get_num_threads())
    assert made.trained_on + made.held_out == len(digits)
    assert (made.split, made.fingerprint) == ("train", digits.fingerprint)
    used = torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
    assert f"torch.{made.precision}" == str(used)


def test_a_checkpoint_that_a_kill_left_beside_a_finished_classifier_is_taken_away(
    wrapped, digits, quick, tmp_path: Path
) -> None:
    tuning = Tuning(quick.with_knobs({"epochs": 1, "attack_steps": 0}))
    folder = finetuned(wrapped, digits, tuning, tmp_path).folder
    (folder / "checkpoint.safetensors").write_bytes(b"left behind")
    finetune_once("Small", wrapped, digits, LINF, tuning, tmp_path, None)
    assert (folder / "checkpoint.safetensors").exists(), "who only reads takes nothing away"
    finetuned(wrapped, digits, tuning, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["classifier.json", "classifier.safetensors", "curves.svg"]


def test_whoever_trains_again_is_told_of_what_is_there(
    wrapped, digits, quick, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = Tuning(quick.with_knobs({"epochs": 1, "attack_steps": 0}))
    first = finetuned(wrapped, digits, tuning, tmp_path).folder
    finetuned(wrapped, digits, Tuning(tuning.recipe, Control.STATIC), tmp_path)
    with caplog.at_level(logging.INFO):
        finetuned(wrapped, digits, tuning, tmp_path)
        assert "training anew" not in caplog.text
        finetuned(wrapped, digits.head(150), tuning, tmp_path)
        assert f"training anew: the finished one in {first} differs in training images" in caplog.text
        assert caplog.text.count("training anew") == 1
        monkeypatch.setattr(finetuned_module, "code_sha256", lambda *_: "of another version")
        finetuned(wrapped, digits, tuning, tmp_path)
    assert f"{first} has other last bits, of another machine or version; hpm-bench run" in caplog.text
    assert f"--finetuned {tmp_path} takes it as it is" in caplog.text


def test_what_a_models_authors_fixed_stays_fixed(wrapped, digits, quick, tmp_path: Path) -> None:
    class Centred(torch.nn.Module):
        """Its last layer does not learn either, as in networks with a fixed simplex of classes."""

        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.nn.Parameter(torch.full((1,), 0.3), requires_grad=False)
            self.scale = torch.nn.Parameter(torch.ones(1))
            self.network = copy.deepcopy(wrapped.base).requires_grad_(True)
            self.network[-1].weight.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network((x - self.mean) * self.scale + 0.3)

    mean = {}
    for frozen in (False, True):
        model = Centred().requires_grad_(False) if frozen else Centred()
        centred = wrap(model, digits)
        assert len(centred.fixed) == (0 if frozen else 2)
        done = finetuned(centred, digits, Tuning(quick), tmp_path)
        values = {name.rpartition(".")[2]: tensor for name, tensor in done.classifier.backbone.state_dict().items()}
        assert values["scale"] != 1
        assert torch.equal(done.classifier.fc.weight, wrapped.classifier.fc.weight) != frozen
        assert not torch.equal(done.classifier.fc.bias, wrapped.classifier.fc.bias)
        told = [report for report in done.course.reports if "as the model's authors fixed them" in report]
        assert [report.split()[0] for report in told] == ([] if frozen else ["961"])
        mean[frozen] = float(values["mean"])
    assert mean[False] == torch.tensor(0.3).item()
    assert mean[True] != pytest.approx(0.3, abs=1e-6), "of a model that is frozen as a whole, everything learns"


def test_a_fixed_parameter_with_two_names_stays_fixed(wrapped, digits, quick, tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        """Its mean is in a list of its layers as well."""

        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1), requires_grad=False)])
            self.all = torch.nn.ModuleList([self.mean])
            self.network = copy.deepcopy(wrapped.base).requires_grad_(True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x - self.mean[0])

    twice = wrap(Twice(), digits)
    names = [name for name in twice.classifier.backbone.state_dict() if "mean." in name or "all." in name]
    assert len(names) == 2 and len(twice.fixed) == 1
    done = finetuned(twice, digits, Tuning(quick), tmp_path)
    assert all(done.classifier.backbone.state_dict()[name] == 0 for name in names)
    assert take_finished("Small", twice, digits, LINF, Tuning(quick), tmp_path).folder == done.folder


def test_what_a_result_depends_on_has_a_folder_of_its_own(wrapped, digits, quick, tmp_path: Path) -> None:
    small = quick.with_knobs({"epochs": 1, "attack_steps": 0})
    others = [Tuning(small), Tuning(small, seed=1), Tuning(small, Control.FC), Tuning(small.with_knobs({"shift": 0.0}))]
    folders = [finetuned(wrapped, digits, tuning, tmp_path).folder for tuning in others]
    folders.append(finetuned(wrapped, digits, others[0], tmp_path, ThreatModel.parse("Linf", "0.2")).folder)
    folders.append(finetuned(wrapped, digits.head(150), others[0], tmp_path).folder)
    assert len(set(folders)) == len(folders)


def test_who_trained_tries_what_the_others_read(
    wrapped, digits, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training may lay convolutions out in its own way, which changes the last bits of their answers."""

    def lay_out_otherwise(classifier: HPMClassifier, _x: torch.Tensor) -> None:
        classifier.to(memory_format=torch.contiguous_format)

    monkeypatch.setattr(finetuned_module, "prefer_channels_last", lay_out_otherwise)
    tuning = Tuning(quick.with_knobs({"epochs": 1, "attack_steps": 0}))
    first, second = (finetuned(wrapped, digits, tuning, tmp_path).classifier for _ in range(2))
    laid_out = [[p.stride() for p in classifier.parameters()] for classifier in (first, second)]
    assert laid_out[0] == laid_out[1]


@pytest.mark.parametrize("damage", ["torn", "edited"])
def test_a_damaged_classifier_is_said_and_made_again(
    wrapped, digits, quick, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    tuning = Tuning(quick.with_knobs({"epochs": 1}))
    path = finetuned(wrapped, digits, tuning, tmp_path).folder / "classifier.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-40] if damage == "torn" else good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    with caplog.at_level(logging.WARNING):
        finetuned(wrapped, digits, tuning, tmp_path)
    assert f"ignoring {path}" in caplog.text
    assert path.read_bytes() == good


def test_on_trial_the_original_model_stands_beside_hpm_and_the_tuned_one_beside_its_own_control(
    wrapped, digits, quick, tmp_path: Path
) -> None:
    small = quick.with_knobs({"epochs": 1, "attack_steps": 0})
    x = digits.images[:8]
    for control in (None, Control.FC):
        tuning = Tuning(small, control)
        done = finetuned(wrapped, digits, tuning, tmp_path)
        trial = on_trial(wrapped, done, tuning)
        assert trial.classifier is done.classifier
        assert torch.equal(trial.base(x), wrapped.base(x)) == (control is None)
        assert torch.equal(trial.base(x), done.classifier.embed(x).logits) == (control is Control.FC)
        assert "fine-tuned by" in trial.prototypes_from


def test_lost_clean_accuracy_is_reported(wrapped, digits, quick, tmp_path: Path) -> None:
    ruinous = quick.with_knobs({"learning_rate": 1.0, "attack_steps": 0, "clean_bound": 0.01})
    done = finetuned(wrapped, digits, Tuning(ruinous), tmp_path)
    assert any(
        "On held-out training images, which the base model may have been trained on, clean accuracy fell" in report
        for report in done.course.reports
    )


def test_how_many_of_the_images_were_trained_on_is_reported_where_not_all_were_read(
    wrapped, digits, quick, tmp_path: Path
) -> None:
    small = Tuning(quick.with_knobs({"epochs": 0}))
    of_many = finetuned(wrapped, replace(digits, cut_from=1797), small, tmp_path).course.reports
    assert "Trained on 144 of the set's 1797 images: no more were read, to fit into memory." in of_many
    assert not any("Trained on" in report for report in finetuned(wrapped, digits, small, tmp_path).course.reports)


@pytest.mark.parametrize("again", [False, True])
def test_a_last_step_that_is_not_finite_is_never_called_finished(
    wrapped, digits, quick, tmp_path: Path, again: bool
) -> None:
    """No step comes after it whose loss would tell."""
    one = quick.with_knobs({"epochs": 1, "batch_size": 144, "attack_steps": 0, "warm_up": 0.0, "learning_rate": 1e38})
    for _ in range(1 + again):
        with pytest.raises(Diverged, match=r"a finite step 1 of 1 .*weights that are not finite.*learning_rate"):
            finetuned(wrapped, digits, Tuning(one), tmp_path)
    assert not list(tmp_path.rglob("classifier.*"))


def test_memory_that_ends_outside_the_network_is_told_as_well(
    wrapped, digits, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser's own memory comes with the first step, where a device may already be full."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(torch.optim.SGD, "step", full)
    with pytest.raises(UsageProblem, match=r"memory for .* to learn; got CUDA out of memory.*--at-once"):
        finetuned(wrapped, digits, Tuning(quick), tmp_path)


def test_a_control_that_has_nothing_to_learn_is_told_before_anybody_learns(tmp_path: Path) -> None:
    spec = next(spec for spec in builtin_specs() if spec.dataset == "digits")
    tuning = Tuning(find_recipe("head").with_knobs({"learned": "tau,beta", "epochs": 1}))
    with pytest.raises(
        InvalidInput, match=r"_fc can train; got learned=tau,beta, of which nothing has.*--control instead"
    ):
        prepare(spec, RunOptions(n_ex=4, tuning=tuning, controls=True, output=tmp_path))
    assert not (tmp_path / "finetuned").exists()
    alone = prepare(spec, RunOptions(n_ex=4, tuning=tuning, output=tmp_path))
    assert alone.kept is not None


def test_a_model_of_which_nothing_may_change_is_told(wrapped, digits, quick, tmp_path: Path) -> None:
    """What all authors of a model have fixed stays so; its temperature is HPM's own."""
    names = [name for name, _ in wrapped.classifier.named_parameters() if name not in ("tau", "beta")]
    still = replace(wrapped, fixed=frozenset(names))
    layers = Tuning(quick.with_knobs({"learned": "backbone,fc", "epochs": 1, "attack_steps": 0}))
    with pytest.raises(InvalidInput, match=r"learned=backbone,fc, of which nothing can change in this model"):
        finetuned(still, digits, layers, tmp_path)
    assert not list(tmp_path.iterdir())
    tau = Tuning(quick.with_knobs({"learned": "backbone,tau", "epochs": 1, "attack_steps": 0}))
    assert finetuned(still, digits, tau, tmp_path).classifier.tau != wrapped.classifier.tau


def test_a_training_is_continued_in_as_many_threads_as_it_began_with(
    wrapped, digits, quick, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    step = Loop.step

    def cut_off(loop: Loop) -> None:
        step(loop)
        if loop.position.step == 3:
            raise Killed

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Loop, "step", cut_off)
            finetune_once("Small", wrapped, digits, LINF, Tuning(quick), tmp_path, Compute(checkpoint_every=0.0))
    finally:
        torch.set_num_threads(threads)
    with caplog.at_level(logging.INFO):
        made = finetuned(wrapped, digits, Tuning(quick), tmp_path).course.made
    assert "continuing" in caplog.text and f"training in {threads + 1} threads, as it began" in caplog.text
    assert made is not None and made.threads == threads + 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_between_checkpoints_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(UsageProblem, match="--checkpoint-minutes 5"):
        Compute(checkpoint_every=seconds)


def test_training_images_that_are_not_there_are_named(wrapped, digits, quick, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"training images of digits.*x_train and y_train.*train/"):
        finetuned(wrapped, replace(digits, split="test"), Tuning(quick), tmp_path)


def test_they_are_missed_before_anything_else_that_would_then_be_missed_too(tmp_path: Path) -> None:
    """Fewer test images would help a trial, and no fine-tuning."""
    spec = next(spec for spec in builtin_specs() if spec.dataset == "digits")
    source = open_dataset("digits")
    options = RunOptions(n_ex=len(source.test()), tuning=Tuning(find_recipe("head")), output=tmp_path)
    with pytest.raises(UsageProblem, match="to fine-tune on; got test images alone"):
        prepare(spec, options, source=replace(source, read_train=None))
    with pytest.raises(InvalidInput, match="or lower --n-ex"):
        prepare(spec, replace(options, tuning=None), source=replace(source, read_train=None))
    assert not any(tmp_path.iterdir())


def test_a_threat_model_without_a_budget_is_refused(wrapped, digits, quick, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"norm and a budget.*--eps"):
        finetuned(wrapped, digits, Tuning(quick), tmp_path, Corruptions())
    spec = replace(next(spec for spec in builtin_specs() if spec.dataset == "digits"), threat=Corruptions())
    options = RunOptions(tuning=Tuning(quick), output=tmp_path)
    with pytest.raises(UsageProblem, match=r"norm and a budget.*--eps"):
        prepare(spec, options)  # and not that there are no corrupted images, for which somebody would go and look
    assert not any(tmp_path.iterdir())


def test_the_picture_is_whole_xml_whatever_the_title_and_holds_every_curve() -> None:
    points = [
        Point(epoch=0, clean=0.9, robust=0.5),
        Point(epoch=1, loss=1.5, clean=0.91, robust=0.6),
        Point(epoch=2, loss=1.0, clean=0.92, robust=0.7),
    ]
    picture = ElementTree.fromstring(render_curves(points, "<script>alert(1)</script> & \"'"))
    tags = [element.tag.rpartition("}")[2] for element in picture.iter()]
    assert tags.count("polyline") == 3
    assert "script" not in tags
    lone = ElementTree.fromstring(render_curves([Point(epoch=0)], "nothing measured"))
    assert "polyline" not in [element.tag.rpartition("}")[2] for element in lone.iter()]


def test_half_precision_leaves_prototypes_and_distances_whole(wrapped, digits, quick) -> None:
    lesson = Lesson(wrapped.classifier, digits, LINF, Tuning(quick), torch.bfloat16)
    loop = Loop(lesson)
    seen = loop.learner.embed(digits.images[:8])
    exact = wrapped.classifier.embed(digits.images[:8])
    assert seen.features.dtype is torch.float32
    assert not torch.equal(seen.features, exact.features)
    torch.testing.assert_close(seen.features, exact.features, rtol=0.05, atol=0.1)
    loop.step()
    assert loop.learner.classifier.prototypes.dtype is torch.float32
    assert loop.learner.answer(seen).dtype is torch.float32


def test_a_device_without_the_units_trains_in_full_precision(quick, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = precision_on(torch.device("cpu"), quick)
    assert found is (torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32)
    assert ("training in float32" in caplog.text) == (found is torch.float32)
    assert precision_on(torch.device("cpu"), quick.with_knobs({"precision": "float32"})) is torch.float32


def test_a_backbone_that_cannot_be_compiled_stays_as_it_is(
    wrapped, digits, quick, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", refuse)
    loop = Loop(Lesson(wrapped.classifier, digits, LINF, Tuning(quick)))
    with caplog.at_level(logging.INFO):
        assert not compile_if_faster(loop.learner, loop.folded, digits.images[:8])
    assert "not compiled: no compiler here" in caplog.text
    loop.step()


def test_memory_that_ends_before_the_first_step_halves_what_passes_together(wrapped, digits, quick) -> None:
    """The meta device stands for an accelerator: layouts are decided for it, and nothing is computed."""
    loop = Loop(Lesson(wrapped.classifier, digits, LINF, Tuning(quick), at_once=48))
    met = []

    class Classifier(torch.nn.Linear):
        def embed(self, x: torch.Tensor) -> None:
            met.append(len(x))
            if len(x) > 20:
                raise torch.OutOfMemoryError("no room for more than 20 images")

    loop.with_what_fits(lambda x: prefer_channels_last(Classifier(1, 1), x.to("meta")))
    assert met == [48, 24, 12]
    assert loop.position.at_once == 12


def test_features_that_do_not_fit_into_memory_are_computed_of_fewer_images_at_once(wrapped, digits) -> None:
    asked = Lesson(wrapped.classifier, digits, LINF, Tuning(find_recipe("head")))
    whole, met = Features().of(asked), []

    def small_device(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        met.append(len(inputs[0]))
        if len(inputs[0]) > 50:
            raise torch.OutOfMemoryError("no room for more than 50 images")

    wrapped.classifier.backbone.register_forward_pre_hook(small_device)
    torch.testing.assert_close(Features().of(asked), whole)
    assert met == [128, 64, 32, 32, 32, 32, 32]
