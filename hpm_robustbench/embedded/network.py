"""The architecture of the embedded model: a small pre-activation residual network for 1x8x8 images.

Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; the pooled shortcut is that of He et al.,
"Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from hpm_robustbench.shapes import Images, Logits

_STEM_WIDTH = 16
_WIDTHS = (16, 32)
_N_CLASSES = 10


class DownBlock(nn.Module):
    """A residual block that halves height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Images) -> Images:
        """Feature maps [N, in_channels, H, W] to [N, out_channels, H/2, W/2]."""
        x = F.relu(self.norm1(x))
        residual: Images = self.conv2(F.relu(self.norm2(self.conv1(x))))
        shortcut: Images = self.shortcut(F.avg_pool2d(x, 2))
        return shortcut + residual


class DigitsResNet(nn.Module):
    """Images [N, 1, 8, 8] in [0, 1] to logits [N, 10]; its head ``fc`` reads 32 pooled features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (_STEM_WIDTH, *_WIDTHS)
        self.stem = nn.Conv2d(1, _STEM_WIDTH, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(DownBlock(*pair) for pair in pairwise(widths)))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], _N_CLASSES)

    def forward(self, x: Images) -> Logits:
        """Logits; in eval mode each row depends on its own image alone."""
        # Strided and pooling layers are up to six times as fast on a CPU when channels lie innermost.
        x = self.stem(x).contiguous(memory_format=torch.channels_last)
        features = F.relu(self.norm(self.blocks(x))).mean(dim=(2, 3))
        logits: Logits = self.fc(features)
        return logits


def digits_resnet() -> DigitsResNet:
    """The bare network, freshly initialised from the global generator."""
    return DigitsResNet()
