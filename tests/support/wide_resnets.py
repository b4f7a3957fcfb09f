"""The architecture of the base model that the project trained itself, as ``benchmarks/base_model.py`` builds it."""

from __future__ import annotations

import importlib

from torch import nn

from hpm_robustbench.robustbench_compat import import_robustbench


def wide_resnet() -> nn.Module:
    import_robustbench()
    architectures = importlib.import_module("robustbench.model_zoo.architectures.wide_resnet")
    network: nn.Module = architectures.WideResNet(num_classes=10, depth=10, widen_factor=1)
    return network
