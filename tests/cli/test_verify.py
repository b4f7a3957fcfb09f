"""The same command, asked to verify, judges in a process of its own what an earlier one has kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def test_kept_images_break_again_in_another_process(place, hpm_bench: Callable, tmp_path: Path) -> None:
    command = place.run("--output", tmp_path, "--batching", "solo", "--format", "json")
    done = hpm_bench(*command, "--keep-images")
    assert done.code == 0, done.err
    evaluations = json.loads(done.out)["hpm_bench"]["evaluations"]
    assert all(evaluation["diagnostics"]["n"] > 0 for evaluation in evaluations)
    verified = hpm_bench(*command, "--verify")
    assert verified.code == 0, verified.err
    fallen = [
        {"run_key": e["run_key"], "kept": e["clean"]["count"] - e["robust"]["count"], "lost": 0} for e in evaluations
    ]
    assert json.loads(verified.out) == fallen
    assert sum(found["kept"] for found in fallen) > 0
