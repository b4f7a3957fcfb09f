"""What a finished training has left in its folder, and how it is read again.

classifier.safetensors    the classifier, and what it was asked for
classifier.json           what it is, how it was made, how good it became
curves.svg                loss and accuracy by epoch
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, ValidationError

from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.ledger.card_block import Block
from hpm_robustbench.ledger.card_schema import first_problem
from hpm_robustbench.ledger.curves import render_curves
from hpm_robustbench.ledger.fine_tuning import FineTuning, Made, Point
from hpm_robustbench.state_dict import load_into
from hpm_robustbench.training.checkpoint import Saved, read_saved, write_saved
from hpm_robustbench.training.header import CLASSIFIER
from hpm_robustbench.training.learner import trainable
from hpm_robustbench.training.loop import Lesson, Result
from hpm_robustbench.training.recipe import Tuning


class _Told(Block):
    """What stands beside the tensors for a card to tell."""

    curves: Annotated[list[Point], Field(min_length=1)]
    made: Made


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


def folders_of(model: str, tuning: Tuning, place: Path) -> list[Path]:
    """Folders below ``place`` in which a training of that name is finished, whatever it was trained on."""
    key = "[0-9a-f]" * 16
    return sorted(file.parent for file in place.glob(f"{model}_{tuning.name}-{key}/{CLASSIFIER}"))


class Trained(NamedTuple):
    """What a training has left, and how it was made."""

    result: Result
    made: Made
    steps: int


def learned_from(lesson: Lesson) -> dict[str, Any]:
    """What ``Made`` tells of the images; whoever has them knows it without training."""
    learning, held_out = (len(rows) for rows in lesson.rows())
    training = lesson.training
    return {"split": training.split, "fingerprint": training.fingerprint, "trained_on": learning, "held_out": held_out}


def asked(lesson: Lesson) -> dict[str, Any]:
    """What a person asked for, by topic; the same on every machine, and for every version that has the same knobs."""
    classifier, threat = lesson.classifier, lesson.threat.to_json()
    return {
        "weights of the base model": [state_sha256(classifier.backbone, classifier.fc), sorted(lesson.fixed)],
        "training images": lesson.training.fingerprint,
        "knobs of HPM": classifier.config.to_json(),
        "budget": [threat["norm"], threat["eps_exact"]],
        "recipe, knobs or seed": lesson.tuning.to_json(),
    }


def differences(wanted: Mapping[str, Any], facts: Mapping[str, Any] | None) -> list[str]:
    """Topics in which a training that tells of these facts was asked for something else."""
    if facts is None:
        return ["what can be read of it: nothing"]
    told = facts.get("asked")
    if not isinstance(told, dict):
        return ["the version that made it, which did not yet write down what was asked for"]
    return [topic for topic, value in wanted.items() if told.get(topic) != value]


def read_finished(folder: Path, key: str) -> Saved | None:
    """What lies in ``folder``; None if nothing does, or it is not whole, or not of that key."""
    return read_saved(folder / CLASSIFIER, key)


def restored(folder: Path, lesson: Lesson, saved: Saved) -> Finetuned:
    """The classifier that a finished training has left in ``folder``.

    Raises:
        IntegrityError: it is not one of this model, or its numbers are none.
    """
    classifier = trainable(lesson.classifier, lesson.tuning.defence(lesson.classifier.config))
    own = classifier.state_dict()
    for name, tensor in saved.tensors.items():
        if name not in own or tensor.dtype != own[name].dtype:
            raise broken(folder, f"{name[:80]!r} in {tensor.dtype}")
        if not tensor.isfinite().all():
            raise broken(folder, f"NaN or Inf in {name}")
    load_into(classifier, saved.tensors, str(folder))
    try:
        told = _Told.model_validate({name: saved.facts.get(name) for name in _Told.model_fields})
    except ValidationError as error:
        raise broken(folder, first_problem(error)) from error
    return Finetuned(_course(lesson, told.curves, told.made), folder, classifier.freeze())


def broken(folder: Path, got: str) -> IntegrityError:
    """What to say of a folder that agrees with its own checksum, and not with what it should hold."""
    return IntegrityError(
        wanted=f"what a fine-tuning of this model has left, in {folder}",
        got=got,
        next_step="bring it again from where it was made; or take it away and train anew",
    )


def write_finished(folder: Path, model: str, lesson: Lesson, key: str, trained: Trained) -> None:
    """The classifier last: where it lies, everything lies."""
    result, made = trained.result, trained.made.model_dump()
    title = f"{model}, {lesson.tuning.name}, {lesson.training.dataset.name} {lesson.threat}"
    facts = {"key": key, "model": model, **_facts(lesson, trained)}
    write_atomic(folder / "curves.svg", render_curves(result.curves, title))
    write_atomic(folder / "classifier.json", json.dumps(facts, indent=1) + "\n")
    curves = [point.model_dump() for point in result.curves]
    kept = {"key": key, "asked": asked(lesson), "curves": curves, "made": made, "steps": trained.steps}
    write_saved(folder / CLASSIFIER, Saved(result.classifier.state_dict(), kept))


def _facts(lesson: Lesson, trained: Trained) -> dict[str, Any]:
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
        parameters = lesson.classifier.named_parameters()
        sizes = {name: parameter.numel() for name, parameter in parameters if name not in ("tau", "beta")}
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
