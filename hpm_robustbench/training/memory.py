"""Fewer images at once where memory ends, inside the same batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from hpm_robustbench.errors import UsageProblem, first_line
from hpm_robustbench.memory import is_of_memory

log = logging.getLogger(__name__)

T = TypeVar("T")


def fitting(at_once: int, attempt: Callable[[int], T]) -> tuple[int, T]:
    """The result of ``attempt`` with ``at_once`` images, or with the first half of it that fits into memory.

    Raises:
        UsageProblem: not even one image fits.
    """
    while True:
        try:
            return at_once, attempt(at_once)
        except (RuntimeError, MemoryError) as error:
            if not is_of_memory(error):
                raise
            if at_once == 1:
                raise UsageProblem(
                    wanted="memory for images that pass one at a time, and then for the answers of a batch",
                    got=first_line(error),
                    next_step="free some, train on a larger device, or take smaller batches with --tune batch_size=...",
                ) from error
        # Outside the handler: the error's traceback holds on to what did not fit.
        at_once = (at_once + 1) // 2
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        log.warning("out of memory; from now on %d images at once, inside the same batch", at_once)
