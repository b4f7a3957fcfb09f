"""The folder of a fine-tuned classifier: trained once, found again by everything that its weights depend on.

    finetuned/<model>_<recipe>-<key>/checkpoint.safetensors    while it is trained
    finetuned/<model>_<recipe>-<key>/classifier.*              once it is finished, see ``kept``

Files that do not match their own checksum are ignored with a warning, and made again.
"""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.evaluation.identity import code_sha256
from hpm_robustbench.fit_store import fit_key
from hpm_robustbench.ledger.fine_tuning import Made
from hpm_robustbench.ledger.plan import digest
from hpm_robustbench.load import Wrapped
from hpm_robustbench.memory import room_for
from hpm_robustbench.threat import Threat, ThreatModel
from hpm_robustbench.training.compute import Compute, as_many_threads, precision_on, prefer_channels_last
from hpm_robustbench.training.features import Features
from hpm_robustbench.training.header import CLASSIFIER, read_facts
from hpm_robustbench.training.kept import (
    Finetuned,
    Trained,
    asked,
    differences,
    folders_of,
    learned_from,
    read_finished,
    restored,
    write_finished,
)
from hpm_robustbench.training.loop import Lesson, Loop
from hpm_robustbench.training.recipe import Control, Tuning

log = logging.getLogger(__name__)

CODE = ("hpm", "training", "attacks/ball.py")
"""Where the code lies that weights depend on: a new surrogate or attack on trial makes nobody train again."""
_MORE_MEMORY = (
    "free some, train on a larger device, or give hpm-bench finetune a smaller --at-once; repeating it continues"
)


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
        InvalidInput: nothing of the classifier can learn.
        Diverged: NaN or Inf; the last good checkpoint is kept.
        IntegrityError: what is finished does not hold together.
        StorageProblem: the folder cannot be written.
    """
    lesson = replace(
        lesson_of(wrapped, training, threat, tuning),
        precision=precision_on(wrapped.classifier.prototypes.device, tuning.recipe),
        at_once=None if compute is None else compute.at_once,
        features=features or Features(),
    )
    key = _key(lesson)
    folder = place / f"{model}_{tuning.name}-{key}"
    finished = _read(folder, lesson, key)
    if finished is None:
        if compute is None:
            raise _unfinished(model, tuning, folder)
        if not (folder / "checkpoint.safetensors").exists():
            _tell_of_others(lesson, [other for other in folders_of(model, tuning, place) if other != folder])
        write_finished(folder, model, lesson, key, _train(lesson, folder, key, compute))
        # What trained may lie in memory otherwise, or be compiled, and then answers with other last bits.
        finished = _read(folder, lesson, key)
        assert finished is not None
    if compute is not None:  # whoever was killed in between has left it behind
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return finished


def _tell_of_others(lesson: Lesson, folders: Sequence[Path]) -> None:
    """Whoever moved a folder to another machine should not wait for a second training without knowing why."""
    wanted = asked(lesson)
    for folder in folders:
        differs = differences(wanted, read_facts(folder / CLASSIFIER))
        if differs:
            log.info("training anew: the finished one in %s differs in %s", folder, " and ".join(differs))
        else:
            told = "has other last bits, of another machine or version; hpm-bench run --finetuned %s takes it as it is"
            log.info(f"training anew: the finished one in %s {told}", folder, folder.parent)


def _train(lesson: Lesson, folder: Path, key: str, compute: Compute) -> Trained:
    path, every = folder / "checkpoint.safetensors", compute.checkpoint_every
    with as_many_threads(_begun_with(path, key)), room_for(f"{lesson.tuning.name} to learn", _MORE_MEMORY):
        loop = Loop(lesson)
        loop.with_what_fits(lambda x: prefer_channels_last(loop.learner.classifier, x))
        result = loop.run(path, key=key, every=every, compiled=compute.compiled)
        return Trained(result, _made(loop), loop.steps)


def _begun_with(checkpoint: Path, key: str) -> int:
    """Threads of what is continued, since its last bits depend on them; as many as there are where nothing is."""
    facts = read_facts(checkpoint)
    begun = facts.get("threads") if facts is not None and facts.get("key") == key else None
    if type(begun) is not int or begun < 1:
        return torch.get_num_threads()
    if begun != torch.get_num_threads():
        log.info("training in %d threads, as it began", begun)
    return begun


def _made(loop: Loop) -> Made:
    lesson = loop.lesson
    return Made(
        **learned_from(lesson),
        precision=str(torch.float32 if lesson.tuning.recipe.from_features else lesson.precision).removeprefix("torch."),
        device=lesson.classifier.prototypes.device.type,
        at_once=loop.position.at_once,
        compiled=loop.position.compiled,
        folded=loop.folded is not None,
        threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy")},
            "hpm-robustbench": f"{version('hpm-robustbench')} ({code_sha256(*CODE)[:8]})",
        },
    )


def _unfinished(model: str, tuning: Tuning, folder: Path) -> UsageProblem:
    options = shlex.join(tuning.options)
    return UsageProblem(
        wanted=f"a fine-tuned {model} in {folder}",
        got="none that is whole, and nothing is trained here",
        next_step=f"repeat the hpm-bench run with {options} that tried it; or name its folder with --output, or with "
        "--finetuned if another machine has made it",
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


def lesson_of(wrapped: Wrapped, training: ExampleSet, threat: Threat, tuning: Tuning) -> Lesson:
    """What is asked for, on whatever machine; see ``finetune_once``."""
    if training.split != "train":
        raise no_training_images(training.dataset.name)
    return Lesson(wrapped.classifier, training, attacked_under(threat), tuning, fixed=wrapped.fixed)


def attacked_under(threat: Threat) -> ThreatModel:
    """The threat model, if there is an attack under it that a training could meet.

    Raises:
        UsageProblem: there is none.
    """
    if isinstance(threat, ThreatModel):
        return threat
    raise UsageProblem(
        wanted="a norm and a budget for the attack inside training",
        got=f"the threat model {threat}",
        next_step="give --threat-model Linf and --eps, or leave --recipe out",
    )


def no_training_images(dataset: str) -> UsageProblem:
    """What to say where a fine-tuning is asked for and there is nothing to learn from."""
    return UsageProblem(
        wanted=f"training images of {dataset}, to fine-tune on",
        got="test images alone",
        next_step="give --data with x_train and y_train in the .npz file, with train-images-idx3-ubyte and "
        "train-labels-idx1-ubyte beside the test files, or with a folder train/ of class folders beside test/ or val/",
    )


def _key(lesson: Lesson) -> str:
    """Hash of all that was asked, and of all else on which the last bit of a weight depends."""
    facts = {
        "asked": asked(lesson),
        "start": fit_key(lesson.classifier, lesson.training, lesson.tuning.recipe.batch_size),
        "prototypes": digest(lesson.classifier.prototypes.tolist()),
        "precision": str(lesson.precision),
        "device": lesson.classifier.prototypes.device.type,
        "software": code_sha256(*CODE),
    }
    return digest(facts)[:16]


def _read(folder: Path, lesson: Lesson, key: str) -> Finetuned | None:
    saved = read_finished(folder, key)
    return None if saved is None else restored(folder, lesson, saved)
