"""CIFAR-10-C, CIFAR-100-C, ImageNet-C and sets laid out like them: test images under every corruption and severity.

    CIFAR-10-C/labels.npy
    CIFAR-10-C/<corruption>.npy                        the images of severity 1, then those of severity 2, up to 5
    ImageNet-C/<corruption>/<severity>/<class>/*.JPEG

Row i of every severity of every corruption is test image i, corrupted.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019. RobustBench's own evaluation stops at these sets (its issue 194), so they are read here.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from hpm_robustbench.data.examples import ExampleSet
from hpm_robustbench.data.folder import class_names, listing, read_image
from hpm_robustbench.data.pixels import images_from_array, labels_from_array
from hpm_robustbench.errors import IntegrityError, InvalidInput, UnknownName, UsageProblem, first_line
from hpm_robustbench.threat import Corruptions, Dataset

SETS = {
    "cifar10": ("CIFAR-10-C", "CIFAR-10-C.tar from https://zenodo.org/records/2535967"),
    "cifar100": ("CIFAR-100-C", "CIFAR-100-C.tar from https://zenodo.org/records/3555552"),
    "imagenet": ("ImageNet-C", "ImageNet-C from https://zenodo.org/records/2235448"),
}
"""The folder that each set unpacks to, and where it comes from."""


class CorruptedSource(ABC):
    """The same test images under every corruption and severity; no image is kept here."""

    def __init__(self, dataset: Dataset, folder: Path, labels: Tensor) -> None:
        self.dataset, self.folder, self.labels = dataset, folder, labels

    def __len__(self) -> int:
        """Images in each set."""
        return len(self.labels)

    def take(self, corruption: str, severity: int, rows: Sequence[int]) -> ExampleSet:
        """The given rows under one corruption.

        Raises:
            UnknownName: no such corruption or severity.
            IntegrityError: an image cannot be read.
        """
        if corruption not in Corruptions.kinds:
            raise UnknownName("corruption", corruption, Corruptions.kinds)
        if severity not in Corruptions.severities:
            raise UnknownName("severity", str(severity), map(str, Corruptions.severities))
        chosen = torch.tensor(rows, dtype=torch.int64)
        images = self._images(corruption, severity, rows)
        return ExampleSet(self.dataset, f"{corruption} {severity}", images, self.labels[chosen])

    def clean_counterpart(self, clean: ExampleSet) -> ExampleSet:
        """Those of the first clean images that are here too.

        Raises:
            InvalidInput: they have other labels, so they are other images.
        """
        n = min(len(clean), len(self))
        differing = (clean.labels[:n] != self.labels[:n]).nonzero()
        if len(differing):
            row = int(differing[0])
            raise InvalidInput(
                wanted=f"the corrupted images of {self.folder} in the order of the clean ones",
                got=f"label {int(self.labels[row])} in row {row}, where the clean image has {int(clean.labels[row])}",
                next_step="give the clean test images that the corrupted ones were made from",
            )
        return clean.head(n)

    def fingerprint(self, n: int) -> str:
        """Sha256 over the first ``n`` images of every set, as they are stored, in hex."""
        checksum = hashlib.sha256()
        for corruption, severity in itertools.product(Corruptions.kinds, Corruptions.severities):
            checksum.update(f"{corruption} {severity} {n};".encode())
            for row in range(n):
                checksum.update(self._stored(corruption, severity, row))
        return checksum.hexdigest()

    @abstractmethod
    def _images(self, corruption: str, severity: int, rows: Sequence[int]) -> Tensor: ...

    @abstractmethod
    def _stored(self, corruption: str, severity: int, row: int) -> bytes: ...


class _Arrays(CorruptedSource):
    """One array per corruption, mapped into memory."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        stored = _array(folder / "labels.npy")
        blocks = labels_from_array(stored)
        n, rest = divmod(len(blocks), len(Corruptions.severities))
        if n == 0 or rest or not (blocks.view(-1, n) == blocks[:n]).all():
            raise InvalidInput(
                wanted=f"the labels of the images five times over in {folder / 'labels.npy'}",
                got=f"{len(blocks)} labels that do not repeat so",
                next_step="fetch the set again; labels.npy belongs to it",
            )
        super().__init__(dataset, folder, blocks[:n])
        self._arrays = {corruption: self._checked(corruption) for corruption in Corruptions.kinds}

    def _checked(self, corruption: str) -> NDArray[Any]:
        path = self.folder / f"{corruption}.npy"
        array = _array(path)
        channels, height, width = self.dataset.image_shape
        shape = (len(Corruptions.severities) * len(self), height, width, channels)
        if array.dtype != np.uint8 or array.shape != shape:
            raise InvalidInput(
                wanted=f"uint8 images of shape {shape} in {path}, five times as many as there are different labels",
                got=f"{array.dtype} of shape {array.shape}",
                next_step="fetch the set again, or give another --dataset name",
            )
        return array

    def _images(self, corruption: str, severity: int, rows: Sequence[int]) -> Tensor:
        first = (severity - 1) * len(self)
        return images_from_array(self._arrays[corruption][[first + row for row in rows]], self.dataset.image_shape)

    def _stored(self, corruption: str, severity: int, row: int) -> bytes:
        stored: bytes = self._arrays[corruption][(severity - 1) * len(self) + row].tobytes()
        return stored


