"""How far each training is, read from the header of what it has left; no tensor is loaded. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpm_robustbench.training.header import CLASSIFIER, read_facts


def trainings(folder: Path) -> list[dict[str, Any]]:
    """One row for each folder below ``folder`` that holds a classifier, or a checkpoint on the way to one."""
    rows = []
    for each in sorted(folder.glob("*/")):
        finished = read_facts(each / CLASSIFIER)
        facts = finished or read_facts(each / "checkpoint.safetensors")
        if facts is not None:
            steps = facts.get("steps", "?")
            done = steps if finished else facts.get("step", "?")
            state = "finished" if finished else "unfinished"
            rows.append({"training": each.name, "steps": f"{done}/{steps}", "state": state})
    return rows
