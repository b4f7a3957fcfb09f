"""Where the files of a checkpoint may lie already, and where a download of them goes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import torch

from hpm_robustbench.errors import UnknownName
from hpm_robustbench.weights.hub import Hub
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import WeightsRef

_SHOWN = 64


@dataclass(frozen=True)
class Place:
    """One file of a checkpoint.

    Attributes:
        locator: with its source, such as ``gdrive:15tUx-...``.
        path: where it is expected: RobustBench's place, the place of the architecture's library, or a path of one's
            own. A state dict may lie beside it as ``.safetensors``.
        fetched: where a download goes; None if it cannot be downloaded.
        shared: where RobustBench keeps the same file for other models.
    """

    locator: str
    path: Path
    fetched: Path | None = None
    shared: tuple[Path, ...] = ()

    def find(self, *, exactly: bool) -> Path:
        """The file that is used; does not exist if it has to be downloaded.

        Args:
            exactly: only the original will do, since its sha256 is known.
        """
        if self.fetched is None:
            return self.path
        beside = [] if exactly else [self.path.with_suffix(".safetensors")]
        candidates = [*beside, self.path, self.fetched, *self.shared]
        return next((path for path in candidates if path.exists()), self.fetched)

    def by_hand(self, *, exactly: bool) -> str:
        """What to do about a file that cannot be downloaded; ``exactly`` as for ``find``."""
        beside = "" if exactly else f", or its state dict at {self.path.with_suffix('.safetensors')}"
        return f"try again later, or put the file at {self.path}{beside}"


def places(reference: WeightsRef, model_dir: Path) -> list[Place]:
    """Where each file of a checkpoint lies or will lie; the Hub's files are brought, since its client keeps them.

    Raises:
        UnknownName: nobody knows its source.
        HpmBenchError: see ``Hub.fetch``.
    """
    kinds: dict[str, Callable[[WeightsRef, Path], list[Path]]] = {
        "file": lambda reference, _: [Path(locator).expanduser() for locator in reference.locators],
        "gdrive": _robustbench_places,
        "hf": lambda reference, _: [Hub().fetch(HubFile.parse(locator))[0] for locator in reference.locators],
        "package": lambda reference, _: [Path(str(files("hpm_robustbench").joinpath(n))) for n in reference.locators],
        "upstream": lambda reference, _: [_library_place(url) for url in reference.locators],
    }
    if reference.source not in kinds:
        raise UnknownName("source of weights", reference.source, kinds)
    downloads = reference.source in ("gdrive", "upstream")
    paths = kinds[reference.source](reference, model_dir)
    shared = reference.shared or ((),) * len(paths)
    return [
        Place(
            locator,
            path,
            fetched_place(locator, model_dir) if downloads else None,
            tuple(model_dir / other for other in others),
        )
        for locator, path, others in zip(reference.full_locators, paths, shared, strict=True)
    ]


def fetched_place(locator: str, model_dir: Path) -> Path:
    """Where a download lies: named after what was asked for, so that models that share a checkpoint share the file."""
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", locator)[-_SHOWN:].strip("-_")
    return model_dir / "fetched" / f"{readable}-{hashlib.sha256(locator.encode()).hexdigest()[:16]}.pt"


def _robustbench_places(reference: WeightsRef, model_dir: Path) -> list[Path]:
    single = model_dir / reference.cache
    if len(reference.locators) == 1:
        return [single]
    return [single.with_name(f"{single.name}_m{i}.pt") for i in range(len(reference.locators))]


def _library_place(url: str) -> Path:
    """Where torchvision and timm keep a file that they have fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
