"""Folders of idx files, the format of MNIST: ``t10k-images-idx3-ubyte`` and its kin, each plain or ``.gz``.

Source of the format: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpm_robustbench.data.examples import DataSource, Pair
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.data.pixels import Shape, images_from_array, labels_from_array
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.threat import Dataset

TEST, TRAIN = "t10k", "train"
_UNSIGNED_BYTES = 0x08
_MAX_BYTES = 2**32
"""No file of this kind is larger; a header that promises more is not believed."""


def has_idx_files(folder: Path) -> bool:
    """Whether ``folder`` holds idx test images."""
    return _find(folder, TEST, "images-idx3") is not None


def open_idx(name: str, folder: Path) -> DataSource:
    """A source over a folder with idx files; a name that is not known takes its classes and shape from them.

    Raises:
        IntegrityError: a file is missing, truncated or foreign.
    """
    dataset = KNOWN.get(name) or _describe(name, folder)
    has_train = _find(folder, TRAIN, "images-idx3") is not None
    return DataSource(
        dataset,
        partial(_read, folder, TEST, dataset.image_shape),
        partial(_read, folder, TRAIN, dataset.image_shape) if has_train else None,
    )


def read_idx(path: Path, rank: int) -> NDArray[Any]:
    """The uint8 array of the given rank in one idx file.

    Raises:
        IntegrityError: the file is not exactly that.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(4 + 4 * rank)
            if len(header) < 4 + 4 * rank or header[:4] != bytes((0, 0, _UNSIGNED_BYTES, rank)):
                raise ValueError(f"a file that starts with {header[:4].hex() or 'nothing'}")
            shape = struct.unpack(f">{rank}I", header[4:])
            promised = math.prod(shape)
            if promised > _MAX_BYTES:
                raise ValueError(f"a header that promises {promised} bytes")
            content = stream.read(promised + 1)
            if len(content) != promised:
                raise ValueError(f"{'more' if len(content) > promised else 'fewer'} than the {promised} bytes promised")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise IntegrityError(
            wanted=f"a whole idx file of unsigned bytes with {rank} dimensions at {path}",
            got=f"{type(error).__name__}: {error}",
            next_step="fetch the file again",
        ) from error
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _describe(name: str, folder: Path) -> Dataset:
    splits = [split for split in (TEST, TRAIN) if _find(folder, split, "images-idx3")]
    n_classes = 1 + max(int(read_idx(_need(folder, split, "labels-idx1"), 1).max(initial=0)) for split in splits)
    _, height, width = read_idx(_need(folder, TEST, "images-idx3"), 3).shape
    return Dataset(name, n_classes, (1, height, width))


def _read(folder: Path, split: str, shape: Shape, n: int | None) -> Pair:
    images = read_idx(_need(folder, split, "images-idx3"), 3)
    labels = read_idx(_need(folder, split, "labels-idx1"), 1)
    return images_from_array(images[:n], shape), labels_from_array(labels[:n])


def _find(folder: Path, split: str, kind: str) -> Path | None:
    names = (f"{split}-{kind}-ubyte", f"{split}-{kind}-ubyte.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _need(folder: Path, split: str, kind: str) -> Path:
    path = _find(folder, split, kind)
    if path is None:
        raise IntegrityError(
            wanted=f"{split}-{kind}-ubyte or {split}-{kind}-ubyte.gz in {folder}",
            got="neither",
            next_step="put the file beside its partner",
        )
    return path
