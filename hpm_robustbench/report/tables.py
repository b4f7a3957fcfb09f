"""Plain text tables, whatever is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hpm_robustbench.errors import printable

_NUMBER = re.compile(r"-|(\d[\d.,/-]*(e[+-]\d+)?[xkM]?)?")
"""A number with its unit, a share, an interval or none of these; no hash, though that may begin with a digit."""


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned text columns, right-aligned where every cell is a number."""
    header, rows = [printable(cell) for cell in header], [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [bool(rows) and all(map(_NUMBER.fullmatch, column[1:])) for column in columns]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  ".join(placed).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def render_rows(rows: Sequence[Mapping[str, Any]], *, empty: str) -> str:
    """A table of equal-keyed rows, or ``empty``."""
    if not rows:
        return empty
    return render_table(
        list(rows[0]), [["-" if value is None else str(value) for value in row.values()] for row in rows]
    )


def render_facts(facts: Mapping[str, Any]) -> str:
    """One ``name  value`` line per fact."""
    width = max(len(name) for name in facts)
    said = {name: "-" if value is None else printable(str(value)) for name, value in facts.items()}
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in said.items())
