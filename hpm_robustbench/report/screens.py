"""A screen as a table that says what it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpm_robustbench.ledger.coupling import standing
from hpm_robustbench.ledger.matrix import matrix_rows
from hpm_robustbench.report.tables import render_rows

if TYPE_CHECKING:
    from hpm_robustbench.pipeline import Screen

_FEW = "A screen, not a result: few attacks, upper bounds in percent, no card."

_BY_ITSELF = """\
A screen, not a result: counts of images, each attack by itself on all that are right without any. fooled: the attacked
surrogate was wrong; broken: the target was; only: by no other attack; beyond: broken, though it stood in the end of
the whole trial, if that is finished (the same command without --screen)."""


def screen_rows(screen: Screen) -> list[dict[str, Any]]:
    """What stood after a screen, one row per trial; of a matrix, one for each step of a trial."""
    if screen.is_matrix:
        return matrix_rows(screen.records, screen.in_turn)
    return [
        {
            "protocol": record.plan.protocol,
            "model": record.plan.model,
            "target": record.plan.target,
            "batching": record.plan.batching.value,
            "batch_size": min(record.plan.batch_size, record.n),
            "batches": record.plan.composition.value,
            "n": record.n,
            "clean": round(100 * sum(record.clean_correct) / record.n, 2),
            "at_most": round(100 * sum(standing(record, screen.records)) / record.n, 2),
            "passes_per_image": round(record.passes / record.n),
        }
        for record in screen.records
    ]


def render_screen(screen: Screen) -> str:
    """The same as a table that says what it is not."""
    rows = [{key.replace("_", " "): value for key, value in row.items()} for row in screen_rows(screen)]
    return f"{render_rows(rows, empty='')}\n\n{_BY_ITSELF if screen.is_matrix else _FEW}"
