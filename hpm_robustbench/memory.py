"""Where memory ends: how an error says so, and what to tell a person in the middle of a trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from hpm_robustbench.errors import UsageProblem, first_line

_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "_status_alloc_failed")


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has ended, in the words of an accelerator, its libraries or a CPU."""
    told = str(error).casefold()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in told for text in _MESSAGES)


@contextmanager
def room_for(what: str, next_step: str) -> Iterator[None]:
    """Turn an error that says that memory has ended into one that says what needs less of it.

    Raises:
        UsageProblem: memory has ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_of_memory(error):
            raise
        raise UsageProblem(wanted=f"memory for {what}", got=first_line(error), next_step=next_step) from error


def enough_memory(batch_size: int, option: str = "--batch-size") -> AbstractContextManager[None]:
    """See ``room_for``: for ``batch_size`` images at a time, as an ``option`` of ``hpm-bench run`` sets it."""
    return room_for(
        f"{batch_size} images at a time",
        "free some (on a CPU: fewer --workers) and repeat the command, which continues; or give hpm-bench run a "
        f"smaller {option}, which starts a new trial",
    )
