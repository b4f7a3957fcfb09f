"""What a transfer is: a file that comes in parts, a client that brings it, and patience with faults that pass."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

_LONGEST_WAIT = 120.0


class Unavailable(Exception):
    """The far end, or the way to it, did not give the file.

    Attributes:
        transient: asking again may help.
        wait: seconds that the far end wants to be left alone.
    """

    def __init__(self, reason: str, *, transient: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.transient, self.wait = transient, wait


@dataclass(frozen=True)
class Partial:
    """A file on its way: the bytes that have arrived, and beside them how the server names this state of the file."""

    path: Path

    @property
    def _mark(self) -> Path:
        return self.path.with_name(f"{self.path.name}.mark")

    def begin(self, mark: str) -> None:
        """Forget what has arrived before; ``mark`` is empty if the transfer cannot be continued."""
        self.discard()
        if mark:
            self._mark.write_text(mark, encoding="utf-8")

    def discard(self) -> None:
        """Remove everything."""
        self._mark.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Give the whole file its name, once it is on the disk."""
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self._mark.unlink(missing_ok=True)
        self.path.replace(path)

    @property
    def can_continue(self) -> bool:
        """Whether the rest alone may be asked for."""
        return self._mark.is_file() and self.path.is_file() and self.path.stat().st_size > 0

    def request_headers(self) -> dict[str, str]:
        """Ask for the rest, or for the whole file if it has changed meanwhile."""
        if not self.can_continue:
            return {}
        return {"Range": f"bytes={self.path.stat().st_size}-", "If-Range": self._mark.read_text(encoding="utf-8")}


class Fetcher(Protocol):
    """Brings files from elsewhere."""

    def fetch(self, locator: str, partial: Partial) -> None:
        """Write one file to ``partial.path``, in a folder that exists, or continue what an earlier call left there.

        Raises:
            Unavailable: it could not be had; says why.
            OSError: it could not be written.
        """


class Patient:
    """Asks another fetcher again after faults that pass: broken transfers, timeouts, an overloaded server."""

    def __init__(self, fetcher: Fetcher, waits: Sequence[float] = (1.0, 5.0, 20.0)) -> None:
        """``waits``: seconds before each further attempt; a server that asks for more gets it, up to two minutes."""
        self._fetcher, self._waits = fetcher, waits

    def fetch(self, locator: str, partial: Partial) -> None:
        """See ``Fetcher``."""
        for wait in self._waits:
            try:
                self._fetcher.fetch(locator, partial)
            except Unavailable as error:
                if not error.transient or error.wait > _LONGEST_WAIT:
                    raise
                pause = max(wait, error.wait)
                log.info("%s; asking again in %.0f s", error, pause)
                time.sleep(pause)
            else:
                return
        self._fetcher.fetch(locator, partial)
