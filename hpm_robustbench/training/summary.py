"""What a terminal shows of finished fine-tunings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpm_robustbench.report.tables import render_table
from hpm_robustbench.training.kept import Kept
from hpm_robustbench.training.recipe import Tuning


def facts_of(tuning: Tuning, finetuned: Kept) -> dict[str, Any]:
    """One fine-tuning as plain JSON values."""
    return {
        "name": tuning.name,
        "folder": str(finetuned.folder),
        **finetuned.course.model_dump(),
    }


def render_finetuned(finished: Mapping[Tuning, Kept]) -> str:
    """One line per fine-tuning, then what a reader should know, then where the classifiers lie."""
    table = render_table(
        ["fine-tuned by", "epochs", "loss", "clean %", "was", "under PGD %", "was"],
        [_row(tuning, finetuned) for tuning, finetuned in finished.items()],
    )
    reports = [f"{tuning.name}: {report}" for tuning, done in finished.items() for report in done.course.reports]
    folders = [f"{tuning.name}: {done.folder}" for tuning, done in finished.items()]
    held_out = (
        "Accuracies are those of held-out training images, each answered alone; the base model may have been trained "
        "on them, and what was lost on new images is told by hpm-bench run. Under PGD, HPM and C3 show far "
        "more than stands on trial, since their gradient misleads: do not compare them with the others."
    )
    return "\n\n".join(filter(None, [table, "\n".join([held_out, *reports]), "\n".join(folders)]))


def _row(tuning: Tuning, finetuned: Kept) -> list[str]:
    first, last = finetuned.course.curves[0], finetuned.course.curves[-1]
    loss = "-" if last.loss is None else f"{last.loss:.3f}"
    shares = (last.clean, first.clean, last.robust, first.robust)
    return [tuning.name, str(last.epoch), loss, *("-" if share is None else f"{100 * share:.2f}" for share in shares)]
