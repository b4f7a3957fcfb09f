"""How pages and tables say what they count. No torch."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """``1 image``, ``2 images``: a number before a noun that takes an s."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
