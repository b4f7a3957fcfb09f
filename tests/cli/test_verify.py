"""The same command, asked to verify, judges in a process of its own what an earlier one has kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path


def test_kept_images_break_again_in_another_process(place, hpm_bench: Callable, tmp_path: Path) -> None:
    command = place.run("--output", tmp_path, "--batching", "solo", "--format", "json")
    done = hpm_bench(*command, "--keep-images")
    assert done.code == 0, done.err
    evaluations = json.loads(done.out)["hpm_bench"]["evaluations"]
    assert all(evaluation["diagnostics"]["n"] > 0 for evaluation in evaluations)
    assert {evaluation["target"]: evaluation["steps"][-1]["name"] for evaluation in evaluations} == {
        "base": "transfer@hpm.batching-solo",
        "hpm": "transfer@base",
    }
    verified = hpm_bench(*command, "--verify")
    assert verified.code == 0, verified.err
    fallen = {e["run_key"]: e["clean"]["count"] - e["robust"]["count"] for e in evaluations}
    assert {row["run_key"]: row["broken_again"] for row in json.loads(verified.out)} == fallen
    assert sum(fallen.values()) > 0
    shutil.rmtree(next(tmp_path.glob("runs/*/images")))
    missing = hpm_bench(*command, "--verify")
    assert missing.code == 4
    assert "no such file" in missing.err
    assert missing.out == ""
    other = hpm_bench(*command, "--verify", "--seed", "1")
    assert "finished run" in other.err, "the card there is of another seed, and in nobody's way"
