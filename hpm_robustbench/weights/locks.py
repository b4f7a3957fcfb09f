"""One process at a time for one file, and what is said if it cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hpm_robustbench.errors import StorageProblem

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``, in a folder that exists; the lock of a process that died is free."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("another process is at work on %s; waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: OSError) -> StorageProblem:
    """The error that tells of a file below the folder of checkpoints which the disk did not take."""
    return StorageProblem(
        wanted=f"to write {path}",
        got=error.strerror or type(error).__name__,
        next_step="free some space or make the folder writable, or name another one with --model_dir",
    )
