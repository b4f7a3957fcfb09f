"""Which kernels compute an answer that something is proven by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def full_precision_kernels() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 convolutions and products, and no kernel that adds up in a changing order.

    The same while a model is taken apart, prepared and attacked: a run recognises its model by its answers, and with
    TF32, which rounds to 10 bits, those of a ResNet-18 on an H100 for a batch and for its images alone differ by more
    than rounding does otherwise. The settings from before come back in the end.
    """
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    operators = (cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul)
    precisions = [operator.fp32_precision for operator in operators]
    # There is an older way to set the same, too, and torch refuses to be asked in it what the newer contradicts.
    tf32 = products = None
    with suppress(RuntimeError):
        tf32 = cudnn.allow_tf32
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    kernels = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        for operator in operators:
            operator.fp32_precision = "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        cudnn.allow_tf32 = True if tf32 is None else tf32
        torch.set_float32_matmul_precision("highest" if products is None else products)
        for operator, precision in zip(operators, precisions, strict=True):
            operator.fp32_precision = precision
        cudnn.deterministic, cudnn.benchmark = kernels
