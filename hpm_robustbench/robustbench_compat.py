"""The one place that makes torchvision, RobustBench and AutoAttack importable, and RobustBench's networks usable.

Each shim stands for a fault of a released version, is active only where the fault shows, and leaves nothing behind
that another library could meet: the stand-in modules are in ``sys.modules`` only while RobustBench is imported. Each
names the upstream thread on that fault or says that there is none, and has a test that fails once the installed
libraries do without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_LOCK = threading.RLock()

_KEPT_COPIES = ("mean_cuda", "std_cuda")
"""Attributes in which RobustBench's WideResNets keep their constants on the GPU that they first meet."""
_IMPORT_TIME_WARNINGS = (
    # timm declares TorchScript interfaces while it is imported; torch 2.13 deprecates them (not reported upstream).
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


def autoattack_version() -> dict[str, str]:
    """The package that ``import_autoattack`` takes, with its version: results depend on both."""
    name = import_autoattack().__name__
    try:
        return {name: version(name)}
    except PackageNotFoundError:  # a folder that somebody has put on the path
        return {name: "of unknown version"}


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
    """Let ``tensor.cuda()`` return the tensor itself, whether or not there is a CUDA device.

    The constructor of RobustBench's BiT networks, and so of its two kinds of mixtures, moves two constants to a GPU
    that need not be there (``architectures/bit_rn.py``, ``ResNetV2``). RobustBench pull request 61 had removed all
    such calls; this one came with a later network and is not reported upstream.
    """
    import torch

    with _LOCK:
        original = torch.Tensor.cuda
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.Tensor.cuda = original  # type: ignore[method-assign]


def adopt_tensors(network: nn.Module) -> None:
    """Make buffers of tensors that are mere attributes: normalisation constants that ``.to(device)`` would forget.

    RobustBench issue 58 reported it for two architectures, and pull request 61 mended those; networks that came later
    (BiT, Bai2023's and Peng2023's WideResNets) have it again, which is not reported upstream. A copy of a constant that
    a network would keep from its first pass on a GPU is made at once, so that it too moves on with the network, and
    the network is the same before that pass and after it, with a GPU and without.
    """
    import torch

    for module in network.modules():
        stray = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
        copies = [name for name in _KEPT_COPIES if vars(module).get(name, module) is None]
        stray |= {name: getattr(module, name.removesuffix("_cuda")).clone() for name in copies}
        for name, tensor in stray.items():
            delattr(module, name)
            module.register_buffer(name, tensor, persistent=False)


def leave_training_everywhere(network: nn.Module) -> None:
    """Put every module into eval mode, also below those whose own ``eval()`` stops halfway.

    RobustBench's Bai2023Improving overrides ``train()`` and ``eval()`` and leaves out the two networks that it mixes
    (``architectures/comp_model.py``, ``CompositeModel``; not reported upstream).
    """
    for module in network.modules():
        module.training = False


def with_newer_timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Swin of timm before 0.9 as timm names it since (timm issue 2150, RobustBench pull request 166).

    A stage's downsampling belonged to the stage before, the head was one layer, and buffers that follow from the
    architecture were stored. RobustBench's own loader renames them for the five entries of which it knows.
    """
    renamed = {}
    for key, tensor in state.items():
        if key.endswith((".relative_position_index", ".attn_mask")):
            continue
        new = re.sub(r"\blayers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key)
        renamed[re.sub(r"\bhead\.(weight|bias)$", r"head.fc.\1", new)] = tensor
    return renamed


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
