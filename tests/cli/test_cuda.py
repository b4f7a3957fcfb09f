"""On a GPU the command line keeps what it promises on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.cuda


def command(place, output: Path, device: str) -> list[str]:
    run = place.run("--screen", "quick", "--output", output, "--device", device)
    return [sys.executable, "-m", "hpm_robustbench", *run]


def finish(place, output: Path, device: str) -> None:
    done = subprocess.run(
        command(place, output, device), env=place.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def steps(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.glob("runs/*/shards/*/[0-9]*.json")}


def verdicts(output: Path) -> dict[tuple[str, ...], list[int]]:
    """Of each step of each shard of each trial; what a run's folder is called depends on the device."""
    found = {}
    for path in output.glob("runs/*/shards/*/[0-9]*.json"):
        plan = json.loads((path.parents[2] / "plan.json").read_text())
        place = plan["target"], plan["batching"], path.parent.name, path.name
        found[place] = json.loads(path.read_text())["payload"]["verdict"]
    return found


def test_killed_on_a_gpu_the_same_command_gives_the_same_bytes(place, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(place, whole, "cuda")
    process = subprocess.Popen(
        command(place, cut, "cuda"),
        env=place.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(steps(cut)) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 5 <= len(steps(cut)) < len(steps(whole))
    finish(place, cut, "cuda")
    assert steps(cut) == steps(whole)


def test_a_gpu_breaks_what_a_cpu_breaks(place, tmp_path: Path) -> None:
    here, there = tmp_path / "cpu", tmp_path / "cuda"
    for output in (here, there):
        finish(place, output, output.name)
    expected, found = verdicts(here), verdicts(there)
    assert found.keys() == expected.keys()
    pairs = [pair for step in expected for pair in zip(expected[step], found[step], strict=True)]
    assert len(pairs) > 100
    assert sum(a != b for a, b in pairs) <= 0.05 * len(pairs)  # rounding tips an image that lies on the very border


def test_a_device_that_is_not_there_is_named(place, hpm_bench) -> None:
    result = hpm_bench(*place.run("--device", "cuda:99"))
    assert result.code == 2
    assert "'cuda:99'" in result.err
    assert "Traceback" not in result.err
