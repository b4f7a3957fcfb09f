"""Killed at any moment, with any number of workers, the same command ends with the same bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("uninterrupted")
    command = [sys.executable, "-m", "hpm_robustbench", *place.run("--output", output)]
    subprocess.run(command, check=True, env=place.environment(), capture_output=True)
    return contents(output)


def start(place, output: Path, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpm_robustbench", *place.run("--output", output, "--workers", workers)]
    return subprocess.Popen(
        command,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background may have told its children to ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )


def wait_for_steps(output: Path, n: int, process: subprocess.Popen[str]) -> None:
    while len(list(output.glob("runs/*/shards/*/[0-9]*.json"))) < n and process.poll() is None:
        time.sleep(0.01)


def test_killed_at_random_moments_the_same_command_gives_the_same_bytes(
    place, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    moments = random.Random(0)
    total = sum("/shards/" in name for name in uninterrupted)
    for written in sorted(moments.sample(range(1, total), 3)):
        process = start(place, tmp_path, workers=2)
        wait_for_steps(tmp_path, written, process)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
    torn = moments.choice(sorted(tmp_path.glob("runs/*/shards/*/[0-9]*.json")))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    last = start(place, tmp_path)
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert f"ignoring {torn}" in err
    found = contents(tmp_path)
    leftovers = {name for name in found if Path(name).name.startswith(".")}  # of a write that a kill cut short
    assert {name: found[name] for name in found.keys() - leftovers} == uninterrupted


def test_a_finished_run_is_not_done_again(place, uninterrupted, hpm_bench, tmp_path: Path) -> None:
    for name, content in uninterrupted.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    lent = list(tmp_path.glob("runs/*/broken/*/*.safetensors"))
    assert lent, "images of the base model, which HPM has been shown"
    lent[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/shards/*/*.json")}
    result = hpm_bench(*place.run("--output", tmp_path))
    assert result.code == 0, result.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not lent[0].exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_run_says_how_to_resume(place, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(place, tmp_path)
    wait_for_steps(tmp_path, 2, process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert "Run the same command again to continue" in err
    assert "Traceback" not in err


def test_status_tells_how_far_a_run_is(place, hpm_bench: Callable, tmp_path: Path) -> None:
    process = start(place, tmp_path)
    wait_for_steps(tmp_path, 2, process)
    process.kill()
    process.communicate()
    result = hpm_bench("status", "--output", tmp_path)
    assert result.code == 0
    assert "unfinished" in result.out
    assert "/20" in result.out
