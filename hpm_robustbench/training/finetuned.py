"""The folder of a fine-tuned classifier: trained once, found again by everything that its weights depend on.

    finetuned/<model>_<recipe>-<key>/checkpoint.safetensors    while it is trained
    finetuned/<model>_<recipe>-<key>/classifier.safetensors    the classifier, once it is finished
    finetuned/<model>_<recipe>-<key>/classifier.json           what it is, how it was made, how good it became
    finetuned/<model>_<recipe>-<key>/curves.svg                loss and accuracy by epoch

Files that do not match their own checksum are ignored with a warning, and made again.
"""

from __future__ import annotations

import json
import logging
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.evaluation.identity import code_sha256
from hpm_robustbench.fit_store import fit_key
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.ledger.curves import render_curves
from hpm_robustbench.ledger.fine_tuning import FineTuning, Made, Point
from hpm_robustbench.ledger.plan import digest
from hpm_robustbench.load import Wrapped
from hpm_robustbench.threat import Threat, ThreatModel
from hpm_robustbench.training.checkpoint import Saved, read_saved, write_saved
from hpm_robustbench.training.compute import Compute, precision_on, prefer_channels_last
from hpm_robustbench.training.features import Features
from hpm_robustbench.training.learner import trainable
from hpm_robustbench.training.loop import Lesson, Loop, Result
from hpm_robustbench.training.recipe import Control, Tuning

log = logging.getLogger(__name__)

CODE = ("hpm", "training", "attacks/ball.py")
"""Where the code lies that weights depend on: a new surrogate or attack on trial makes nobody train again."""


@dataclass(frozen=True)
class Kept:
    """How a training went, and where its classifier lies."""

    course: FineTuning
    folder: Path


@dataclass(frozen=True)
class Finetuned(Kept):
    """A finished classifier, how its training went, and where it lies."""

    classifier: HPMClassifier

    @property
    def kept(self) -> Kept:
        """The same without the classifier."""
        return Kept(self.course, self.folder)


def finetune_once(
    model: str,
    wrapped: Wrapped,
    training: ExampleSet,
    threat: Threat,
    tuning: Tuning,
    place: Path,
    compute: Compute | None,
    features: Features | None = None,
) -> Finetuned:
    """Fine-tune a wrapped classifier, continue where an earlier call was cut off, or read what it has finished.

    Args:
        model: name of the base model.
        wrapped: the classifier, frozen; it stays as it is.
        training: images to learn from; never the ones to be evaluated.
        threat: what the training attack may do.
        tuning: recipe, control and seed.
        place: folder that takes the classifier's folder.
        compute: what was decided about the machine; None only reads, and never trains.
        features: of the training images, if several are trained on the same ones.

    Raises:
        UsageProblem: no training images or no budget to train with, or not even one image fits into memory; or nothing
            is finished that could be read.
        Diverged: NaN or Inf; the last good checkpoint is kept.
        StorageProblem: the folder cannot be written.
    """
    lesson = _lesson(wrapped, training, threat, tuning, compute or Compute(), features or Features())
    key = _key(lesson)
    folder = place / f"{model}_{tuning.name}-{key}"
    finished = _read(folder, lesson, key)
    if finished is None:
        if compute is None:
            raise _unfinished(model, tuning, folder)
        if not (folder / "checkpoint.safetensors").exists():
            _tell_of_others(place, f"{model}_{tuning.name}")
        _write(folder, model, lesson, key, _train(lesson, folder, key, compute))
        # What trained may lie in memory otherwise, or be compiled, and then answers with other last bits.
        finished = _read(folder, lesson, key)
        assert finished is not None
    if compute is not None:  # whoever was killed in between has left it behind
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return finished


