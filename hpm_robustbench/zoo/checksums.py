"""What each checkpoint must be, by where it is fetched from: ``checksums.json``, a reviewed file. No torch.

    {"gdrive:15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ": {"size": 153000000, "sha256": "0f3a..."}}

It is written by ``hpm-bench weights pin`` and by nothing else: to trust what was fetched first is a step that a person
takes and another one can read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hpm_robustbench.errors import InvalidInput, UsageProblem

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checksum:
    """What a file must be: its sha256, and its size in bytes if that is known."""

    sha256: str
    size: int | None = None

    def __str__(self) -> str:
        return f"sha256 {self.sha256}" if self.size is None else f"sha256 {self.sha256}, {self.size} bytes"

    def matches(self, other: Checksum) -> bool:
        """Whether both can be said of one file."""
        return self.sha256 == other.sha256 and (None in (self.size, other.size) or self.size == other.size)


def known_checksums(own: Path | None = None) -> dict[str, Checksum]:
    """Checksums by locator: those that come with this package, and those of a file of one's own.

    Raises:
        UsageProblem: there is no such file.
        InvalidInput: it is not written as it should be, or contradicts what comes with this package.
    """
    shipped = _parse(
        files("hpm_robustbench.zoo").joinpath("checksums.json").read_text(encoding="utf-8"), "this package"
    )
    given = {} if own is None else read_checksums(own)
    for locator in shipped.keys() & given.keys():
        if not shipped[locator].matches(given[locator]):
            raise InvalidInput(
                wanted=f"{shipped[locator]} for {locator}, as this package says",
                got=f"{given[locator]} in {own}",
                next_step="remove that entry; if the file was really replaced by its makers, report it",
            )
    return {**given, **shipped}


def read_checksums(path: Path) -> dict[str, Checksum]:
    """Checksums by locator from a file; see ``known_checksums``."""
    if path.exists() and not path.is_file():  # a device may never end
        raise UsageProblem(wanted=f"a file of checksums at {path}", got="no regular file", next_step="name another")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageProblem(
            wanted=f"a file of checksums at {path}", got=error.strerror or str(error), next_step="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise _malformed(str(path), "no text") from error
    return _parse(text, str(path))


def checksums_json(checksums: Mapping[str, Checksum]) -> str:
    """The text of a file of checksums, sorted."""
    entries = {locator: {"size": c.size, "sha256": c.sha256} for locator, c in sorted(checksums.items())}
    return json.dumps(entries, indent=1) + "\n"


def _parse(text: str, where: str) -> dict[str, Checksum]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise _malformed(where, str(error)) from error
    if not isinstance(entries, dict):
        raise _malformed(where, f"a {type(entries).__name__}")
    return {locator: _checksum(locator, entry, where) for locator, entry in entries.items()}


def _checksum(locator: str, entry: Any, where: str) -> Checksum:
    if isinstance(entry, dict) and entry.keys() == {"size", "sha256"}:
        size, sha256 = entry["size"], entry["sha256"]
        if type(size) is int and size > 0 and isinstance(sha256, str) and _SHA256.fullmatch(sha256):
            return Checksum(sha256, size)
    raise _malformed(where, f"{entry!r} for {locator}")


def _malformed(where: str, got: str) -> InvalidInput:
    return InvalidInput(
        wanted=f'checksums in {where} as {{"source:locator": {{"size": bytes, "sha256": 64 hex digits}}}}',
        got=got[:200],
        next_step="write them with hpm-bench weights pin",
    )
