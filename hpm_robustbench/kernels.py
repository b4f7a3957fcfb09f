"""Which kernels compute an answer that something is proven by."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

_BACKENDS: Any = torch.backends
_INHERITED, _FULL = "none", "ieee"


@contextmanager
def full_precision_kernels() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 convolutions and products, and no kernel that adds up in a changing order.

    The same while a model is taken apart, prepared and attacked: a run recognises its model by its answers, and with
    TF32, which rounds to 10 bits, those of a ResNet-18 on an H100 for a batch and for its images alone differ by more
    than rounding does otherwise. The settings are the process's own; those from before the first thread that is inside
    come back after the last one.
    """
    with _INSIDE.lock:
        if not _INSIDE.times:
            _INSIDE.before = _Settings()
            _INSIDE.before.replace()
        _INSIDE.times += 1
    try:
        yield
    finally:
        with _INSIDE.lock:
            _INSIDE.times -= 1
            if not _INSIDE.times:
                _INSIDE.before.put_back()


def _operators() -> tuple[Any, ...]:
    cudnn, mkldnn = _BACKENDS.cudnn, _BACKENDS.mkldnn
    return (cudnn.conv, cudnn.rnn, _BACKENDS.cuda.matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul)


class _Settings:
    """Torch's settings as they are when this is made.

    There are two ways to set a precision, and torch refuses to be asked in the older what the newer contradicts.
    """

    def __init__(self) -> None:
        self._precisions = [operator.fp32_precision for operator in _operators()]
        self._tf32, self._products = True, "highest"
        with suppress(RuntimeError):
            self._tf32 = _BACKENDS.cudnn.allow_tf32
        with suppress(RuntimeError):
            self._products = torch.get_float32_matmul_precision()
        self._kernels = _BACKENDS.cudnn.deterministic, _BACKENDS.cudnn.benchmark

    def replace(self) -> None:
        self._put(tf32=False, products="highest", kernels=(True, False))
        for operator in _operators():
            operator.fp32_precision = _FULL

    def put_back(self) -> None:
        self._put(tf32=self._tf32, products=self._products, kernels=self._kernels)
        for operator, precision in zip(_operators(), self._precisions, strict=True):
            operator.fp32_precision = _INHERITED
            if operator.fp32_precision != precision:
                operator.fp32_precision = precision

    @staticmethod
    def _put(*, tf32: bool, products: str, kernels: tuple[bool, bool]) -> None:
        _BACKENDS.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision(products)
        _BACKENDS.cudnn.deterministic, _BACKENDS.cudnn.benchmark = kernels


@dataclass
class _Inside:
    """How many times it was entered and not yet left, by whatever thread, and what was set before the first."""

    times: int = 0
    before: _Settings = field(default_factory=_Settings)
    lock: threading.Lock = field(default_factory=threading.Lock)


_INSIDE = _Inside()