def _tell_of_others(place: Path, name: str) -> None:
    """Whoever moved a folder to another machine should not wait for a second training without knowing why."""
    key = "[0-9a-f]" * 16
    for other in sorted(place.glob(f"{name}-{key}/classifier.safetensors")):
        told = "is of another seed, budget, knob, image, weight, software or kind of machine; training anew"
        log.info("the finished training in %s %s", other.parent, told)


class _Trained(NamedTuple):
    """What a training has left, and how it was made."""

    result: Result
    made: Made
    steps: int


def _train(lesson: Lesson, folder: Path, key: str, compute: Compute) -> _Trained:
    loop = Loop(lesson)
    loop.with_what_fits(lambda x: prefer_channels_last(loop.learner.classifier, x))
    path, every = folder / "checkpoint.safetensors", compute.checkpoint_every
    result = loop.run(path, key=key, every=every, compiled=compute.compiled)
    return _Trained(result, _made(loop), loop.steps)


def _made(loop: Loop) -> Made:
    lesson = loop.lesson
    learning, held_out = (len(rows) for rows in lesson.rows())
    return Made(
        split=lesson.training.split,
        fingerprint=lesson.training.fingerprint,
        trained_on=learning,
        held_out=held_out,
        precision=str(torch.float32 if lesson.tuning.recipe.from_features else lesson.precision).removeprefix("torch."),
        device=lesson.classifier.prototypes.device.type,
        at_once=loop.position.at_once,
        compiled=loop.position.compiled,
        folded=loop.folded is not None,
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}},
    )


def _unfinished(model: str, tuning: Tuning, folder: Path) -> UsageProblem:
    asked = shlex.join(tuning.options)
    return UsageProblem(
        wanted=f"a fine-tuned {model} in {folder}",
        got="none that is whole, and nothing is trained here",
        next_step=f"repeat the hpm-bench run with {asked} that tried it; or name its folder with --output",
    )


def on_trial(wrapped: Wrapped, finetuned: Finetuned, tuning: Tuning) -> Wrapped:
    """What stands trial: the fine-tuned classifier beside the original model.

    Under the control ``fc`` the fine-tuned FC head is what answers, so it takes the base model's place.
    """
    classifier = finetuned.classifier
    base = nn.Sequential(classifier.backbone, classifier.fc).eval() if tuning.control is Control.FC else wrapped.base
    role = " The FC head that was trained alone takes the base model's place." if tuning.control is Control.FC else ""
    told = f"{wrapped.prototypes_from}; fine-tuned by {tuning.name}.{role}"
    return replace(wrapped, classifier=classifier, base=base, prototypes_from=told)


def _lesson(
    wrapped: Wrapped, training: ExampleSet, threat: Threat, tuning: Tuning, compute: Compute, features: Features
) -> Lesson:
    dataset = training.dataset.name
    if training.split != "train":
        raise no_training_images(dataset)
    if not isinstance(threat, ThreatModel):
        raise UsageProblem(
            wanted="a norm and a budget for the attack inside training",
            got=f"the threat model {threat}",
            next_step="give --threat-model Linf and --eps, or leave --recipe out",
        )
    precision = precision_on(wrapped.classifier.prototypes.device, tuning.recipe)
    return Lesson(wrapped.classifier, training, threat, tuning, precision, compute.at_once, features, wrapped.fixed)


def no_training_images(dataset: str) -> UsageProblem:
    """What to say where a fine-tuning is asked for and there is nothing to learn from."""
    return UsageProblem(
        wanted=f"training images of {dataset}, to fine-tune on",
        got="test images alone",
        next_step="give --data with x_train and y_train in the .npz file, with train-images-idx3-ubyte and "
        "train-labels-idx1-ubyte beside the test files, or with a folder train/ of class folders beside test/ or val/",
    )


