"""Which weights may be published again: a rule for everything that leaves this machine. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.zoo.spec import ModelSpec

FREE = frozenset({"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0"})
"""Licences that let anybody publish."""
_ON_THE_HUB = {*(name.lower() for name in FREE), "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "gpl-3.0"}


def check_licences(specs: Iterable[ModelSpec], allowed: Sequence[str] = ()) -> None:
    """See that all weights may be published again.

    Args:
        specs: which models.
        allowed: further licences, by name, under which the caller may publish.

    Raises:
        UsageProblem: a licence that nobody knows, or that forbids some uses.
    """
    refused = [spec for spec in specs if spec.paper.license not in FREE.union(allowed)]
    if refused:
        first = refused[0].paper.license
        raise UsageProblem(
            wanted="weights that anybody may publish",
            got=", ".join(f"{spec.name} ({spec.paper.license})" for spec in refused),
            next_step=f"leave them out; or, if its terms let you publish them there, add --allow-license {first}",
        )


def hub_licence(name: str) -> str:
    """The Hub's spelling of a licence; ``other`` for one that it does not list."""
    return name.lower() if name.lower() in _ON_THE_HUB else "other"
