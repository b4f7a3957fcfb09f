"""Folders of class folders: ``<class>/*.png``, or ``train/<class>/...`` beside ``test/`` (or ``val/``).

Classes are numbered by their folders' names in sorted order, as torchvision's ``ImageFolder`` does. Images are taken as
they are, unless a preprocessing is named and one of those read has another size than it gives.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hpm_robustbench.data.examples import DataSource, Pair
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.data.pixels import Shape
from hpm_robustbench.data.preprocessing import Preprocessing
from hpm_robustbench.errors import IntegrityError, InvalidInput
from hpm_robustbench.threat import Dataset

log = logging.getLogger(__name__)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
_GREY = ("1", "L")
_COLOUR = ("P", "RGB", "RGBA", "CMYK")


def open_folder(name: str, folder: Path, preprocessing: str | None = None) -> DataSource:
    """A source over class folders; a name that is not known takes its shape from the first image.

    Args:
        name: of the dataset.
        folder: holds the class folders, or a folder of them for each split.
        preprocessing: what is done to original images, see ``Preprocessing``.

    Raises:
        UsageProblem: there is no such preprocessing.
        InvalidInput: no images, training classes that differ, or not as many classes as a known dataset has.
        IntegrityError: the first image cannot be read.
    """
    return open_splits(name, *_splits(folder), preprocessing)


def open_splits(name: str, test: Path, train: Path | None, preprocessing: str | None = None) -> DataSource:
    """The same over a folder of classes to evaluate on, and perhaps one to learn from; see ``open_folder``."""
    classes = class_names(test)
    if train and class_names(train) != classes:
        raise InvalidInput(
            wanted=f"the same class folders in {train} and {test}",
            got=f"{len(class_names(train))} and {len(classes)} of them, or other names",
            next_step="make the class folders the same",
        )
    known = KNOWN.get(name)
    if known and known.n_classes != len(classes):
        raise InvalidInput(
            wanted=f"{known.n_classes} class folders in {test}, as many as {name} has classes",
            got=str(len(classes)),
            next_step="add the missing ones, empty if need be, or give another --dataset name",
        )
    dataset = known or Dataset(name, len(classes), _shape(listing(test)[0][0]))
    prepare = None if preprocessing is None else Preprocessing.parse(preprocessing)
    if prepare is not None:
        dataset = replace(dataset, image_shape=(dataset.image_shape[0], prepare.side, prepare.side))
    return DataSource(
        dataset,
        partial(_read, test, dataset.image_shape, prepare),
        partial(_read, train, dataset.image_shape, prepare) if train else None,
        (lambda: len(listing(train))) if train else None,
    )


def _splits(folder: Path) -> tuple[Path, Path | None]:
    """The folders of test and training classes; a folder without ``test`` or ``val`` is all test."""
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if test is None:
        return folder, None
    return test, folder / "train" if (folder / "train").is_dir() else None


def class_names(root: Path) -> list[str]:
    """The names of the class folders, in the order of their numbers."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def listing(root: Path) -> list[tuple[Path, int]]:
    """Every image file with its label, in one fixed mixed order, so that the first few are not all of one class.

    Raises:
        InvalidInput: there are none.
    """
    files = [
        (path, label)
        for label, name in enumerate(class_names(root))
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise InvalidInput(
            wanted=f"images ({', '.join(_SUFFIXES)}) in one folder per class in {root}",
            got="none",
            next_step="put the images of each class into a folder of its own",
        )
    # The one generator whose stream NumPy promises never to change.
    order = np.random.RandomState(0).permutation(len(files))
    return [files[position] for position in order]


def _read(root: Path, shape: Shape, prepare: Preprocessing | None, n: int | None) -> Pair:
    files = listing(root)[:n]
    if prepare is not None and all(_shape(path)[1:] == shape[1:] for path, _ in files):
        log.info("the images in %s are %d x %d already and are taken as they are", root, *shape[1:])
        prepare = None
    images = torch.empty(len(files), *shape)
    for row, (path, _) in enumerate(files):
        images[row] = read_image(path, shape, prepare)
    return images, torch.tensor([label for _, label in files], dtype=torch.int64)


def _shape(path: Path) -> Shape:
    with _opened(path) as image:
        return (1 if image.mode in _GREY else 3, image.height, image.width)


def read_image(path: Path, shape: Shape, prepare: Preprocessing | None = None) -> torch.Tensor:
    """One image in [0, 1] as C H W; grey becomes colour where the dataset is, the rest is up to ``prepare``."""
    channels, height, width = shape
    with _opened(path) as image:
        fits = prepare is not None or (image.height, image.width) == (height, width)
        if not fits or (channels == 1 and image.mode not in _GREY):
            raise InvalidInput(
                wanted=f"every image {height} pixels high, {width} wide and {'grey' if channels == 1 else 'in colour'}",
                got=f"{path}, {image.height} high, {image.width} wide, mode {image.mode}",
                next_step="crop, resize or convert the images first; nothing is resized here",
            )
        try:
            plain = image.convert("L" if channels == 1 else "RGB")
            pixels = np.asarray(plain if prepare is None else prepare.apply(plain), dtype=np.float32)
        except (OSError, ValueError, SyntaxError) as error:
            raise _unreadable(path, error) from error
    return torch.from_numpy(pixels / 255).reshape(height, width, channels).permute(2, 0, 1)


def _opened(path: Path) -> Image.Image:
    """An image whose header was read.

    Raises:
        IntegrityError: it is no image of a supported format.
        InvalidInput: its pixels are neither 8-bit grey nor 8-bit colour.
    """
    try:
        image = Image.open(path, formats=_FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if image.mode not in (*_GREY, *_COLOUR):
        image.close()
        raise InvalidInput(
            wanted="images of 8-bit grey or colour pixels",
            got=f"{path} of mode {image.mode}",
            next_step="convert it to 8-bit PNG",
        )
    return image


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        wanted=f"a whole image ({', '.join(_FORMATS)}) at {path}",
        got=f"{type(error).__name__}: {error}",
        next_step="replace or remove that file",
    )
