"""What a killed process continues from: one safetensors file, whole or not at all, that knows what it belongs to."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hpm_robustbench.errors import first_line
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.ledger.plan import canonical_json
from hpm_robustbench.training.header import FACTS

log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """Tensors by name, and JSON values beside them."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_saved(path: Path, saved: Saved) -> None:
    """Replace the file at ``path``; a crash leaves the old one or the new one.

    Raises:
        StorageProblem: it cannot be written.
    """
    # A clone of each: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in saved.tensors.items()}
    facts = {"facts": saved.facts, "sha256": _checksum(tensors, saved.facts)}
    write_atomic(path, safetensors.torch.save(tensors, metadata={FACTS: canonical_json(facts)}))


def read_saved(path: Path, key: str) -> Saved | None:
    """What was saved at ``path`` under ``key``, on the CPU; None if it is not there, not whole or not of that key."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            told = json.loads((file.metadata() or {})[FACTS])
        saved = checked(tensors, told)
        if saved.facts["key"] != key:
            raise ValueError("it belongs to another recipe, model or set of images")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        log.warning("ignoring %s (%s)", path, first_line(error))
        return None
    return saved


def checked(tensors: dict[str, Tensor], told: dict[str, Any]) -> Saved:
    """Tensors with what is told beside them, see ``header.read_told``.

    Raises:
        ValueError: they have not been written together.
    """
    if told["sha256"] != _checksum(tensors, told["facts"]):
        raise ValueError("checksum mismatch")
    return Saved(tensors, told["facts"])


def _checksum(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    hasher = hashlib.sha256(canonical_json(facts).encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
