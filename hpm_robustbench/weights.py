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
    HpmBenchError,
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
    if reference.source in _FETCHERS:
        if not reference.sha256:
            paths = [_converted(path) for path in paths]
        for locator, path in zip(reference.locators, paths, strict=True):
            if not path.exists():
                _download(fetcher or _FETCHERS[reference.source], reference.source, locator, path)
    for path in paths:
        if not path.is_file() or not os.access(path, os.R_OK):
            raise UsageProblem(
                wanted=f"the weights of {spec.name} at {path}", got="no readable file", next_step="check the path"
            )
    for path, sha256 in zip(paths, reference.sha256, strict=False):
        if _sha256(path) != sha256:
            raise IntegrityError(
                wanted=f"sha256 {sha256} of {path}",
                got=_sha256(path),
                next_step="remove that file and fetch it again; if it still differs, do not use it",
            )
    return paths


def _places(reference: WeightsRef, model_dir: Path) -> list[Path]:
    """Where each file of a checkpoint lies or will lie."""
    source, locators = reference.source, reference.locators
    if source == "package":
        return [Path(str(files("hpm_robustbench").joinpath(locator))) for locator in locators]
    if source == "file":
        return [Path(locator).expanduser() for locator in locators]
    if source == "upstream":
        return [Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name for url in locators]
    if source == "gdrive":
        single = model_dir / reference.cache
        if len(locators) == 1:
            return [single]
        return [single.with_name(f"{single.name}_m{i}.pt") for i in range(len(locators))]
    raise UnknownName("source of weights", source, ["file", "gdrive", "package", "upstream"])


def _converted(path: Path) -> Path:
    safe = path.with_suffix(".safetensors")
    return safe if safe.exists() else path


def _download(fetcher: Fetcher, source: str, locator: str, path: Path) -> None:
    """Fetch into a folder beside ``path``, read the file once, and only then give it its name."""
    address = GOOGLE_DRIVE.format(locator) if source == "gdrive" else locator
    by_hand = f"put the file at {path}, or its state dict at {path.with_suffix('.safetensors')}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        quarantine = tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-")
    except OSError as error:
        raise _no_place(path, error) from error
    with quarantine as folder:
        fetched = Path(folder) / path.name
        try:
            fetcher.fetch(locator, fetched)
            if not fetched.is_file():
                raise ConnectionError("nothing arrived")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_place(path, error) from error
            raise DownloadFailed(
                wanted=address, got=f"{type(error).__name__}: {error}", next_step=f"try again later, or {by_hand}"
            ) from error
        try:
            read_state_dict(fetched)
        except HpmBenchError as error:
            raise IntegrityError(
                wanted=f"a checkpoint from {address}",
                got=f"{error.got}; it was not kept",
                next_step=f"try again later, or {by_hand}",
            ) from error
        fetched.replace(path)


def _no_place(path: Path, error: OSError) -> StorageProblem:
    return StorageProblem(
        wanted=f"to write {path}",
        got=error.strerror or type(error).__name__,
        next_step="free some space or make the folder writable, or name another one with --model_dir",
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
