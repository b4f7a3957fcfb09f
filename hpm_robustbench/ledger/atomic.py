"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from hpm_robustbench.errors import StorageProblem


def make_folder(path: Path, option: str = "--output") -> Path:
    """Create ``path`` and its parents; ``option`` is the one that named it.

    Raises:
        StorageProblem: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _problem(path, error, option) from error
    return path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace ``path`` by ``content`` so that a reader, or a crash, sees the old file or the new one.

    Raises:
        StorageProblem: the folder cannot be written or the disk is full; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    make_folder(path.parent)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _problem(path, error) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_all(folder: Path, files: Mapping[str, bytes], *, last: str, optional: Collection[str] = ()) -> None:
    """Write files so that a folder that has ``last`` is whole, even after a crash: an old one is taken away first.

    So are old ``optional`` files, which tell of what was there before.

    Raises:
        StorageProblem: the folder cannot be written or the disk is full.
    """
    try:
        for name in (last, *optional):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _problem(folder / last, error) from error
    for name in sorted(files, key=lambda name: name == last):
        write_atomic(folder / name, files[name])


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut; systems that cannot open a folder keep it in their own way."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _problem(path: Path, error: OSError, option: str = "--output") -> StorageProblem:
    if error.errno == errno.ENOSPC:
        next_step = "free some space and run the same command again; everything already written is kept"
    else:
        next_step = f"make the folder writable, or name another one with {option}"
    return StorageProblem(wanted=f"to write {path}", got=error.strerror or type(error).__name__, next_step=next_step)
