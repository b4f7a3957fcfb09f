"""What stands beside the tensors of a checkpoint, read without loading one. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS = "facts"
"""The only key of the metadata: safetensors writes several in an order left to chance."""


def read_facts(path: Path) -> dict[str, Any] | None:
    """What ``checkpoint.write_saved`` has written there beside the tensors; None if it cannot be read.

    The file begins with 8 bytes of length, then JSON with the metadata in it. Whether the tensors are whole is not
    looked at.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        facts = json.loads(header["__metadata__"][FACTS])["facts"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None
