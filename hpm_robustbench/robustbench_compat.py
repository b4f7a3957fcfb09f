"""The one place that makes torchvision, RobustBench and AutoAttack importable.

Each shim stands for a fault of a released version, is active only where the fault shows, and leaves nothing behind
that another library could meet: the stand-in modules are in ``sys.modules`` only while RobustBench is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_LOCK = threading.RLock()

_IMPORT_TIME_WARNINGS = (
    # timm declares TorchScript interfaces while it is imported; torch 2.13 deprecates them.
    r"`torch\.jit\.\w+` is deprecated",
    # RobustBench 1.1.1 uses timm's old module paths (RobustBench pull request 210).
    r"Importing from timm\.models\.\w+ is deprecated",
    # setuptools 67.5 to 81, where pkg_resources still exists (RobustBench pull request 214).
    r"pkg_resources is deprecated as an API",
)


def import_torchvision() -> ModuleType:
    """Import torchvision, also beside a build of torch that its compiled operators were not made for.

    A CUDA torchvision beside a CPU torch cannot load its operators and then fails while it describes two of them
    (pytorch/vision issue 9085). Declaring those two is enough for models, transforms and datasets; calling them
    still fails.
    """
    with _LOCK, _quiet_import():
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
        _declare_torchvision_operators()
        return importlib.import_module("torchvision")


def import_autoattack() -> ModuleType:
    """Import the package that holds AutoAttack's ``autopgd_base``, ``fab_pt`` and ``square``.

    The reference implementation installs as ``autoattack`` and is not on the package index; the maintained release
    installs as ``pyautoattack``. The reference is preferred where somebody installed it.
    """
    with _LOCK:
        name = "autoattack" if _importable("autoattack") else "pyautoattack"
        for component in ("autopgd_base", "fab_pt", "square", "state"):
            importlib.import_module(f"{name}.{component}")
        return sys.modules[name]


def import_robustbench() -> ModuleType:
    """Import RobustBench with the modules it asks for, whether or not the environment has them.

    RobustBench 1.1.1 depends on ``pyautoattack`` but imports ``autoattack`` (RobustBench issue 211), and it imports
    ``pkg_resources``, which setuptools 82 removed (RobustBench pull request 214).
    """
    with _LOCK:
        import_torchvision()
        autoattack = import_autoattack()
        wanted = {"autoattack": autoattack, "autoattack.state": autoattack.state, "pkg_resources": _pkg_resources()}
        with _stand_ins(wanted), _quiet_import():
            return importlib.import_module("robustbench")


@contextmanager
def without_cuda_calls() -> Iterator[None]:
    """Let ``tensor.cuda()`` return the tensor itself where there is no CUDA device.

    The constructor of RobustBench's BiT networks, and so of its two kinds of mixtures, moves two constants to a GPU
    that need not be there (``architectures/bit_rn.py``, ``ResNetV2``; nobody has reported it).
    """
    import torch

    if torch.cuda.is_available():
        yield
        return
    with _LOCK:
        original = torch.Tensor.cuda
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.Tensor.cuda = original  # type: ignore[method-assign]


def _importable(name: str) -> bool:
    # A module that somebody put into sys.modules by hand has no spec, and find_spec would refuse it.
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _declare_torchvision_operators() -> None:
    import torch

    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _pkg_resources() -> ModuleType:
    """A module with the one function of ``pkg_resources`` that RobustBench calls."""

    def resource_filename(module: str, resource: str) -> str:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(module)
        return str(Path(spec.origin).parent / resource)

    stand_in = ModuleType("pkg_resources")
    stand_in.resource_filename = resource_filename  # type: ignore[attr-defined]
    return stand_in


@contextmanager
def _stand_ins(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Offer ``modules`` to ``import`` where no module of that top-level name is installed, and only meanwhile."""
    offered = [name for name in modules if not _importable(name.partition(".")[0])]
    sys.modules.update({name: modules[name] for name in offered})
    try:
        yield
    finally:
        for name in offered:
            del sys.modules[name]


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Silence the warnings that these libraries are known to raise while they are imported, and no others."""
    with warnings.catch_warnings():
        for message in _IMPORT_TIME_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield
