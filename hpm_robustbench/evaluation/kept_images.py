"""Adversarial images that a run keeps on request: only what broke a standing row, one file per shard and step.

    runs/<run key>/images/00003/02-apgd-t@hpm.safetensors

A batch-coupled target is kept whole batches, since a row is broken by its mates too. A file holds ``images``, their
``rows``, which of them are ``broken``, and in which ``batch`` they were submitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.shapes import Images, Mask


class KeptImages(NamedTuple):
    """Images [M C H W], the row of each, whether it is broken, and the number of the batch that it was part of."""

    images: Images
    rows: Tensor
    broken: Mask
    batch: Tensor


class Keeper:
    """Collects what the answers of one step broke; an image that broke a row first is the one that is kept."""

    def __init__(self, rows: Tensor, batches: Sequence[slice], *, coupled: bool) -> None:
        self._rows, self._batches, self._coupled = rows, batches, coupled
        self._done = torch.zeros_like(rows, dtype=torch.bool)
        self._kept: list[KeptImages] = []

    def add(self, x_adv: Images, broken: Mask) -> None:
        """Keep what this answer broke and no earlier one had."""
        fresh = broken & ~self._done
        self._done |= fresh
        for rows in self._batches:
            if fresh[rows].any():
                wanted = torch.ones_like(fresh[rows]) if self._coupled else fresh[rows]
                number = torch.full_like(self._rows[rows][wanted], len(self._kept))
                self._kept.append(
                    KeptImages(x_adv[rows][wanted], self._rows[rows][wanted], fresh[rows][wanted], number)
                )

    def write(self, path: Path) -> None:
        """Put down what was kept, if anything was, whole or not at all."""
        if self._kept:
            columns = (torch.cat(column).cpu().contiguous() for column in zip(*self._kept, strict=True))
            write_atomic(path, safetensors.torch.save(dict(zip(KeptImages._fields, columns, strict=True))))


def kept_path(journal: Journal, shard: int, step: str) -> Path:
    """Where the images that a step broke in a shard lie."""
    result = journal.path(shard, step)
    return journal.folder / "images" / result.parent.name / f"{result.stem}.safetensors"


def read_kept(path: Path, rows: Sequence[int], shape: tuple[int, ...]) -> KeptImages:
    """Read a file of kept images, believing nothing of it.

    Args:
        path: the file.
        rows: of the shard it should tell of.
        shape: of one image.

    Raises:
        IntegrityError: it is torn or foreign, or tells of other rows or images.
    """
    try:
        kept = KeptImages(**safetensors.torch.load(path.read_bytes()))
        images, *rest = kept
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != shape:
            raise ValueError(f"images {images.dtype} of shape {tuple(images.shape)}")
        if any(tuple(column.shape) != (len(images),) for column in rest) or kept.broken.dtype != torch.bool:
            raise ValueError("columns of other lengths or types")
        if not set(kept.rows.tolist()) <= set(rows):
            raise ValueError("rows of another shard")
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise IntegrityError(
            wanted=f"kept adversarial images in {path}",
            got=str(error),
            next_step="remove that file and run the same command again with --keep-images",
        ) from error
    return kept
