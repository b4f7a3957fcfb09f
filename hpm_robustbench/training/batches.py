"""The training images in their order: each batch follows from the seed and its number alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hpm_robustbench.shapes import Images, Labels
from hpm_robustbench.training.augment import augmented
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.recipe import Control, Tuning


class Batch(NamedTuple):
    """Images as they are trained on, their labels, and who lends each image its membership under ``shuffled``."""

    x: Tensor
    labels: Tensor
    lender: Tensor | None


class Batches:
    """All whole batches of every epoch; what is left over after the last one differs from epoch to epoch.

    The images stay where they are, as they may be many, and each batch is brought to the device that trains.
    """

    def __init__(self, images: Images, labels: Labels, rows: Tensor, tuning: Tuning, device: torch.device) -> None:
        self._images, self._labels, self._rows = images, labels, rows
        self._tuning, self._device = tuning, device
        self._size = min(tuning.recipe.batch_size, len(rows))
        self.per_epoch = len(rows) // self._size
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        rows = self._in_order(epoch)[place * self._size : (place + 1) * self._size]
        seed = self._tuning.seed
        images, labels = (_brought(tensor[rows], self._device) for tensor in (self._images, self._labels))
        lender = None
        if self._tuning.control is Control.SHUFFLED:
            lender = torch.randperm(len(rows), generator=drawn(seed, "shuffle", step)).to(self._device)
        return Batch(augmented(images, self._tuning.recipe, drawn(seed, "augment", step)), labels, lender)

    def _in_order(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            order = torch.randperm(len(self._rows), generator=drawn(self._tuning.seed, "order", epoch))
            self._order = epoch, self._rows[order]
        return self._order[1]


def _brought(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from pinned memory the copy to a GPU need not be waited for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
