"""Other processes import what this one does, and what becomes of them is told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpm_robustbench import workers
from hpm_robustbench.processes import python_command
from hpm_robustbench.weights.conversion import convert

PLANTED = ("runpy", "json", "torch", "click", "hpm_robustbench", "sitecustomize")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder of files that tell if anybody imports them, named like what a process needs."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'a').write({name!r})")
    return folder


def test_nothing_is_imported_from_the_folder_that_a_process_starts_in(planted: Path) -> None:
    command = [*python_command("hpm_robustbench"), "--version"]
    done = subprocess.run(command, cwd=planted, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "version" in done.stdout
    assert not (planted.parent / "run").exists()


def test_the_reader_of_pickles_imports_nothing_that_lies_beside_them(planted: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.ones(2)}, planted / "model.pt")
    convert(planted / "model.pt", planted / "model.safetensors")
    assert (planted / "model.safetensors").is_file()
    assert not (planted.parent / "run").exists()


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("import sys; print('first', file=sys.stderr); sys.exit('no room for it')", "code 1: no room for it"),
    ],
)
def test_how_a_worker_ended_is_told(
    program: str, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "python_command", lambda _: [sys.executable, "-c", program])
    with caplog.at_level(logging.WARNING), workers._other_workers(3, ["run"]) as wait:
        wait()
    assert caplog.messages == [f"a worker ended with {told}; its share is done here"] * 2


def test_a_worker_that_did_its_share_is_not_worth_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "python_command", lambda _: [sys.executable, "-c", ""])
    with caplog.at_level(logging.WARNING), workers._other_workers(2, ["run"]) as wait:
        wait()
    assert caplog.messages == []


def test_no_worker_outlives_who_started_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = f"import os, sys, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    monkeypatch.setattr(workers, "python_command", lambda _: [sys.executable, "-c", program])
    with workers._other_workers(2, ["run"]):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
