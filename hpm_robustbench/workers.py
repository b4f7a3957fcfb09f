"""Several processes on one machine: the same command, each with a share of the shards.

Nothing but the command line crosses. A worker writes into the journal what anybody else would have written there, so
the number of workers changes no byte, and what a dead worker leaves undone is done by whoever runs the command next.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile

from hpm_robustbench.case import Ready, prepare
from hpm_robustbench.evaluation.runner import Share
from hpm_robustbench.pipeline import Outcome, Screen, attack, conclude, examine
from hpm_robustbench.processes import ended, python_command
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.zoo.spec import ModelSpec

log = logging.getLogger(__name__)

_SHARE = "HPM_BENCH_SHARE"
"""Environment variable that makes a process a worker of another: ``index/of``, counting from 0."""
_MOST = 4
"""Each process holds a model and the training images; more of them only on request."""


def default_workers(device: str) -> int:
    """As many as this process may use cores, up to four; one for an accelerator."""
    if not device.startswith("cpu"):
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST)


def evaluate_together(
    spec: ModelSpec, options: RunOptions, workers: int, arguments: Sequence[str], ready: Ready | None = None
) -> Outcome | Screen | None:
    """``pipeline.evaluate`` or ``screen`` together with ``workers`` - 1 other processes; None in those.

    The calling process does a share too, and then all that is still missing. So an error that others met is met here
    as well, and told once.

    Args:
        spec: which model.
        options: how.
        workers: processes in all.
        arguments: of ``hpm-bench``, by which this process was asked for the same.
        ready: brings the model, if it is wrapped already.
    """
    if _SHARE in os.environ:
        threading.Thread(target=_end_with_the_caller, daemon=True).start()
        attack(prepare(spec, options, model=ready), _parse_share(os.environ[_SHARE]))
        return None
    case = prepare(spec, options, model=ready)
    with _other_workers(workers, arguments) as wait:
        attack(case, Share(0, workers))
        wait()
    attack(case)
    examine(case)
    return conclude(case)


def _parse_share(text: str) -> Share:
    index, of = text.split("/")
    return Share(int(index), int(of))


def _end_with_the_caller() -> None:
    """The pipe to a worker closes when its caller ends, even by kill -9."""
    sys.stdin.buffer.read()
    os._exit(os.EX_TEMPFAIL if hasattr(os, "EX_TEMPFAIL") else 1)


@contextmanager
def _other_workers(workers: int, arguments: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Start the other processes; none outlives the context."""
    command = [*python_command("hpm_robustbench"), "--quiet", *arguments]
    with ExitStack() as held:
        running = []
        for index in range(1, workers):
            told = held.enter_context(TemporaryFile())
            process = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                env={**os.environ, _SHARE: f"{index}/{workers}"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=told,
            )
            held.callback(_stop, process)
            running.append((process, told))

        def wait() -> None:
            for process, told in running:
                if process.wait() != 0:
                    told.seek(0)
                    how = ended(process.returncode, told.read())
                    log.warning("a worker ended with %s; its share is done here", how)

        yield wait


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with process:  # waits, and closes its pipe
        pass
