"""Which weights may be published again: a rule for everything that leaves this machine. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.zoo.spec import ModelSpec

FREE = frozenset({"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0"})
"""Licences that let anybody publish."""
_ON_THE_HUB = {*(name.lower() for name in FREE), "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "gpl-3.0"}


def licences_of(spec: ModelSpec, locator: str, zoo: Iterable[ModelSpec]) -> tuple[str, ...]:
    """Every licence under which one of a model's files is published: its own, and those of models that share the file.

    A member of an ensemble may be another author's network; the file stays that author's.
    """
    shared = {other.paper.license for other in zoo if locator in other.weights.full_locators}
    return tuple(sorted({spec.paper.license, *shared}))


def check_licences(specs: Iterable[ModelSpec], allowed: Sequence[str] = (), zoo: Sequence[ModelSpec] = ()) -> None:
    """See that all weights may be published again.

    Args:
        specs: which models.
        allowed: further licences, by name, under which the caller may publish.
        zoo: all models that may share a file with these.

    Raises:
        UsageProblem: a licence that nobody knows, or that forbids some uses.
    """
    free = FREE.union(allowed)
    refused = [(spec.name, licence) for spec in specs for licence in _licences_of(spec, zoo) if licence not in free]
    if refused:
        first = refused[0][1]
        raise UsageProblem(
            wanted="weights that anybody may publish",
            got=", ".join(f"{name} ({licence})" for name, licence in refused),
            next_step=f"leave them out; or, if its terms let you publish them there, add --allow-license {first}",
        )


def _licences_of(spec: ModelSpec, zoo: Sequence[ModelSpec]) -> Iterable[str]:
    """Its own first, which also binds a network that came from memory and has no file."""
    of_files = (each for file in spec.weights.full_locators for each in licences_of(spec, file, zoo))
    return dict.fromkeys((spec.paper.license, *of_files))


def hub_licence(name: str) -> str:
    """The Hub's spelling of a licence; ``other`` for one that it does not list."""
    return name.lower() if name.lower() in _ON_THE_HUB else "other"
