"""Random draws that depend on a seed, a purpose and a number alone: a resumed training needs no generator's state."""

from __future__ import annotations

import hashlib

import torch


def drawn(seed: int, purpose: str, number: int) -> torch.Generator:
    """A generator on the CPU, the same for every model, control and device."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
