"""Where a checkpoint lies, and how it gets there: locate, fetch, verify, load."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import torch
from torch import nn

from hpm_robustbench.architectures import build
from hpm_robustbench.errors import (
    DownloadFailed,
    IntegrityError,
    InvalidInput,
    StorageProblem,
    UnknownName,
    UsageProblem,
)
from hpm_robustbench.state_dict import load_into, read_state_dict
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

GOOGLE_DRIVE = "https://drive.google.com/uc?id={}"


class Fetcher(Protocol):
    """Brings files from elsewhere."""

    def fetch(self, source_id: str, destination: Path) -> None:
        """Write one file to ``destination``, in a folder that exists.

        Raises:
            OSError: it could not be had; says why.
        """


class GoogleDrive:
    """Fetches files by their Google Drive id."""

    def __init__(self, address: str = GOOGLE_DRIVE) -> None:
        self._address = address

    def fetch(self, source_id: str, destination: Path) -> None:
        """See ``Fetcher``; also raises OSError where Google refuses, for example over its download quota."""
        import gdown  # noqa: PLC0415 - only a download needs it
        from gdown.exceptions import FileURLRetrievalError  # noqa: PLC0415

        url = self._address.format(quote(source_id, safe=""))
        # Given a path instead, gdown would not close its temporary file when a transfer breaks off.
        with destination.open("wb") as stream:
            try:
                gdown.download(url=url, output=stream, quiet=not sys.stderr.isatty(), use_cookies=False)
            except FileURLRetrievalError as error:
                raise ConnectionError(" ".join(str(error).split()).rstrip(".")) from error


class Web:
    """Fetches files by their address, as torchvision and timm do."""

    def fetch(self, source_id: str, destination: Path) -> None:
        """See ``Fetcher``."""
        try:
            torch.hub.download_url_to_file(source_id, str(destination), progress=sys.stderr.isatty())
        except HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error


_FETCHERS: dict[str, Fetcher] = {"gdrive": GoogleDrive(), "upstream": Web()}


class Loaded(NamedTuple):
    """A network with its weights, in eval mode on the CPU, and the sha256 of each file they came from."""

    model: nn.Module
    sha256: tuple[str, ...]


def load_weights(spec: ModelSpec, model_dir: Path, fetcher: Fetcher | None = None) -> Loaded:
    """Build a spec's network and put its weights into it, strictly.

    Args:
        spec: which model.
        model_dir: where downloaded checkpoints lie, in RobustBench's layout.
        fetcher: brings what is not there yet; by default the client that fits the source.

    Raises:
        HpmBenchError: see ``build``, ``locate``, ``read_state_dict`` and ``load_into``.
    """
    paths = locate(spec, model_dir, fetcher)
    states = [read_state_dict(path) for path in paths]
    model = build(spec)
    for part, state, path in zip(_parts(model, len(paths)), states, paths, strict=True):
        load_into(part, state, str(path))
    return Loaded(model, tuple(map(_sha256, paths)))


def locate(spec: ModelSpec, model_dir: Path, fetcher: Fetcher | None = None) -> list[Path]:
    """The local files of a spec's checkpoint, fetched if they have to be, verified if their sha256 is known.

    An existing RobustBench folder is used as it is: ``<dataset>/<threat>/<name>.pt``, several files as
    ``<name>.pt_m0.pt`` and so on. A ``.safetensors`` file of the same stem goes before it, unless a sha256 is known.
    What timm and torchvision would fetch lies where they look for it.

    Raises:
        UsageProblem: a local file does not exist.
        DownloadFailed: a file could not be had; says where one may be put by hand.
        IntegrityError: a file is not the one it should be, or no checkpoint; a fresh download is not kept.
        StorageProblem: there is no place to put it.
    """
    reference = spec.weights
    paths = _places(reference, model_dir)
    hashes = reference.sha256 or ("",) * len(paths)
    for locator, path, sha256 in zip(reference.locators, paths, hashes, strict=True):
        if reference.source in _FETCHERS and not path.exists():
            _download(fetcher or _FETCHERS[reference.source], locator, path, sha256)
        elif not path.is_file() or not os.access(path, os.R_OK):
            raise UsageProblem(
                wanted=f"the weights of {spec.name} at {path}", got="no readable file", next_step="check the path"
            )
        else:
            _verify(path, sha256)
    return paths


def _places(reference: WeightsRef, model_dir: Path) -> list[Path]:
    """Where each file of a checkpoint lies or will lie."""
    source, locators = reference.source, reference.locators
    if source == "package":
        return [Path(str(files("hpm_robustbench").joinpath(locator))) for locator in locators]
    if source == "file":
        return [Path(locator).expanduser() for locator in locators]
    if source == "upstream":
        hub = Path(torch.hub.get_dir()) / "checkpoints"
        originals = [hub / Path(urlsplit(url).path).name for url in locators]
    elif source == "gdrive":
        single = model_dir / reference.cache
        several = [single.with_name(f"{single.name}_m{i}.pt") for i in range(len(locators))]
        originals = several if len(locators) > 1 else [single]
    else:
        raise UnknownName("source of weights", source, ["file", "gdrive", "package", "upstream"])
    return originals if reference.sha256 else [_converted(path) for path in originals]


def _converted(path: Path) -> Path:
    safe = path.with_suffix(".safetensors")
    return safe if safe.exists() else path


def _download(fetcher: Fetcher, locator: str, path: Path, sha256: str) -> None:
    """Fetch into a folder beside ``path``, read the file once, and only then give it its name."""
    address = locator if "://" in locator else GOOGLE_DRIVE.format(locator)
    by_hand = f"try again later, or put the file at {path}, or its state dict at {path.with_suffix('.safetensors')}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as folder:
            fetched = Path(folder) / path.name
            _fetch(fetcher, locator, fetched)
            _verify(fetched, sha256)
            read_state_dict(fetched)
            fetched.replace(path)
    except _Refused as error:
        raise DownloadFailed(wanted=address, got=str(error), next_step=by_hand) from error
    except IntegrityError as error:
        wanted = f"a checkpoint from {address}" + (f" with sha256 {sha256}" if sha256 else "")
        raise IntegrityError(wanted=wanted, got=f"{error.got}; it was not kept", next_step=by_hand) from error
    except OSError as error:
        raise StorageProblem(
            wanted=f"to write {path}",
            got=error.strerror or type(error).__name__,
            next_step="free some space or make the folder writable, or name another one with --model_dir",
        ) from error


class _Refused(Exception):
    """The far end, or the way to it, did not give the file."""


def _fetch(fetcher: Fetcher, locator: str, destination: Path) -> None:
    """Tell what the far end does wrong from what the local disk does wrong."""
    try:
        fetcher.fetch(locator, destination)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _Refused(f"{type(error).__name__}: {error}") from error
    if not destination.is_file():
        raise _Refused("nothing arrived")


def _verify(path: Path, sha256: str) -> None:
    if sha256 and (got := _sha256(path)) != sha256:
        raise IntegrityError(
            wanted=f"sha256 {sha256} of {path}",
            got=f"sha256 {got}",
            next_step="remove that file and fetch it again; if it still differs, do not use it",
        )


def _parts(model: nn.Module, n_files: int) -> Sequence[nn.Module]:
    """What each file holds: the network, or one member of an ensemble."""
    if n_files == 1:
        return [model]
    members = getattr(model, "models", None)
    if not isinstance(members, nn.ModuleList) or len(members) != n_files:
        raise InvalidInput(
            wanted=f"an ensemble of {n_files} members, one for each weights file",
            got=f"a {type(model).__name__}",
            next_step="choose another model; mixtures of different networks cannot be loaded",
        )
    return list(members)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
