"""What is believed of a file from elsewhere, and the proof that it is that file."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.zoo.checksums import Checksum, known_checksums
from hpm_robustbench.zoo.spec import WeightsRef

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trust:
    """What a person has decided to believe.

    Attributes:
        checksums: a file of checksums beside those that come with this package.
        allow_globals: classes and functions, as ``package.module.Name``, that a pickle may use beyond tensors.
    """

    checksums: Path | None = None
    allow_globals: tuple[str, ...] = ()

    def expected(self, reference: WeightsRef) -> list[Checksum | None]:
        """What each file of a checkpoint must be; None where nobody has said so.

        Raises:
            IntegrityError: the reference itself says otherwise than what is known.
            HpmBenchError: see ``known_checksums``.
        """
        known = known_checksums(self.checksums)  # also where it is not needed: a file that is not there is a mistake
        trusted = [known.get(locator) for locator in reference.full_locators]
        if not reference.sha256:
            return trusted
        described = [Checksum(sha256) for sha256 in reference.sha256]
        for locator, one, other in zip(reference.full_locators, trusted, described, strict=False):
            if one is not None and not one.matches(other):
                raise IntegrityError(
                    wanted=f"{locator} with {one}, as you or this package trust it",
                    got=f"a description by which it has {other}",
                    next_step="do not use what is described so, or correct the file of --checksums",
                )
        return list(described)


STRICT = Trust()
"""Tensors only, and the checksums that come with this package."""


def measure(path: Path) -> Checksum:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        return Checksum(digest.hexdigest(), stream.tell())


def verify(path: Path, expected: Checksum | None) -> Checksum:
    """Measure a file, and see that it is the expected one.

    Raises:
        IntegrityError: it is another one.
    """
    found = measure(path)
    if expected is not None and not expected.matches(found):
        raise IntegrityError(
            wanted=f"{expected} of {path}",
            got=str(found),
            next_step="remove that file and fetch it again; if it still differs, do not use it",
        )
    return found
