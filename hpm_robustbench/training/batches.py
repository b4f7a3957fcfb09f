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

    Images and labels lie on the device that trains.
    """

    def __init__(self, images: Images, labels: Labels, tuning: Tuning) -> None:
        self._images, self._labels, self._tuning = images, labels, tuning
        self._size = min(tuning.recipe.batch_size, len(images))
        self.per_epoch = len(images) // self._size
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        rows = self._rows(epoch)[place * self._size : (place + 1) * self._size]
        seed = self._tuning.seed
        x = augmented(self._images[rows], self._tuning.recipe, drawn(seed, "augment", step))
        lender = None
        if self._tuning.control is Control.SHUFFLED:
            lender = torch.randperm(len(rows), generator=drawn(seed, "shuffle", step)).to(rows.device)
        return Batch(x, self._labels[rows], lender)

    def _rows(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            order = torch.randperm(len(self._images), generator=drawn(self._tuning.seed, "order", epoch))
            self._order = epoch, order.to(self._images.device)
        return self._order[1]
