"""CIFAR-10 and CIFAR-100 from their official archives, found on disk or downloaded.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. torchvision compares every file of
the archive with its known md5 before it unpickles it.
"""

from __future__ import annotations

import http.client
import logging
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpm_robustbench.data.examples import DataSource, Pair
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.data.pixels import images_from_array, labels_from_array
from hpm_robustbench.errors import DownloadFailed
from hpm_robustbench.offline import may_connect

log = logging.getLogger(__name__)

_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def open_cifar(name: str, data_dir: Path) -> DataSource:
    """A source over the official archive under ``data_dir``; reading it downloads the archive if it is not there."""
    return DataSource(KNOWN[name], partial(_read, name, data_dir, False), partial(_read, name, data_dir, True))


def _read(name: str, data_dir: Path, train: bool, n: int | None) -> Pair:
    archive = _archive(name, data_dir, train)
    return images_from_array(archive.data[:n], KNOWN[name].image_shape), labels_from_array(
        np.asarray(archive.targets[:n], dtype=np.int64)
    )


def _archive(name: str, data_dir: Path, train: bool) -> Any:
    """Torchvision's view of the archive.

    Raises:
        DownloadFailed: it is not whole on disk, and could not or may not be downloaded.
    """
    from hpm_robustbench.robustbench_compat import import_torchvision  # noqa: PLC0415 - torchvision is slow to import

    dataset_class = getattr(import_torchvision().datasets, _CLASSES[name])
    try:
        return dataset_class(str(data_dir), train=train, download=False)
    except RuntimeError:
        if not may_connect():
            raise _missing(name, dataset_class, data_dir, "no whole one, and no leave to connect") from None
        log.info("no whole %s under %s; downloading %s", dataset_class.base_folder, data_dir, dataset_class.url)
    try:
        return dataset_class(str(data_dir), train=train, download=True)
    except (OSError, EOFError, RuntimeError, http.client.HTTPException, tarfile.TarError) as error:
        raise _missing(name, dataset_class, data_dir, f"{type(error).__name__}: {error}") from error


def _missing(name: str, dataset_class: Any, data_dir: Path, got: str) -> DownloadFailed:
    return DownloadFailed(
        wanted=f"{name} as {data_dir / dataset_class.base_folder}, or from {dataset_class.url}",
        got=got,
        next_step=f"put {dataset_class.filename} into {data_dir}, name its folder with --data-dir, "
        "or give arrays x_test and y_test with --data file.npz",
    )
