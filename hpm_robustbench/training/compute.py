"""How a device is used well: precision, memory layout, compilation, each left out where it does not help; threads."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hpm_robustbench.errors import UsageProblem, first_line
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.memory import is_of_memory
from hpm_robustbench.training.folding import Folded
from hpm_robustbench.training.learner import Learner
from hpm_robustbench.training.recipe import Recipe

log = logging.getLogger(__name__)

_TIMED = 5


@dataclass(frozen=True)
class Compute:
    """What a person decides about the machine, beside the device.

    Attributes:
        at_once: images that pass through the network together; by default the whole batch, and fewer where memory
            ends. Changes rounding, and nothing else.
        compiled: let torch.compile rewrite the backbone, where that is measured to be faster. Changes rounding.
        checkpoint_every: seconds between two checkpoints.

    Raises:
        UsageProblem: seconds that are none.
    """

    at_once: int | None = None
    compiled: bool = False
    checkpoint_every: float = 300.0

    def __post_init__(self) -> None:
        if not 0 <= self.checkpoint_every < math.inf:  # NaN too, after which there would never be one
            raise UsageProblem(
                wanted="a time between two checkpoints",
                got=f"{self.checkpoint_every / 60:g} minutes",
                next_step="give --checkpoint-minutes 5, or 0 for one after each step",
            )


@contextmanager
def as_many_threads(number: int) -> Iterator[None]:
    """Inside, torch computes with so many threads on a CPU; outside, with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def precision_on(device: torch.device, recipe: Recipe) -> torch.dtype:
    """The recipe's precision, or float32 with one log line where the device has no units for bfloat16.

    A CPU needs AMX: with AVX512-BF16 alone, passes through convolutions took 1.3 times as long as in float32.
    """
    if recipe.precision == "float32":
        return torch.float32
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    if not able:
        log.info("this device computes no faster in bfloat16; training in float32")
    return torch.bfloat16 if able else torch.float32


def prefer_channels_last(classifier: HPMClassifier, x: Tensor) -> None:
    """Keep convolution weights channels last on an accelerator, where half precision wants them so.

    A network that cannot run so keeps the usual layout; memory that ends says nothing of the layout. On a CPU,
    ``load.wrap`` has decided already.
    """
    if x.device.type == "cpu":
        return
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            classifier.embed(x)
    except RuntimeError as error:
        if is_of_memory(error):
            raise
        classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def compile_if_faster(learner: Learner, folded: Folded | None, x: Tensor) -> bool:
    """Let torch.compile rewrite a learner's backbone in place, if passes over ``x`` and back are then faster.

    It has to be faster than the folded network, where attacks go through one. Says in one line what was measured, or
    why it stays as it is.
    """
    backbone = learner.classifier.backbone
    plain = _seconds(learner, backbone if folded is None else folded.network, x)
    try:
        rewritten = _seconds(learner, torch.compile(backbone), x)
    except Exception as error:  # whatever a compiler, or what it compiles, may raise
        log.info("not compiled: %s", first_line(error))
        return False
    log.info("%.4f s a pass uncompiled, %.4f s compiled; the faster is used", plain, rewritten)
    if rewritten < plain:
        backbone.compile()
    return rewritten < plain


def _seconds(learner: Learner, backbone: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The shortest of some passes to the features and back to the images, after a first one that may compile."""
    taken = []
    for _ in range(1 + _TIMED):
        leaf = x.detach().requires_grad_()
        start = time.perf_counter()
        with learner.reduced(x.device):
            features = backbone(leaf)
        features.float().sum().backward(inputs=[leaf])  # type: ignore[no-untyped-call]
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