def _key(lesson: Lesson) -> str:
    """Hash of the network, images, definition, threat model and recipe, and of the code that trains."""
    facts = {
        "fixed": sorted(lesson.fixed),
        "start": fit_key(lesson.classifier, lesson.training, lesson.tuning.recipe.batch_size),
        "prototypes": digest(lesson.classifier.prototypes.tolist()),
        "threat": lesson.threat.to_json()["norm"] + lesson.threat.to_json()["eps_exact"],
        "tuning": lesson.tuning.to_json(),
        "precision": str(lesson.precision),
        "device": lesson.classifier.prototypes.device.type,
        "software": code_sha256(*CODE),
    }
    return digest(facts)[:16]


def _read(folder: Path, lesson: Lesson, key: str) -> Finetuned | None:
    saved = read_saved(folder / "classifier.safetensors", key)
    if saved is None:
        return None
    classifier = trainable(lesson.classifier, lesson.tuning.defence(lesson.classifier.config))
    classifier.load_state_dict(saved.tensors)
    curves = [Point.model_validate(point) for point in saved.facts["curves"]]
    return Finetuned(_course(lesson, curves, Made.model_validate(saved.facts["made"])), folder, classifier.freeze())


def _write(folder: Path, model: str, lesson: Lesson, key: str, trained: _Trained) -> None:
    """The classifier last: where it lies, everything lies."""
    result, made = trained.result, trained.made.model_dump()
    title = f"{model}, {lesson.tuning.name}, {lesson.training.dataset.name} {lesson.threat}"
    facts = {"key": key, "model": model, **_facts(lesson, trained)}
    write_atomic(folder / "curves.svg", render_curves(result.curves, title))
    write_atomic(folder / "classifier.json", json.dumps(facts, indent=1) + "\n")
    curves = [point.model_dump() for point in result.curves]
    saved = Saved(result.classifier.state_dict(), {"key": key, "curves": curves, "made": made, "steps": trained.steps})
    write_saved(folder / "classifier.safetensors", saved)


def _facts(lesson: Lesson, trained: _Trained) -> dict[str, Any]:
    result = trained.result
    return {
        "dataset": lesson.training.dataset.name,
        "tuning": lesson.tuning.to_json(),
        "threat": lesson.threat.to_json(),
        "defence": result.classifier.config.to_json(),
        **_course(lesson, result.curves, trained.made).model_dump(),
    }


def _course(lesson: Lesson, curves: Sequence[Point], made: Made) -> FineTuning:
    """The curves, and what a reader of a number should know: lost accuracy, classes without support."""
    reports = []
    first, last, bound = curves[0], curves[-1], lesson.tuning.recipe.clean_bound
    if first.clean is not None and last.clean is not None and first.clean - last.clean > bound:
        fallen = f"from {first.clean:.2%} to {last.clean:.2%}"
        whose = "held-out training images, which the base model may have been trained on,"
        reports.append(f"On {whose} clean accuracy fell {fallen}, by more than {bound:.2%}.")
    if lesson.fixed:
        parts = {"backbone": lesson.classifier.backbone, "fc": lesson.classifier.fc}
        sizes = {name: parameter.numel() for name, parameter in nn.ModuleDict(parts).named_parameters()}
        still = sum(sizes[name] for name in lesson.fixed)
        reports.append(f"{still:,} of {sum(sizes.values()):,} parameters stay as the model's authors fixed them.")
    there = lesson.training.cut_from
    if there is not None:
        n = len(lesson.rows()[0])
        reports.append(f"Trained on {n} of the set's {there} images: no more were read, to fit into memory.")
    present = torch.bincount(lesson.training.labels, minlength=lesson.training.dataset.n_classes)
    absent = (present == 0).nonzero().squeeze(1).tolist()
    if absent:
        reports.append(f"No training image is of class {', '.join(map(str, absent[:10]))}: no prototype of its own.")
    if last.unsupported:
        classes = ", ".join(map(str, last.unsupported[:10]))
        reports.append(f"In the last epoch the FC head put no training image into class {classes}: no batch prototype.")
    return FineTuning(curves=list(curves), reports=reports, made=made)
