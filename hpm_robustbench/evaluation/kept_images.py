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
from hpm_robustbench.ledger.record import StepResult
from hpm_robustbench.shapes import Images, Mask

_NAMED = 8
"""Rows that a message names."""


class KeptImages(NamedTuple):
    """Images [M C H W], the row of each, whether it is broken, and the number of the batch that it was part of."""

    images: Images
    rows: Tensor
    broken: Mask
    batch: Tensor

    @property
    def submitted(self) -> list[Tensor]:
        """Positions of the images that were put to the target together."""
        _, sizes = torch.unique_consecutive(self.batch, return_counts=True)
        return list(torch.split(torch.arange(len(self.batch)), sizes.tolist()))


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


def check_repeated(written: StepResult, again: StepResult, path: Path) -> None:
    """See that a step that is done again, for the sake of its images, comes to the verdicts that it came to before.

    Raises:
        IntegrityError: it does not; its images would be evidence of something else.
    """
    verdicts = zip(written.rows, written.verdict, again.verdict, strict=True)
    differing = [row for row, before, now in verdicts if before != now]
    if differing:
        raise IntegrityError(
            wanted=f"the verdicts of {path} again, to keep the images behind them",
            got=f"other verdicts on {named_rows(differing)}",
            next_step="run the same command with --keep-images on the machine that wrote it, or into another --output",
        )


def read_kept(
    path: Path, fallen: Sequence[int], shape: tuple[int, ...], batches: Sequence[Sequence[int]] | None
) -> KeptImages:
    """Read the images by which a step took rows of a shard, believing nothing of the file.

    Args:
        path: the file.
        fallen: the rows that the step took, as the journal has it; each must be there once.
        shape: of one image.
        batches: rows of the batches in which they were answered, which must be there whole; None where each broken
            image is kept for itself.

    Raises:
        IntegrityError: the file is not there, torn or foreign, or tells of other rows, batches or images.
    """
    try:
        kept = KeptImages(**safetensors.torch.load(path.read_bytes()))
        _check_columns(kept, shape)
        _check_rows(kept, fallen, batches)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        gone = isinstance(error, FileNotFoundError)
        again = "run the same command again with --keep-images, without --verify"
        raise IntegrityError(
            wanted=f"in {path} the images by which that step broke {named_rows(fallen)}",
            got="no such file" if gone else str(error),
            next_step=again if gone else f"remove that file and {again}",
        ) from error
    return kept


def named_rows(rows: Sequence[int]) -> str:
    """``row 3`` or ``rows 3, 5, 8 and 4 more``."""
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:_NAMED]))}{more}"


def _check_columns(kept: KeptImages, shape: tuple[int, ...]) -> None:
    images, *rest = kept
    if images.dtype != torch.float32 or tuple(images.shape[1:]) != shape:
        raise ValueError(f"images {images.dtype} of shape {tuple(images.shape)}")
    types = [column.dtype for column in rest]
    if any(tuple(column.shape) != (len(images),) for column in rest) or types != [torch.int64, torch.bool, torch.int64]:
        raise ValueError("columns of other lengths or types")


def _check_rows(kept: KeptImages, fallen: Sequence[int], batches: Sequence[Sequence[int]] | None) -> None:
    if sorted(kept.rows[kept.broken].tolist()) != sorted(fallen):
        raise ValueError("other rows")
    if batches is None:
        together = bool(kept.broken.all())
    else:
        together = all(kept.rows[batch].tolist() in batches for batch in kept.submitted)
    if not together:
        raise ValueError("rows that were not answered together")
