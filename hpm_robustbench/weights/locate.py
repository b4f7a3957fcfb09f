"""The local files of a checkpoint, fetched if they have to be, and verified."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.weights.converted import convert_once
from hpm_robustbench.weights.fetch import as_fetched, fetch_once
from hpm_robustbench.weights.hub import forget
from hpm_robustbench.weights.places import places
from hpm_robustbench.weights.transfer import Fetcher
from hpm_robustbench.weights.trust import STRICT, Trust, verify
from hpm_robustbench.zoo.checksums import Checksum
from hpm_robustbench.zoo.spec import ModelSpec


@dataclass(frozen=True)
class Original:
    """A file of a checkpoint as its makers published it: where it lies, what it is, where it comes from.

    ``pinned`` says that its checksum was known beforehand.
    """

    path: Path
    checksum: Checksum
    locator: str
    pinned: bool


def locate(
    spec: ModelSpec, model_dir: Path, fetcher: Fetcher | None = None, trust: Trust = STRICT, *, exactly: bool = False
) -> tuple[Original, ...]:
    """The files of a spec's checkpoint, one or one for each member of an ensemble; see the package for the places.

    Args:
        spec: which model.
        model_dir: where checkpoints lie.
        fetcher: brings what is not there yet; by default the client that fits the source.
        trust: what is believed of files from elsewhere.
        exactly: only the originals will do, and no state dict that was put beside them by hand.

    Raises:
        UsageProblem: a local file does not exist, or no folder can be called so.
        DownloadFailed: a file could not be had; says where one may be put by hand.
        IntegrityError: a file is not the one it should be; a fresh download that is no checkpoint is not kept either.
        StorageProblem: there is no place to put it.
    """
    if "\0" in str(model_dir):
        raise UsageProblem(
            wanted="a folder of checkpoints", got=f"{str(model_dir)!r}, with a NUL", next_step="name another"
        )
    found = []
    for place, expected in zip(places(spec.weights, model_dir), trust.expected(spec.weights), strict=True):
        only = exactly or expected is not None
        path = place.find(exactly=only)
        if path == place.fetched and not path.exists():
            accept = partial(_accept, expected=expected, model_dir=model_dir, trust=trust)
            fetch_once(place, path, accept, place.by_hand(exactly=only), fetcher)
        _check_readable(spec, path)
        due = expected or (as_fetched(path) if path == place.fetched else None)
        found.append(Original(path, _verified(path, place.locator, due), place.locator, expected is not None))
    return tuple(found)


def check_local(spec: ModelSpec) -> None:
    """Say at once that a local file is not there, and not only after all that comes before loading it.

    Raises:
        UsageProblem: it does not exist, or may not be read.
    """
    if spec.weights.source == "file":
        for place in places(spec.weights, Path()):
            _check_readable(spec, place.path)


def _verified(path: Path, locator: str, expected: Checksum | None) -> Checksum:
    """As ``verify``; a file from the Hub that is not the expected one does not stay in the Hub's cache."""
    try:
        return verify(path, expected)
    except IntegrityError as error:
        if not locator.startswith("hf:"):
            raise
        forget(path)
        raise IntegrityError(
            wanted=error.wanted,
            got=f"{error.got}; it was not kept",
            next_step="see whether its owner tells why it changed; if not, do not use it",
        ) from error


def _accept(path: Path, *, expected: Checksum | None, model_dir: Path, trust: Trust) -> None:
    """See that a download is what was wanted, and a checkpoint."""
    convert_once(path, verify(path, expected), model_dir, trust)


def _check_readable(spec: ModelSpec, path: Path) -> None:
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UsageProblem(
            wanted=f"the weights of {spec.name} at {path}", got="no readable file", next_step="check the path"
        )
