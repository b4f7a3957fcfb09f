"""What turns features into logits, for models that do not end in one plain linear layer.

Every head offers ``in_features`` D, the width of the features that HPM compares, and ``out_features`` K, as a linear
layer does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpm_robustbench.shapes import Features, Logits, Raw


class PointwiseHead(nn.Module):
    """A 1x1 convolution over a 1x1 map: a linear layer in all but name."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.in_features, self.out_features = conv.in_channels, conv.out_channels

    @property
    def weight(self) -> Tensor:
        """[K, D], as a linear layer has it."""
        return self.conv.weight.flatten(1)

    def forward(self, features: Features) -> Logits:
        """The convolution's own answer, bit for bit."""
        logits: Tensor = self.conv(features[:, :, None, None]).flatten(1)
        return logits


class FixedHead(nn.Module):
    """A linear layer out of reach of a model that rewrites its weights on every forward pass."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, features: Features) -> Logits:
        """As the layer answered with the weights it has now."""
        return F.linear(features, self.weight, self.bias)


class CarriedLogits(nn.Module):
    """Parts what a backbone returns, [N, D + K], into features and the logits that the model itself computed."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def forward(self, raw: Raw) -> Logits:
        """The last K columns."""
        return raw[:, self.in_features :]

    def features(self, raw: Raw) -> Features:
        """The first D columns."""
        return raw[:, : self.in_features]


def carry(features: Features, logits: Logits) -> Raw:
    """What ``CarriedLogits`` takes apart: [N, D + K]."""
    return torch.cat([features, logits], dim=1)
