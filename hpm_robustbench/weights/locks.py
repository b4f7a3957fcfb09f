"""One process at a time for one file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

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
