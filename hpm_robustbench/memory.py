"""Where memory ends: how an error says so, and what to tell a person in the middle of a trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpm_robustbench.errors import UsageProblem, first_line

_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "_status_alloc_failed")


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has ended, in the words of an accelerator, its libraries or a CPU."""
    told = str(error).casefold()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in told for text in _MESSAGES)


@contextmanager
def enough_memory(batch_size: int, option: str = "--batch-size") -> Iterator[None]:
    """Turn an error that says that memory has ended into one that says what needs less of it.

    Args:
        batch_size: images that are worked on together.
        option: of ``hpm-bench run``, which sets that number.

    Raises:
        UsageProblem: memory has ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_memory(error):
            raise
        raise UsageProblem(
            wanted=f"memory for {batch_size} images at a time",
            got=first_line(error),
            next_step="free some (on a CPU: fewer --workers) and repeat the command, which continues; or give "
            f"hpm-bench run a smaller {option}, which starts a new trial",
        ) from error
