"""The matrix surrogate x attack: what each step of a trial breaks by itself, and what no other step breaks.

In a trial a step meets only what all before it have left standing. Here each has a run of its own in which it meets
every image, for somewhat more passes than the trial's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hpm_robustbench.ledger.plan import QUICK, Plan
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.ledger.transfers import with_transfers

MATRIX = "matrix"
"""Name of the screen and of its runs' protocol."""


def members(plan: Plan) -> list[Plan]:
    """A run for each step of a trial, by itself; in the group of screens, of which nothing is put together."""
    return [replace(plan, protocol=MATRIX, steps=(replace(step, group=QUICK),), lender="") for step in plan.steps]


def matrix_rows(alone: Sequence[RunRecord], in_turn: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One row for each run of a member, in counts of images that are right without any attack.

    ``fooled`` had the surrogate wrong (None where that is the target), ``broken`` the target; ``only`` were broken by
    no other member; ``beyond`` stood in the end of the whole trial (None if that is not finished).

    Args:
        alone: finished runs of members.
        in_turn: the finished runs of whole trials, as far as there are any.
    """
    broken = {record.run_key: _broken(record) for record in alone}
    models = {record.plan.model for record in in_turn}
    whole = [end for model in models for end in with_transfers([r for r in in_turn if r.plan.model == model])]
    stood = {record.plan.trial_of_model: _standing(record) for record in whole}
    rows = []
    for record in alone:
        trial, found = record.plan.trial_of_model, broken[record.run_key]
        others = (broken[r.run_key] for r in alone if r is not record and r.plan.trial_of_model == trial)
        rows.append(
            {
                "model": record.plan.model,
                "batching": record.plan.batching.value,
                "step": record.plan.steps[0].name,
                "right": sum(record.clean_correct),
                "fooled": record.steps[-1].fooled_among(record.clean_correct),
                "broken": len(found),
                "only": len(found.difference(*others)),
                "beyond": len(found & stood[trial]) if trial in stood else None,
                "passes_per_image": round(record.passes / record.n),
            }
        )
    return rows


def _standing(record: RunRecord) -> set[int]:
    return {row for row, stands in enumerate(record.standing()) if stands}


def _broken(record: RunRecord) -> set[int]:
    return {row for row, right in enumerate(record.clean_correct) if right} - _standing(record)
