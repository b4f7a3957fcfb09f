"""Labelled images that keep their contract, and a source of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.threat import Dataset

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Images and labels as a reader found them, not yet checked."""
Read: TypeAlias = Callable[[int | None], Pair]
"""Reads the first n rows of a split, or all of them."""


@dataclass(frozen=True, eq=False)
class ExampleSet:
    """Images and labels of one split, checked once, so that nobody downstream has to.

    ``images``: float32 in [0, 1], N C H W in the dataset's shape; contiguous here, however they lay before, since the
    reference AutoAttack flattens what it makes in the layout of the images. ``labels``: int64 in [0, K). At least one
    row.
    ``cut_from``: how many images the split holds, where these are the first of them for want of room.

    Raises:
        InvalidInput: anything else; the message names the first bad row.
    """

    dataset: Dataset
    split: str
    # Plain tensors here: only what passed the checks below has the shapes that the rest of the house relies on.
    images: Tensor
    labels: Tensor
    cut_from: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor):
            object.__setattr__(self, "images", self.images.detach())
        _check_images(self.dataset, self.images)
        _check_labels(self.dataset, self.labels, len(self.images))
        object.__setattr__(self, "images", self.images.contiguous())

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over the shape, the little-endian bytes of the images and those of the labels, in hex."""
        checksum = hashlib.sha256(str(tuple(self.images.shape)).encode())
        checksum.update(self.images.cpu().contiguous().numpy().astype("<f4", copy=False).data)
        checksum.update(self.labels.cpu().contiguous().numpy().astype("<i8", copy=False).data)
        return checksum.hexdigest()

    def take(self, rows: Sequence[int] | slice) -> ExampleSet:
        """The given rows, in the given order.

        Raises:
            InvalidInput: no rows, or a row that is not there.
        """
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows
        for row in chosen:
            if not 0 <= row < len(self):
                raise InvalidInput(
                    wanted=f"rows of the {len(self)} {self.dataset.name} {self.split} examples",
                    got=f"row {row}",
                    next_step=f"choose rows from 0 to {len(self) - 1}",
                )
        index = torch.tensor(chosen, dtype=torch.int64)
        return ExampleSet(self.dataset, self.split, self.images[index], self.labels[index])

    def head(self, n: int) -> ExampleSet:
        """The first ``n`` rows, sharing memory with this set.

        Raises:
            InvalidInput: ``n`` is below one, or more than there are.
        """
        if not 1 <= n <= len(self):
            raise InvalidInput(
                wanted=f"between 1 and {len(self)} examples, as many as {self.dataset.name} {self.split} has",
                got=str(n),
                next_step="change --n-ex",
            )
        return ExampleSet(self.dataset, self.split, self.images[:n], self.labels[:n])


@dataclass(frozen=True)
class DataSource:
    """A dataset that can be read: always test images, sometimes training images; no image is kept here.

    ``count_train`` tells how many training images there are, where that is known without decoding them.
    """

    dataset: Dataset
    read_test: Read
    read_train: Read | None = None
    count_train: Callable[[], int] | None = None

    def test(self, n: int | None = None, *, at_most: int | None = None) -> ExampleSet:
        """The test split, or only its first ``n`` rows, in an order that never changes.

        Args:
            n: exactly so many.
            at_most: so many, or all if there are fewer.

        Raises:
            InvalidInput: the images break the contract, or there are fewer than ``n``.
            IntegrityError: a file is truncated or foreign.
        """
        return self._examples("test", self.read_test, n, at_most)

    def train(self, n: int | None = None, *, at_most: int | None = None) -> ExampleSet | None:
        """The training split likewise, or None if the source has none."""
        return self._examples("train", self.read_train, n, at_most) if self.read_train else None

    def _examples(self, split: str, read: Read, n: int | None, at_most: int | None) -> ExampleSet:
        examples = ExampleSet(self.dataset, split, *read(at_most if n is None else n))
        return examples if n is None else examples.head(n)


def _check_images(dataset: Dataset, images: Tensor) -> None:
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != dataset.image_shape or len(images) == 0:
        raise InvalidInput(
            wanted=f"float32 {dataset.name} images of shape {_times(('N', *dataset.image_shape))}, N at least 1",
            got=f"{images.dtype} of shape {_times(images.shape)}",
            next_step="give this dataset's own images, or another --dataset name",
        )
    lowest, highest = (float(bound) for bound in torch.aminmax(images))
    if lowest >= 0 and highest <= 1:  # false for NaN, which aminmax propagates
        return
    outside = ~((images >= 0) & (images <= 1)).flatten(1).all(dim=1)
    row = int(outside.nonzero()[0])
    worst = images[row][~((images[row] >= 0) & (images[row] <= 1))][0]
    raise InvalidInput(
        wanted=f"{dataset.name} images with every value in [0, 1]",
        got=f"{float(worst)} in row {row}, and {int(outside.sum())} such rows in all",
        next_step="scale the images to [0, 1] and leave any normalisation to the model",
    )


def _check_labels(dataset: Dataset, labels: Tensor, n: int) -> None:
    if labels.dtype != torch.int64 or tuple(labels.shape) != (n,):
        raise InvalidInput(
            wanted=f"int64 labels of shape {n}, one per image",
            got=f"{labels.dtype} of shape {_times(labels.shape)}",
            next_step="give one class number per image",
        )
    outside = (labels < 0) | (labels >= dataset.n_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise InvalidInput(
            wanted=f"{dataset.name} labels from 0 to {dataset.n_classes - 1}",
            got=f"{int(labels[row])} in row {row}, and {int(outside.sum())} such rows in all",
            next_step="number the classes from 0, or give another --dataset name",
        )


def _times(shape: Sequence[int | str]) -> str:
    return " x ".join(map(str, shape)) or "()"
