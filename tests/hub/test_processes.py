"""The command itself, in processes of their own: two at once, and a Hub that is killed while it is talked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import loopback_hub
import pytest

TOKEN = "hf_CANARY" + "z" * 25
REPO = "me/digits"
FILES = {".gitattributes", "NOTICE", "README.md", "config.json", "hpm_card.json", "model.safetensors", "robustness.svg"}
TRIAL = ["--n-ex", "2", "--batch-size", "2", "--batching", "solo", "--workers", "1"]
pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded model's card, of a trial on two images."""
    folder = tmp_path_factory.mktemp("tried")
    command = [sys.executable, "-W", "ignore", "-m", "hpm_robustbench", "run", "--output", str(folder), *TRIAL]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def push(tried: Path, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a push to the Hub at an address."""
    started = []

    def start(address: str) -> subprocess.Popen[str]:
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        command = [sys.executable, "-W", "ignore", "-m", "hpm_robustbench", "push", "--repo", REPO]
        started.append(
            subprocess.Popen(
                [*command, "--output", str(tried)],
                env={**os.environ, **settings, "HF_HUB_DISABLE_XET": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_two_pushes_of_one_model_at_once_leave_it_whole(hub, push):
    met = threading.Barrier(2)

    def together(handler) -> None:
        if "/preupload/" in handler.path and not met.broken:
            met.wait(timeout=120)

    hub.arriving = together
    both = [ended(process) for process in [push(hub.address), push(hub.address)]]
    hub.arriving = lambda _handler: None
    assert sorted(code for code, _, _ in both) in ([0, 0], [0, 3]), both
    assert all(code == 0 or "somebody else made meanwhile; nothing was overwritten" in err for code, _, err in both)
    assert set(hub.head(REPO)) == FILES
    assert hub.repositories[REPO].messages[0] == "initial commit" and len(hub.repositories[REPO].messages) == 2
    code, out, _ = ended(push(hub.address))
    assert (code, out.split(":")[0]) == (0, "nothing to do")


def test_that_a_busy_hub_is_asked_again_is_said_once(hub, loopback, push):
    hub.faults = [loopback.Fault("POST .*objects/batch", 503)]
    code, _, err = ended(push(hub.address))
    assert code == 0, err
    assert sum("503" in line for line in err.splitlines()) == 1, err
    assert "200 OK" not in err


class Serving:
    """A Hub in a process of its own, and the requests that it has told of."""

    def __init__(self, state: Path, port: str = "0", stop_at: str = "") -> None:
        command = [sys.executable, loopback_hub.__file__, str(state), TOKEN, "me", port, stop_at]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait_until_stopped(self) -> None:
        while self._line() != "stopped":
            assert self.process.poll() is None

    def kill(self) -> list[str]:
        """Kill it at once; what it had still to tell."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.communicate()[0].splitlines()


def seen(loopback: ModuleType, state: Path) -> set[str]:
    """The files that a Hub with that state shows."""
    hub = loopback.LoopbackHub({}, state=state)
    hub.close()
    return set(hub.head(REPO))


@pytest.mark.parametrize(("stop_at", "still_to_send"), [("PUT /storage/", 1), ("POST .*/commit/", 0)])
def test_a_hub_killed_in_the_middle_shows_nothing_and_repeating_goes_on(
    stop_at, still_to_send, loopback, push, tmp_path
):
    state = tmp_path / "state"
    first = Serving(state, stop_at=stop_at)
    pushing = push(first.address)
    first.wait_until_stopped()
    first.kill()
    code, out, err = ended(pushing)
    assert (code, out) == (3, "")
    assert "repeat the command; what was sent already is not sent again" in err and "Traceback" not in err
    assert seen(loopback, state) == {".gitattributes"}

    again = Serving(state, first.address.rpartition(":")[2])
    code, out, err = ended(push(again.address))
    requests = again.kill()
    assert (code, out.split(":")[0]) == (0, "sent"), err
    assert sum(line.startswith("PUT ") for line in requests) == still_to_send
    assert seen(loopback, state) == FILES