class _Folders(CorruptedSource):
    """One file per image, in class folders that are the same for every corruption and severity."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        sets = [folder / kind / str(severity) for kind in Corruptions.kinds for severity in Corruptions.severities]
        missing = [path for path in sets if not path.is_dir()]
        if missing:
            raise InvalidInput(
                wanted=f"a folder for each severity of each corruption in {folder}",
                got=f"{len(missing)} missing, the first {missing[0]}",
                next_step="unpack the other parts of the set there too",
            )
        found = len(class_names(sets[0]))
        if found != dataset.n_classes:
            raise InvalidInput(
                wanted=f"{dataset.n_classes} class folders in {sets[0]}, as many as {dataset.name} has classes",
                got=str(found),
                next_step="add the missing ones, empty if need be, or give another --dataset name",
            )
        files = listing(sets[0])
        super().__init__(dataset, folder, torch.tensor([label for _, label in files], dtype=torch.int64))
        self._names = [path.relative_to(sets[0]) for path, _ in files]

    def _path(self, corruption: str, severity: int, row: int) -> Path:
        return self.folder / corruption / str(severity) / self._names[row]

    def _images(self, corruption: str, severity: int, rows: Sequence[int]) -> Tensor:
        shape = self.dataset.image_shape
        return torch.stack([read_image(self._path(corruption, severity, row), shape) for row in rows])

    def _stored(self, corruption: str, severity: int, row: int) -> bytes:
        path = self._path(corruption, severity, row)
        try:
            return str(self._names[row]).encode() + path.read_bytes()
        except OSError as error:
            raise IntegrityError(
                wanted=f"an image at {path}, as for {Corruptions.kinds[0]}",
                got=error.strerror or type(error).__name__,
                next_step="unpack that part of the set again",
            ) from error


def open_corrupted(dataset: Dataset, places: Sequence[Path]) -> CorruptedSource:
    """The corrupted test images of a dataset.

    Args:
        dataset: which images.
        places: folders to look in; each may be the set itself or hold it under its official name.

    Raises:
        UsageProblem: there is nothing like it; says what to put where.
        InvalidInput: the set is not whole, or of another dataset.
        IntegrityError: a file is truncated or foreign.
    """
    folder = next((found for place in places if (found := corrupted_folder(dataset.name, place))), None)
    if folder is None:
        name, origin = SETS.get(dataset.name, (f"{dataset.name}-C", "the set"))
        raise UsageProblem(
            wanted=f"{name}/labels.npy and {name}/<corruption>.npy, or {name}/<corruption>/<severity>/<class>/*.JPEG",
            got=f"neither in {' or '.join(map(str, places))}",
            next_step=f"unpack {origin} there, or name its folder with --data or --corruptions_data_dir",
        )
    return _Arrays(dataset, folder) if _has_arrays(folder) else _Folders(dataset, folder)


def corrupted_folder(dataset: str, place: Path) -> Path | None:
    """The folder of a dataset's corrupted images at ``place``, or None."""
    name = SETS[dataset][0] if dataset in SETS else f"{dataset}-C"
    return next((folder for folder in (place / name, place) if _has_arrays(folder) or _has_folders(folder)), None)


def _has_arrays(folder: Path) -> bool:
    return any((folder / f"{kind}.npy").is_file() for kind in Corruptions.kinds)


def _has_folders(folder: Path) -> bool:
    return any((folder / kind).is_dir() for kind in Corruptions.kinds)


def _array(path: Path) -> NDArray[Any]:
    """An array on disk, of which only the rows that are used are read.

    Raises:
        InvalidInput: there is no such file.
        IntegrityError: it is truncated, foreign, or holds pickled objects.
    """
    if not path.is_file():
        raise InvalidInput(wanted=f"the file {path}", got="none", next_step="unpack the whole set there")
    try:
        array: NDArray[Any] | NpzFile = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, NpzFile):
            array.close()
            raise ValueError("named arrays, where a single one is needed")
    except Exception as error:  # a damaged or hostile header makes NumPy raise nearly anything
        raise IntegrityError(
            wanted=f"a readable array in {path}",
            got=f"{type(error).__name__}: {first_line(error)}",
            next_step="fetch the set again",
        ) from error
    return array
