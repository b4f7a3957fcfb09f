"""Have a pickle read by a process of its own, which has little memory, little time and none of our secrets."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpm_robustbench.errors import HpmBenchError, IntegrityError, StorageProblem, UnsafePickle, UsageProblem
from hpm_robustbench.processes import ended, python_command
from hpm_robustbench.state_dict import check_container

_MODULE = "hpm_robustbench.weights.convert_process"
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
_ERRORS: dict[str, type[HpmBenchError]] = {
    kind.__name__: kind for kind in (IntegrityError, StorageProblem, UnsafePickle, UsageProblem)
}
_GIB = 1 << 30


@dataclass(frozen=True)
class Bounds:
    """What reading a checkpoint may cost: seconds, and bytes of memory beyond the process's own."""

    seconds: float
    memory: int

    @classmethod
    def of(cls, path: Path) -> Bounds:
        """Generous for an honest file: its tensors are held a few times over, at a few megabytes a second."""
        size = path.stat().st_size
        return cls(300 + size / 2e6, _GIB + 6 * size)


def convert(
    original: Path, destination: Path, allow_globals: tuple[str, ...] = (), bounds: Bounds | None = None
) -> None:
    """Write the tensors of a pickle to ``destination``, as safetensors.

    Args:
        original: what ``torch.save`` wrote.
        destination: in a folder of its own, which the process works in.
        allow_globals: what the pickle may use beyond tensors, as ``package.module.Name``.
        bounds: by default what suits the file's size.

    Raises:
        IntegrityError: it is no checkpoint, asks for more than tensors, or ends or outlasts the process.
        UsageProblem: something that is to be allowed does not exist.
        StorageProblem: the result cannot be written.
    """
    check_container(original)
    bounds = bounds or Bounds.of(original)
    command = [*python_command(_MODULE), original.resolve(), destination.resolve(), bounds.memory, *allow_globals]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [str(part) for part in command],
            cwd=destination.parent,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=bounds.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _given_up(original, f"a file that keeps its reader busy for over {bounds.seconds:g} s") from error
    if done.returncode != 0:
        _raise_what_it_said(done.stdout)
        raise _given_up(
            original, f"a file that ended the process that reads it ({ended(done.returncode, done.stderr)})"
        )


def _environment() -> dict[str, str]:
    """No tokens, no accelerator, no second thread."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _raise_what_it_said(output: bytes) -> None:
    try:
        said: Any = json.loads(output.splitlines()[-1])
        kind, parts = said["error"], {key: str(said[key]) for key in ("wanted", "got", "next_step")}
    except (IndexError, KeyError, TypeError, ValueError):
        return
    raise _ERRORS.get(kind, IntegrityError)(**parts)


def _given_up(original: Path, got: str) -> IntegrityError:
    return IntegrityError(
        wanted=f"a checkpoint in {original}",
        got=got,
        next_step="do not use that file; if you trust its makers, ask them for its state dict as .safetensors",
    )
