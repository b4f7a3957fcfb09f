"""What became of each image: the step that took it and the class it was then taken for, short enough for a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import Field

from hpm_robustbench.ledger.record import RunRecord

Fallen = Annotated[str, Field(pattern=r"^[0-9]{1,9}:[0-9]{1,9}( [0-9]{1,9}:[0-9]{1,9})*$")]
"""Images that fell to one step, ``row:class`` each: ``3:5 17:8``."""
Provenance: TypeAlias = dict[str, Fallen]
"""What fell to each step that took anything, ``clean`` included."""


def provenance_of(record: RunRecord) -> Provenance:
    """Read it off the verdicts of a finished run."""
    lost_to = record.lost_to
    fallen = {
        step.name: [f"{row}:{step.predicted[row]}" for row in range(record.n) if lost_to[row] == step.name]
        for step in record.steps
    }
    return {name: " ".join(rows) for name, rows in fallen.items() if rows}


def fates(provenance: Mapping[str, str]) -> dict[int, tuple[str, int]]:
    """Of each row that fell, the step and the class.

    Raises:
        ValueError: a row fell twice.
    """
    found: dict[int, tuple[str, int]] = {}
    for step, fallen in provenance.items():
        for row, taken_for in (map(int, pair.split(":")) for pair in fallen.split()):
            if row in found:
                raise ValueError(f"row {row} fell to {found[row][0]} and to {step}")
            found[row] = step, taken_for
    return found
