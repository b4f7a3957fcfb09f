"""Ctrl-C and SIGTERM wait until a step is done, so that what a checkpoint holds is never half a step."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Holds the first signal back until ``let_through``; a second one goes through at once.

    Used as a context, which ends with the handlers that were there before. Only the main thread meets signals; in any
    other this does nothing. What is still held back at the end goes through there.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # Whoever ignores a signal goes on ignoring it, and a handler that is not Python's could not be put back.
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    self._before[number] = handler
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._put_back()
        if kind is None:
            self.let_through()

    def let_through(self) -> None:
        """Do now what the signal that was held back is for, if one was."""
        self._put_back()
        came, self.came = self.came, None
        if came is not None:
            signal.raise_signal(came)

    def _hold(self, number: int, _frame: FrameType | None) -> None:
        self.came = number
        self._put_back()
        log.info("stopping after this step, with a checkpoint; once more to stop at once and lose what came since")

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
