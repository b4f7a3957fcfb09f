"""What the demo costs: wall time, peak memory, and the share of time inside model calls.

    python benchmarks/demo.py [--model NAME] [--n-ex 1000]

A model call is a forward pass of the backbone or a backward pass through it; the rest is attack code, prototypes,
judging and writing. The run starts from nothing, in a folder of its own.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.pipeline import evaluate
from hpm_robustbench.request.models import find_spec
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.zoo.builtin import DIGITS_MODEL


class Stopwatch:
    """Adds up the time spent inside the functions it wraps, the outermost call only."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        @wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self._inside:
                return function(*arguments, **keywords)
            self._inside, start = True, time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - start

        return timed


@contextmanager
def timing_model_calls() -> Iterator[Stopwatch]:
    """Time the backbone's forward passes and every backward pass."""
    watch = Stopwatch()
    places = [(HPMClassifier, "embed"), (torch.nn.Sequential, "forward"), (torch.autograd, "grad")]
    places.append((torch.Tensor, "backward"))
    originals = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, original in originals:
        setattr(owner, name, watch.around(original))
    try:
        yield watch
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def main() -> None:
    """Run once and print three numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DIGITS_MODEL)
    parser.add_argument("--n-ex", type=int, default=1000)
    given = parser.parse_args()
    spec = find_spec(given.model)
    with tempfile.TemporaryDirectory() as folder, timing_model_calls() as watch:
        start = time.perf_counter()
        evaluate(spec, RunOptions(n_ex=given.n_ex, output=Path(folder)))
        wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"wall time          {wall:8.1f} s ({torch.get_num_threads()} torch threads)")
    print(f"peak memory        {peak:8.0f} MiB")
    print(f"inside model calls {100 * watch.seconds / wall:8.1f} %")


if __name__ == "__main__":
    main()
