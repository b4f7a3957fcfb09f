"""NumPy archives: ``x_test``, ``y_test`` and perhaps ``x_train``, ``y_train``; or ``x``, ``y``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from hpm_robustbench.data.examples import DataSource, Pair
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.data.pixels import Shape, images_from_array, labels_from_array
from hpm_robustbench.errors import HpmBenchError, IntegrityError, InvalidInput, first_line
from hpm_robustbench.threat import Dataset


def open_npz(name: str, path: Path) -> DataSource:
    """A source over an archive; a name that is not known takes its classes and shape from the arrays.

    Raises:
        InvalidInput: arrays are missing, or are no images and labels.
        IntegrityError: the file is truncated, foreign, or holds pickled objects.
    """
    with _opened(path) as archive:
        found = sorted(archive.files)
    test = ("x", "y") if "x_test" not in found and "x" in found else ("x_test", "y_test")
    train = ("x_train", "y_train") if {"x_train", "y_train"} & set(found) else None
    missing = {*test, *(train or ())} - set(found)
    if missing:
        raise InvalidInput(
            wanted="arrays x_test and y_test (or x and y), and x_train with y_train if there are training images",
            got=f"{path} with {', '.join(found) or 'no arrays'}",
            next_step=f"add {', '.join(sorted(missing))}",
        )
    dataset = KNOWN.get(name) or _describe(name, path, test, train)
    return DataSource(
        dataset,
        partial(_read, path, test, dataset.image_shape),
        partial(_read, path, train, dataset.image_shape) if train else None,
        partial(_count, path, train[1]) if train else None,
    )


def _describe(name: str, path: Path, test: tuple[str, str], train: tuple[str, str] | None) -> Dataset:
    with _opened(path) as archive:
        labels = torch.cat([labels_from_array(archive[pair[1]]) for pair in (test, train) if pair])
        first = archive[test[0]][:1]
    n_classes = int(labels.max()) + 1 if len(labels) else 0
    channels, height, width = images_from_array(first).shape[1:]
    return Dataset(name, n_classes, (channels, height, width))


def _read(path: Path, names: tuple[str, str], shape: Shape, n: int | None) -> Pair:
    with _opened(path) as archive:
        images, labels = (archive[name] for name in names)
    return images_from_array(images[:n], shape), labels_from_array(labels[:n])


def _count(path: Path, labels: str) -> int:
    with _opened(path) as archive:
        return len(archive[labels])


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    try:
        # NumPy leaves a file that it opened itself open when the archive in it is damaged.
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise ValueError("a single array, where named arrays are needed")
            with archive:
                yield archive
    except HpmBenchError:
        raise
    except Exception as error:  # a damaged or hostile header makes NumPy raise nearly anything
        raise IntegrityError(
            wanted=f"a readable .npz archive at {path}",
            got=f"{type(error).__name__}: {first_line(error)}",
            next_step="write it again with numpy.savez, arrays of numbers only",
        ) from error
