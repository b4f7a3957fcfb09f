"""Fetch a file once, look at it, and only then give it its name; what it hashes to lies beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from hpm_robustbench.errors import DownloadFailed, HpmBenchError, IntegrityError, UnsafePickle
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.offline import may_connect
from hpm_robustbench.weights.locks import locked, unwritable
from hpm_robustbench.weights.places import Place
from hpm_robustbench.weights.transfer import Fetcher, Partial, Patient, Unavailable
from hpm_robustbench.weights.trust import measure
from hpm_robustbench.weights.web import GOOGLE_DRIVE, GoogleDrive, Web
from hpm_robustbench.zoo.checksums import Checksum, checksums_json, read_checksums

log = logging.getLogger(__name__)

_FETCHERS: dict[str, Fetcher] = {"gdrive": Patient(GoogleDrive()), "upstream": Patient(Web())}


def fetch_once(
    place: Place, destination: Path, accept: Callable[[Path], object], by_hand: str, fetcher: Fetcher | None
) -> None:
    """Bring a file to ``destination`` unless it is there, once even if several processes ask for it.

    Args:
        place: which file.
        destination: its path afterwards.
        accept: raises IntegrityError if the file at a path is not what was wanted; it is not kept then. An
            UnsafePickle is whole, and kept for the one who allows what it needs.
        by_hand: what to do if it cannot be had.
        fetcher: brings it; by default the client that fits the source.

    Raises:
        DownloadFailed: it could not be had; says where one may be put by hand.
        IntegrityError: it is not what was wanted.
        StorageProblem: there is no place to put it.
    """
    source, _, locator = place.locator.partition(":")
    partial = Partial(destination.with_name(f"{destination.name}.partial"))
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(destination):
            if not destination.exists():
                log.info("fetching %s", _address(place))
                _fetch(fetcher or _FETCHERS[source], locator, partial)
                _accept(partial, destination, accept)
    except Unavailable as error:
        raise DownloadFailed(wanted=_address(place), got=str(error), next_step=by_hand) from error
    except UnsafePickle as error:
        wanted = f"plain tensors from {_address(place)}, kept unread at {destination}"
        raise UnsafePickle(wanted=wanted, got=error.got, next_step=error.next_step) from error
    except IntegrityError as error:
        wanted = error.wanted.replace(str(partial.path), _address(place))
        raise IntegrityError(wanted=wanted, got=f"{error.got}; it was not kept", next_step=by_hand) from error
    except OSError as error:
        raise unwritable(destination, error) from error


def _fetch(fetcher: Fetcher, locator: str, partial: Partial) -> None:
    """Leave behind what the next attempt can continue, and nothing else."""
    try:
        if not may_connect():
            raise Unavailable("no file at hand, and no leave to connect")
        fetcher.fetch(locator, partial)
        if not partial.path.is_file():
            raise Unavailable("nothing arrived")
    except Unavailable:
        if not partial.can_continue:
            partial.discard()
        raise
    except OSError:
        partial.discard()
        raise


def _accept(partial: Partial, destination: Path, accept: Callable[[Path], object]) -> None:
    try:
        accept(partial.path)
    except HpmBenchError as error:
        if isinstance(error, IntegrityError) and not isinstance(error, UnsafePickle):
            partial.discard()
        else:
            _keep(partial, destination)  # whole, whatever else went wrong
        raise
    _keep(partial, destination)


def _keep(partial: Partial, destination: Path) -> None:
    """Give a file its name, and write down what it is: an old kind of checkpoint has no checksum of its own."""
    write_atomic(_record_of(destination), checksums_json({destination.name: measure(partial.path)}))
    partial.finish(destination)


def _record_of(fetched: Path) -> Path:
    return fetched.with_name(f"{fetched.name}.json")


def as_fetched(path: Path) -> Checksum | None:
    """What a file was when it was fetched; None where nobody wrote it down.

    Raises:
        InvalidInput: what was written down cannot be read.
    """
    record = _record_of(path)
    return read_checksums(record).get(path.name) if record.is_file() else None


def _address(place: Place) -> str:
    source, _, locator = place.locator.partition(":")
    return GOOGLE_DRIVE.format(locator) if source == "gdrive" else locator
