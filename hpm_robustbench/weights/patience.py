"""How long the Hub's client waits: not for ever for an answer, and between two requests as long as the Hub asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
SILENCE = 120.0
"""Seconds without a word from the Hub after which it is given up."""
_LONGEST_PAUSE = 330
"""The Hub counts requests in windows of five minutes."""
_PAUSES = 3

log = logging.getLogger(__name__)


def as_the_hub_asks(act: Callable[[], T]) -> T:
    """Do something on the Hub; where it asks for a pause (429), pause and do it again, at most three times."""
    for _ in range(_PAUSES):
        _end_silence()
        try:
            return act()
        except Exception as error:
            pause = pause_asked_for(error)
            if pause is None or pause > _LONGEST_PAUSE:
                raise
            log.warning("the Hub asks for a pause of %d s", pause)
            time.sleep(pause + 1)
    return act()


def pause_asked_for(error: BaseException) -> int | None:
    """Seconds for which the Hub wants no more requests, by either of the headers in which it may say so."""
    # only a connection needs it; exported by a list that mypy cannot read
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined] # noqa: PLC0415

    for cause in causes(error):
        response = getattr(cause, "response", None)
        if response is None or response.status_code != 429:
            continue
        told = response.headers.get("Retry-After", "")
        limit = parse_ratelimit_headers(response.headers)
        return int(told) if told.isdecimal() else limit.reset_in_seconds if limit else None
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the deepest answer of the Hub included."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _end_silence() -> None:
    """The client would wait for ever for the answer to an upload, unless its owner has chosen otherwise."""
    from huggingface_hub import get_session  # noqa: PLC0415

    session = get_session()
    if session.timeout.read is None:
        session.timeout = SILENCE
