"""From what a person asks of a run, in words, to options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.knobs import defence_from_words
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, Composition
from hpm_robustbench.training.recipe import Tuning, find_control, find_recipe
from hpm_robustbench.weights import Trust


def run_options(
    *,
    batching: Sequence[str],
    knobs: Sequence[str],
    batches: str = Composition.IID.value,
    checksums: Path | None = None,
    allow_global: Sequence[str] = (),
    recipe: str | None = None,
    control: str | None = None,
    tune: Sequence[str] = (),
    **rest: Any,
) -> RunOptions:
    """Options from their text forms; ``rest`` are RunOptions' own fields.

    Raises:
        UnknownName: no such knob, recipe or control.
        UsageProblem: a value that a knob cannot have, a control or knob of no recipe, or batches that nobody fills.
    """
    composition = Composition(batches)
    if composition is not Composition.IID and Batching.JOINT.value not in batching:
        raise UsageProblem(
            wanted=f"--batching joint beside --batches {batches}",
            got=f"batching {' and '.join(batching)}, where no image has mates that could be chosen",
            next_step="add --batching joint, or leave --batches out",
        )
    return RunOptions(
        batchings=tuple(Batching(b) for b in dict.fromkeys(batching)),
        composition=composition,
        defence=defence_from_words(knobs),
        trust=Trust(checksums, tuple(allow_global)),
        tuning=_tuning(recipe, control, tune, rest.get("seed", RunOptions.seed)),
        **rest,
    )


def tuning_of(options: Sequence[str], seed: int) -> Tuning:
    """The fine-tuning that ``Tuning.options`` ask for, which may be somebody else's words.

    Raises:
        UnknownName: no such recipe, control or knob.
        UsageProblem: other options, or a value that a knob cannot have.
    """
    asked: dict[str, list[str]] = {"--recipe": [], "--control": [], "--tune": []}
    for option, value in zip(options[::2], options[1::2], strict=False):
        asked.get(option, []).append(value)
    recipes, controls, knobs = asked.values()
    tuning = _tuning(recipes[0] if recipes else None, controls[0] if controls else None, knobs, seed)
    if tuning is None or tuning.options != list(options):
        raise UsageProblem(
            wanted="the options of a fine-tuning, as --recipe uniform-v1 --tune epochs=3",
            got=" ".join(options)[:160],
            next_step="ask its publisher to push it again",
        )
    return tuning


def _tuning(recipe: str | None, control: str | None, knobs: Sequence[str], seed: int) -> Tuning | None:
    """A recipe with ``knob=value`` texts in place of its own values, perhaps as a control."""
    if recipe is None:
        if control is not None or knobs:
            raise UsageProblem(
                wanted="a recipe beside --control and --tune", got="none", next_step="add --recipe uniform-v1"
            )
        return None
    changes = {name: text for name, _, text in (knob.partition("=") for knob in knobs)}
    return Tuning(find_recipe(recipe).with_knobs(changes), None if control is None else find_control(control), seed)
