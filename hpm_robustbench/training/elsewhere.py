"""A fine-tuning that another machine has finished, taken as it is: nobody trains the same thing a second time.

How it was made is its folder's word. What it claims is held against the model, the images and the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.ledger.fine_tuning import FineTuning
from hpm_robustbench.load import Wrapped
from hpm_robustbench.threat import Threat
from hpm_robustbench.training.finetuned import lesson_of
from hpm_robustbench.training.header import CLASSIFIER, RECORD, read_told
from hpm_robustbench.training.kept import (
    Finetuned,
    Kept,
    asked,
    broken,
    differences,
    folders_of,
    learned_from,
    read_finished,
    restored,
)
from hpm_robustbench.training.learner import learned_names
from hpm_robustbench.training.loop import Lesson
from hpm_robustbench.training.published import publications, read_published
from hpm_robustbench.training.recipe import Tuning

_ROUNDING = 1e-2
"""Share by which class means may differ between devices and precisions."""
_TOLD = "The fine-tuning was taken as it was found: this trial neither made it nor saw how it was made."


def take_finished(
    model: str, wrapped: Wrapped, training: ExampleSet, threat: Threat, tuning: Tuning, place: Path
) -> Finetuned:
    """Read a finished fine-tuning of the same model, images, budget and recipe, whatever has computed it.

    Args:
        model: name of the base model.
        wrapped: the classifier before it was fine-tuned.
        training: images that it has learned from.
        threat: what the training attack could do.
        tuning: recipe, control and seed.
        place: the folder ``finetuned`` that was brought here, or one of publications.

    Raises:
        UsageProblem: there is none that is whole, only of something else, or more than one.
        IntegrityError: it does not fit the model, or contradicts what is known of it.
    """
    lesson = lesson_of(wrapped, training, threat, tuning)
    folder = _the_one(lesson, model, place)
    published = not (folder / CLASSIFIER).exists()
    saved = read_published(folder, lesson.classifier) if published else read_finished(folder, folder.name[-16:])
    if saved is None:
        raise _refused(model, tuning, place, got=f"{folder.name}, which is not whole or not what its name says")
    taken = restored(folder, lesson, saved)
    for contradiction in (*_in_tensors(lesson, taken.classifier), *_in_claims(lesson, taken.course)):
        raise broken(folder, contradiction)
    return replace(taken, course=taken.course.model_copy(update={"reports": [*taken.course.reports, _TOLD]}))


def _the_one(lesson: Lesson, model: str, place: Path) -> Path:
    wanted, tuning = asked(lesson), lesson.tuning
    told = publications(place, tuning)
    if not (place / RECORD).exists():  # below a publication nobody has looked at anything
        told |= {folder: read_told(folder / CLASSIFIER) or {} for folder in folders_of(model, tuning, place)}
    found = {folder: differences(wanted, each.get("facts")) for folder, each in told.items()}
    fitting = {told[folder]["sha256"]: folder for folder, differs in found.items() if not differs}
    shown = {folder: folder.relative_to(place).as_posix() if folder != place else place.name for folder in told}
    if len(fitting) > 1:  # one training may be there twice, as it was kept and as it was published
        raise UsageProblem(
            wanted=f"one finished {model}_{tuning.name} in {place}",
            got=f"{len(fitting)} that fit: {', '.join(shown[folder] for folder in fitting.values())}",
            next_step="move all but one away",
        )
    if not fitting:
        others = [f"{shown[folder]}, which differs in {' and '.join(differs)}" for folder, differs in found.items()]
        raise _refused(model, tuning, place, got="; ".join(others) or "none")
    return next(iter(fitting.values()))


def _refused(model: str, tuning: Tuning, place: Path, got: str) -> UsageProblem:
    return UsageProblem(
        wanted=f"{place / f'{model}_{tuning.name}-...'}, as `hpm-bench finetune` has left it, or a publication of it",
        got=got,
        next_step="it has to be trained with the same model, images, --n-ex, budget, knobs and seed: ask for these, or "
        "bring the whole folder of another training",
    )


def _in_tensors(lesson: Lesson, taken: HPMClassifier) -> Iterator[str]:
    """What a training by this recipe cannot have left."""
    learned, before = lesson.tuning.learned, lesson.classifier
    learns, tensors = learned_names(before, learned, lesson.fixed), taken.state_dict()
    for name, tensor in before.state_dict().items():
        if name.startswith(("backbone.", "fc.")) and name not in learns and not tensor.equal(tensors[name]):
            yield f"another {name} than the base model's, which the recipe leaves alone"
    beta, tau, knob = taken.beta, taken.tau.item(), taken.config.tau
    if not ((beta >= 0) & (beta <= 1)).all() or ("beta" not in learned and not (beta == taken.config.beta).all()):
        yield "another beta than the recipe lets it have"
    if not lesson.tuning.recipe.epochs and not taken.prototypes.allclose(before.prototypes, rtol=_ROUNDING):
        yield "other prototypes than the class means, which the recipe leaves alone"
    if tau <= 0 or ("tau" not in learned and knob != "fit" and tau != taken.tau.new_tensor(knob).item()):
        yield "another tau than the recipe lets it have"


def _in_claims(lesson: Lesson, course: FineTuning) -> Iterator[str]:
    """What cannot be true of these images and this recipe."""
    known = learned_from(lesson)
    for name, value in known.items():
        if getattr(course.made, name) != value:
            yield f"{name} {getattr(course.made, name)!r} where it is {value!r}"
    epochs = lesson.tuning.recipe.epochs + 1  # a stranger's number; no list is made that long
    if len(course.curves) != epochs or [point.epoch for point in course.curves] != list(range(epochs)):
        yield "curves of other epochs than the recipe's"
    for point in course.curves:
        begun, known_classes = point.epoch > 0, range(lesson.training.dataset.n_classes)
        if (point.loss is not None) != begun or (point.clean is not None) != (known["held_out"] > 0):
            yield f"a loss or an accuracy in epoch {point.epoch} that nobody could measure there, or none"
        if point.unsupported != [number for number in known_classes if begun and number in point.unsupported]:
            yield f"classes in epoch {point.epoch} that the dataset does not have, or that nobody could count there"


def check_made_alike(finished: Mapping[Tuning, Kept]) -> None:
    """See that HPM and the controls beside it were made by the same software in the same way.

    Raises:
        UsageProblem: they were not, and their difference may not be HPM's.
    """
    (first, way), *others = ((tuning.name, _way(kept.course)) for tuning, kept in finished.items())
    for name, other in others:
        both = sorted(way.keys() & other)
        differing = [f"{topic} {way[topic]} and {other[topic]}" for topic in both if way[topic] != other[topic]]
        if differing:
            raise UsageProblem(
                wanted="HPM and its controls fine-tuned in one precision, on one kind of device, by the same software",
                got=f"{first} and {name} made otherwise: {', '.join(differing)}",
                next_step="fine-tune all of them on one machine with --controls; or try each without --controls",
            )


def _way(course: FineTuning) -> dict[str, str]:
    """What has a say in how the numbers come out, as far as it is told."""
    made = course.made
    assert made is not None
    told = {"precision": made.precision, "device": made.device, **made.versions}
    return {topic: told[topic] for topic in ("precision", "device", "torch", "hpm-robustbench") if topic in told}
