"""What to say where memory ends in the middle of a trial: what is finished is kept, and smaller batches will do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.training.memory import is_of_memory


@contextmanager
def enough_memory(device: str | torch.device, batch_size: int, option: str = "--batch-size") -> Iterator[None]:
    """Turn an error that says that memory has ended into one that says which option needs less of it.

    Args:
        device: where it ended.
        batch_size: images that were worked on together.
        option: what sets that number.

    Raises:
        UsageProblem: memory has ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_memory(error):
            raise
        raise UsageProblem(
            wanted=f"memory on {device} for {batch_size} images at a time",
            got=next(iter(str(error).splitlines()), type(error).__name__),
            next_step=f"free some, or try fewer at a time with {option}, which is part of what a card tells; "
            "every step that is finished with the same options is kept",
        ) from error
