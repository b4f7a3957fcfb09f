"""Tell a waiting person how far a run is: a bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts what is finished of something long, by default (shard, step) pairs of one run; used as a context."""

    def __init__(self, title: str, total: int, *, done: int = 0, counted: str = "steps written") -> None:
        self._title, self._total, self._done, self._calls = title, total, done, 0
        self._counted = counted
        self._label = ""
        self._last_line = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=title, disable=None, file=sys.stderr, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()

    def begin(self, label: str) -> None:
        """A step starts."""
        self._label, self._calls = label, 0
        self._bar.set_postfix_str(label)

    def tick(self) -> None:
        """A view was called; says so in the log if nothing was said for a while and there is no bar."""
        self._calls += 1
        if self._bar.disable and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._say(f"{self._label}, {self._calls} model calls")

    def advance(self) -> None:
        """One more is done, of so many that a line for each would be a flood: the next tick tells of it."""
        self._done += 1
        self._bar.update()

    def finish(self, percent: float, what: str = "left to attack") -> None:
        """A step is written down, after which ``percent`` of its shard's rows are what ``what`` says."""
        self._done += 1
        self._bar.update()
        if self._bar.disable:
            self._say(f"{self._label} done, {percent:.1f} % of the shard {what}")

    def _say(self, what: str) -> None:
        log.info("%s: %d/%d %s; %s", self._title, self._done, self._total, self._counted, what)
        self._last_line = time.monotonic()
