"""The tree of errors: every failure a user can cause or meet, with its exit code.

    HpmBenchError                      1
    |-- UsageProblem                   2   what was asked for does not exist or cannot be read
    |   |-- UnknownName                    a model, dataset, threat, view or protocol that nobody registered
    |   `-- BatchCoupled                   an attack met a view whose rows depend on each other
    |-- DownloadFailed                 3   the network, or the far end, said no
    |-- UploadFailed                   3   the same on the way out
    |-- IntegrityError                 4   a file is not what it should be
    |   `-- UnsafePickle                     a checkpoint asks for more than tensors, and could run code
    |-- InvalidInput                   5   images, labels, a model or a card break their contract
    |   `-- HeadNotFound                   no layer of the model is its classifier, provably
    |-- Diverged                       1   training left the finite numbers
    |-- StorageProblem                 1   a folder cannot be written, a disk is full
    `-- Drift                          1   what is committed is not what would be built

A message has three parts, always: what was wanted, what was got, what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200
_MOST_SHOWN = 40
"""Names that a message lists in full; all knobs of a recipe, not all models."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line that no terminal obeys; its kind if it says nothing."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return printable(line[:_LONGEST])


def printable(text: str) -> str:
    """Text of others as a terminal may show it: without the characters that move, colour or name it."""
    return "".join(c if c.isprintable() else "?" for c in text)


class HpmBenchError(Exception):
    """Base of every expected failure; prints as ``wanted X; got Y. Next: Z``."""

    exit_code = 1

    def __init__(self, *, wanted: str, got: str, next_step: str) -> None:
        self.wanted, self.got, self.next_step = wanted, got, next_step
        super().__init__(f"wanted {wanted}; got {got}. Next: {next_step}")


class UsageProblem(HpmBenchError):
    """A request that cannot be understood or met."""

    exit_code = 2


class UnknownName(UsageProblem):
    """A name that nobody registered; the message shows the nearest known ones, those that contain it, or some."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, next_step: str | None = None) -> None:
        known = sorted(known)
        folded = {candidate.casefold(): candidate for candidate in known}
        near = [folded[hit] for hit in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
        near = near or [candidate for candidate in known if name and name.casefold() in candidate.casefold()][:8]
        suggestion = f"did you mean {' or '.join(near)}?" if near else f"known: {_some(known)}"
        super().__init__(
            wanted=f"a known {kind}",
            got=repr(name),
            next_step=f"{suggestion} {next_step}" if next_step else suggestion,
        )


def _some(names: list[str]) -> str:
    """As many as a person can read, and how many more there are."""
    shown = names if len(names) <= _MOST_SHOWN else names[:8]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"{', '.join(shown) or 'none'}{more}"


class BatchCoupled(UsageProblem):
    """An attack that needs independent rows was paired with a batch-coupled view."""


class DownloadFailed(HpmBenchError):
    """A file could not be fetched; says what was tried and where a local copy may be put."""

    exit_code = 3


class UploadFailed(HpmBenchError):
    """Nothing was published, or nobody can tell; to repeat it does no harm."""

    exit_code = 3


class IntegrityError(HpmBenchError):
    """A file is truncated, foreign, unsafe, or has the wrong hash."""

    exit_code = 4


class UnsafePickle(IntegrityError):
    """A checkpoint names classes or functions that nobody has allowed; it was not read."""


class InvalidInput(HpmBenchError):
    """Images, labels, a model or a card do not keep their contract."""

    exit_code = 5


class HeadNotFound(InvalidInput):
    """No single layer of a model is provably its classifier; lists the candidates seen."""


class Diverged(HpmBenchError):
    """Training met NaN or Inf; its last good checkpoint is kept."""


class StorageProblem(HpmBenchError):
    """A file or folder could not be written, or not even looked at; whatever was already written is intact."""


class Drift(HpmBenchError):
    """Committed output differs from what the committed inputs produce."""
