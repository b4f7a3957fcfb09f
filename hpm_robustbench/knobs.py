"""HPM's knobs as others have written them down: words on a command line, or values in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hpm_robustbench.errors import InvalidInput, UnknownName, UsageProblem, first_line
from hpm_robustbench.hpm.config import HPMConfig

_DEFAULTS = {field.name: field.default for field in fields(HPMConfig)}


def defence_from_words(knobs: Sequence[str]) -> HPMConfig:
    """The definition of HPM with ``knob=value`` texts, each read as the default's type.

    Raises:
        UnknownName: no such knob.
        UsageProblem: a value that a knob cannot have.
    """
    chosen: dict[str, Any] = {}
    for knob in knobs:
        name, _, text = knob.partition("=")
        if name not in _DEFAULTS:
            raise UnknownName("knob of HPM", name, _DEFAULTS)
        chosen[name] = _read(name, text, _DEFAULTS[name])
    return HPMConfig(**chosen)


def _read(name: str, text: str, default: object) -> bool | int | float | str:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.casefold()]
        if isinstance(default, (int, float)):
            return type(default)(text)
        return text if name != "tau" or text == "fit" else float(text)
    except (KeyError, ValueError) as error:
        raise UsageProblem(
            wanted=f"a value for {name} like {default}", got=repr(text), next_step=f"write --hpm {name}={default}"
        ) from error


def defence_told(knobs: dict[str, Any], where: str) -> HPMConfig:
    """The definition of HPM that a file tells of.

    Raises:
        InvalidInput: this version knows no such knob, or no such value of one.
    """
    unknown = sorted(knobs.keys() - _DEFAULTS.keys())
    if unknown:
        raise _strange(where, f"{', '.join(unknown)!r:.80} among the knobs")
    try:
        return HPMConfig(**knobs)
    except UsageProblem as error:
        raise _strange(where, f"{error.got:.60} where it wants {error.wanted}") from error
    except (TypeError, OverflowError) as error:  # a value of another kind, or a number beyond any
        raise _strange(where, first_line(error)) from error


def _strange(where: str, got: str) -> InvalidInput:
    return InvalidInput(
        wanted=f"a definition of HPM that this version knows in {where}",
        got=got,
        next_step="correct its knobs, or install the version of hpm-robustbench that wrote it",
    )
