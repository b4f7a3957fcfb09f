"""From a dataset's name, and perhaps a path, to a source."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hpm_robustbench.data.cifar import open_cifar
from hpm_robustbench.data.digits import open_digits
from hpm_robustbench.data.examples import DataSource
from hpm_robustbench.data.folder import class_names, open_folder, open_splits
from hpm_robustbench.data.idx import has_idx_files, open_idx
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.data.npz import open_npz
from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.zoo.spec import check_name

log = logging.getLogger(__name__)


def open_dataset(
    name: str, *, data: Path | None = None, data_dir: Path = Path("data"), preprocessing: str | None = None
) -> DataSource:
    """The source of a dataset.

    Args:
        name: a known dataset, or any safe name if ``data`` is given. A known one keeps its classes and image shape.
        data: a .npz file, a folder of idx files or a folder of class folders to read instead of the usual place.
        data_dir: where known datasets that are not part of a package lie.
        preprocessing: what is done to images in class folders that are originals, see ``Preprocessing``.

    Raises:
        UnknownName: no such dataset, and no ``data``.
        UsageProblem: the name is unsafe, or there is nothing readable at the place where the images should be.
        IntegrityError: a file is truncated or foreign.
        InvalidInput: arrays or folders break the contract.
    """
    check_name("dataset", name)
    if data is not None:
        return _open_path(name, data, preprocessing)
    if name == "imagenet":
        return _open_imagenet(data_dir, preprocessing)
    if name not in _LOADERS:
        raise UnknownName("dataset", name, KNOWN, next_step="(or give --data PATH, which makes any name usable)")
    return _LOADERS[name](data_dir)


def _open_path(name: str, path: Path, preprocessing: str | None) -> DataSource:
    if not os.access(path, os.R_OK):
        trouble = "is not there, or may not be read"
    elif path.is_dir():
        return _open_directory(name, path, preprocessing)
    elif path.suffix.lower() == ".npz":
        return open_npz(name, path)
    else:
        trouble = "is a file of another kind"
    raise UsageProblem(
        wanted="--data as a .npz file, a folder with t10k-images-idx3-ubyte, a folder of class folders, or CIFAR's own",
        got=f"{path}, which {trouble}",
        next_step="name a readable one",
    )


def _open_directory(name: str, path: Path, preprocessing: str | None) -> DataSource:
    if _has_archive(name, path):
        return open_cifar(name, path)
    return open_idx(name, path) if has_idx_files(path) else open_folder(name, path, preprocessing)


def holds_clean(name: str, folder: Path) -> bool:
    """Whether a folder that holds the corrupted images of a dataset also holds the clean ones, for ``open_dataset``."""
    return _has_archive(name, folder) or has_idx_files(folder) or any((folder / s).is_dir() for s in ("test", "val"))


def _has_archive(name: str, folder: Path) -> bool:
    return name in _ARCHIVES and (folder / _ARCHIVES[name]).is_dir()


def _open_mnist(data_dir: Path) -> DataSource:
    for folder in (data_dir, data_dir / "mnist", data_dir / "MNIST" / "raw"):
        if has_idx_files(folder):
            return open_idx("mnist", folder)
    raise UsageProblem(
        wanted=f"the MNIST files t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or .gz) in {data_dir / 'mnist'}",
        got=f"none there, in {data_dir} or in {data_dir / 'MNIST' / 'raw'}",
        next_step="put them there, or name their folder with --data",
    )


def _open_imagenet(data_dir: Path, preprocessing: str | None) -> DataSource:
    """ImageNet's usual place, with training images if they lie beside it by the same classes."""
    val, train = data_dir / "val", data_dir / "train"
    if not val.is_dir():
        raise UsageProblem(
            wanted=f"ImageNet's validation images, originals or as the model wants them, as {val / '<class>' / '*'}",
            got=f"no folder {val}",
            next_step="put one folder per class there, or name a folder or .npz file with --data",
        )
    fits = train.is_dir() and class_names(train) == class_names(val)
    if train.is_dir() and not fits:
        log.info("%s is left out: its class folders are not those of %s", train, val)
    return open_splits("imagenet", val, train if fits else None, preprocessing)


_ARCHIVES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""What the official archives unpack to."""
_LOADERS: dict[str, Callable[[Path], DataSource]] = {
    "digits": lambda data_dir: open_digits(),
    "mnist": _open_mnist,
    "cifar10": partial(open_cifar, "cifar10"),
    "cifar100": partial(open_cifar, "cifar100"),
}
