"""A fine-tuning that another machine has finished, taken as it is: nobody trains the same bits a second time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.load import Wrapped
from hpm_robustbench.threat import Threat
from hpm_robustbench.training.checkpoint import Saved
from hpm_robustbench.training.finetuned import lesson_of
from hpm_robustbench.training.kept import Finetuned, asked, folders_of, read_finished, restored
from hpm_robustbench.training.loop import Lesson
from hpm_robustbench.training.recipe import Tuning

_TOLD = "The fine-tuning was taken as it was found: where it was tried, nobody trained or checked it."


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
        place: the folder ``finetuned`` that was brought here.

    Raises:
        UsageProblem: there is none that is whole, only of something else, or more than one.
        IntegrityError: it does not fit the model.
    """
    lesson = lesson_of(wrapped, training, threat, tuning)
    folders = folders_of(model, tuning, place)
    found = {folder: saved for folder in folders if (saved := _read(folder)) is not None}
    fitting = [folder for folder, saved in found.items() if not _differences(lesson, saved)]
    if len(fitting) != 1:
        got = _several(fitting) if fitting else _none(lesson, found)
        raise UsageProblem(
            wanted=f"one finished fine-tuning in {place / f'{model}_{tuning.name}-...'}, as `hpm-bench finetune` has "
            "left it",
            got=got,
            next_step="bring it from where it was trained for the same model, images, budget, knobs and seed; or leave "
            "--finetuned out, to train here",
        )
    (folder,) = fitting
    taken = restored(folder, lesson, found[folder])
    return replace(taken, course=taken.course.model_copy(update={"reports": [*taken.course.reports, _TOLD]}))


def _read(folder: Path) -> Saved | None:
    """What lies there, if it is what the folder's name says."""
    return read_finished(folder, folder.name[-16:])


def _differences(lesson: Lesson, saved: Saved) -> list[str]:
    """Topics in which a training is another than the one that is asked for."""
    told = saved.facts.get("asked")
    if not isinstance(told, dict):
        return ["version of this program, which did not yet write down what it was asked for"]
    return [topic for topic, value in asked(lesson).items() if told.get(topic) != value]


def _several(folders: list[Path]) -> str:
    return f"{len(folders)}: {', '.join(folder.name for folder in folders)}; move all but one away"


def _none(lesson: Lesson, found: dict[Path, Saved]) -> str:
    others = [
        f"{folder.name}, of another {' and '.join(_differences(lesson, saved))}" for folder, saved in found.items()
    ]
    return "; ".join(others) or "none"
