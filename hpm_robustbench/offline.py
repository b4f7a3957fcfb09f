"""Whether anything may be fetched: a plan is made from what is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CONNECTED: ContextVar[bool] = ContextVar("connected", default=True)


@contextmanager
def connections(allowed: bool) -> Iterator[None]:
    """Within it, nothing is fetched unless ``allowed``; what is missing is a failed download then."""
    before = _CONNECTED.set(allowed)
    try:
        yield
    finally:
        _CONNECTED.reset(before)


def may_connect() -> bool:
    """Whether a connection may be opened here."""
    return _CONNECTED.get()
