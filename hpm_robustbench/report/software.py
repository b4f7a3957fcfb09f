"""What is installed here and what it would compute on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

_PACKAGES = ("torch", "torchvision", "robustbench", "pyautoattack", "timm", "numpy", "scipy", "pandas", "pydantic")


def software() -> dict[str, Any]:
    """Versions and devices, and what is missing; no secrets, no paths."""
    facts: dict[str, Any] = {"hpm-robustbench": version("hpm-robustbench"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing: pip install hpm-robustbench installs it"
    facts["device"] = _device() if find_spec("torch") else "unknown without torch"
    return facts


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
