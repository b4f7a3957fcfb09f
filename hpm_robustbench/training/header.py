"""What stands beside the tensors of a checkpoint, read without loading one. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FACTS = "facts"
"""The only key of the metadata: safetensors writes several in an order left to chance."""
CLASSIFIER = "classifier.safetensors"
"""What a finished training has left."""
TENSORS, RECORD = "model.safetensors", "training.json"
"""The same where it is published."""
_LONGEST = 1 << 20
"""Bytes of a record that somebody else has written; a hundred epochs are 10 kB."""


def read_facts(path: Path) -> dict[str, Any] | None:
    """What ``checkpoint.write_saved`` has written there beside the tensors; None if it cannot be read.

    Whether the tensors are whole is not looked at.
    """
    told = read_told(path)
    return None if told is None else told["facts"]


def read_told(path: Path) -> dict[str, Any] | None:
    """``facts`` as ``read_facts`` gives them, and the ``sha256`` that they have together with the tensors.

    The file begins with 8 bytes of length, then JSON with the metadata in it.
    """

    def metadata() -> str:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        text: str = header["__metadata__"][FACTS]
        return text

    return _told(metadata)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The same of a publication, where it is a file beside the tensors'; one that is larger than any is none."""
    path = folder / RECORD

    def text() -> bytes:
        return path.read_bytes() if path.stat().st_size <= _LONGEST else b""

    return _told(text)


def _told(read: Callable[[], str | bytes]) -> dict[str, Any] | None:
    try:
        told = json.loads(read())
        whole = isinstance(told["facts"], dict) and isinstance(told["sha256"], str)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError):
        return None
    return told if whole else None
