"""Small published networks as factories for ``hpm-bench run --factory benchmarks.real_networks:NAME``.

Each takes images in [0, 1] and normalises them itself; parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_CIFAR_BYTES = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalized(nn.Module):
    """A network that normalises its input; the constants are no part of its checkpoint."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify((x - self.mean) / self.std)


class PlainBlock(nn.Module):
    """Two 3x3 convolutions with biases and a 1x1 shortcut where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        changes = stride != 1 or width_in != width
        self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride)) if changes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class PlainResNet(Normalized):
    """The ResNet-2B and -4B of the verification literature: no batch norm, two linear layers."""

    def __init__(self, width: int, stages: int) -> None:
        super().__init__(*_CIFAR)
        wide = 2 * width
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)
        self.layer1 = nn.Sequential(PlainBlock(width, wide, 2), PlainBlock(wide, wide, 1))
        last = [PlainBlock(wide, wide, 2), PlainBlock(wide, wide, 1)] if stages == 2 else []
        self.layer2 = nn.Sequential(*last)
        self.linear1 = nn.Linear(wide * (16 if stages == 2 else 64), 100)
        self.linear2 = nn.Linear(100, 10)

    def classify(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.conv1(x))))
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class ConvNetA(nn.Sequential):
    """CNN-A of the verification literature: two strided convolutions, two linear layers."""

    def __init__(self) -> None:
        convolutions = [nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()]
        super().__init__(*convolutions, nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in _CIFAR_BYTES)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std)


class NormBlock(nn.Module):
    """Two convolutions with batch norm and a parameter-free shortcut (option A of He et al. 2016)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.padding = width // 4 if width_in != width else 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)


class CifarResNet(Normalized):
    """ResNet-20 and its deeper kin for CIFAR-10 (He et al. 2016, section 4.2): 6 n + 2 layers."""

    def __init__(self, n: int) -> None:
        super().__init__(*_IMAGENET)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for number, (width_in, width, stride) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)], start=1):
            blocks = [NormBlock(width_in, width, stride), *(NormBlock(width, width, 1) for _ in range(n - 1))]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def classify(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class LeNet5(nn.Module):
    """The MNIST network of Madry et al. 2018 with narrower layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.linear1, self.linear2 = nn.Linear(3136, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


def resnet4b() -> nn.Module:
    return PlainResNet(width=16, stages=2)


def resnet2b() -> nn.Module:
    return PlainResNet(width=8, stages=1)


def cnn_a() -> nn.Module:
    return ConvNetA()


def resnet20() -> nn.Module:
    return CifarResNet(n=3)


def lenet5() -> nn.Module:
    return LeNet5()
