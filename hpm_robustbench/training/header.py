"""What stands beside the tensors of a checkpoint, read without loading one. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS = "facts"
"""The only key of the metadata: safetensors writes several in an order left to chance."""
CLASSIFIER = "classifier.safetensors"
"""What a finished training has left."""
TENSORS, RECORD = "model.safetensors", "training.json"
"""The same where it is published."""


def read_facts(path: Path) -> dict[str, Any] | None:
    """What ``checkpoint.write_saved`` has written there beside the tensors; None if it cannot be read.

    Whether the tensors are whole is not looked at.

    Args:
        path: a checkpoint, or the record of a published one, see ``published``.
    """
    told = read_told(path)
    return None if told is None else told["facts"]


def read_told(path: Path) -> dict[str, Any] | None:
    """``facts`` as ``read_facts`` gives them, and the ``sha256`` that they have together with the tensors.

    A checkpoint begins with 8 bytes of length, then JSON with the metadata in it.
    """
    try:
        told = json.loads(path.read_bytes() if path.suffix == ".json" else _metadata(path))
        whole = isinstance(told["facts"], dict) and isinstance(told["sha256"], str)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError):
        return None
    return told if whole else None


def _metadata(path: Path) -> str:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    text: str = header["__metadata__"][FACTS]
    return text
