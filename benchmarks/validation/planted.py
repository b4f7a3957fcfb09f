"""Defences planted with a fault, whose true robust accuracy is known because the fault changes no decision.

Each hides a plain linear classifier of scanned digits, its twin: the gradient is taken away, bent or led astray, and
the label of every image stays the twin's. So what stands is what stands on the twin, which has a closed form; or, for
the worlds of HPM over pixels, what ``exact.PixelHPM`` says. HPM agrees with the twin as well: its prototypes are the
very ones that the head is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpm_robustbench.data import open_dataset
from validation.exact import PixelHPM, linear_margin

EPS = "0.15"
LEVELS = 4
"""Steps between the grey values that the shattering defence keeps."""
RIDGE = 30.0
"""Weight decay of the linear head that does not agree with the class means."""


@dataclass(frozen=True)
class Digits:
    """Scans of some classes, [N, 1, 8, 8] in [0, 1]: some to evaluate, and the training images."""

    x: Tensor
    y: Tensor
    train_x: Tensor
    train_y: Tensor

    @property
    def n_classes(self) -> int:
        """They are numbered from 0."""
        return int(self.train_y.max()) + 1

    def box(self, eps: float = float(EPS)) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest pixels that an attacker may submit in Linf, [N, 64] each."""
        flat = self.x.flatten(1).double().numpy()
        return np.clip(flat - eps, 0, 1), np.clip(flat + eps, 0, 1)


def digits(n: int, n_classes: int = 10) -> Digits:
    """The first ``n`` test scans of the first ``n_classes`` classes."""
    source = open_dataset("digits")
    test, train = source.test(), source.train()
    assert train is not None
    evaluated, training = test.labels < n_classes, train.labels < n_classes
    return Digits(
        test.images[evaluated][:n], test.labels[evaluated][:n], train.images[training], train.labels[training]
    )


@dataclass(frozen=True)
class Planted:
    """A defence, what it does, and the truth.

    ``knobs`` are HPM's; ``base_standing`` and ``hpm_standing`` say per image whether it stands under every attack
    there can be, on the defence itself and on HPM (SOLO) over it.
    """

    name: str
    fault: str
    model: nn.Module
    base_standing: np.ndarray
    hpm_standing: np.ndarray
    knobs: dict[str, Any] = field(default_factory=dict)


class Nearest(nn.Module):
    """The nearest of some points as the linear classifier of pixels that it is; ``levels`` rounds the pixels first."""

    def __init__(self, points: Tensor, scale: float = 1.0, levels: int | None = None) -> None:
        super().__init__()
        self.levels = levels
        self.fc = linear(2 * scale * points, -scale * points.square().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(quantised(x, self.levels).flatten(1))


class Disguised(nn.Module):
    """The twin's logits in disguise, then a head that passes them on: HPM's prototypes are the rows of the head."""

    def __init__(self, points: Tensor, disguise: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.twin, self.disguise = Nearest(points), disguise
        self.fc = linear(torch.eye(len(points)), torch.zeros(len(points)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.disguise(self.twin(x), x))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def quantised(x: Tensor, levels: int | None) -> Tensor:
    """Rounded to ``levels`` equal steps, which leaves no gradient; or as it is."""
    return x if levels is None else torch.round(x * levels) / levels


def wall(logits: Tensor, _: Tensor) -> Tensor:
    """Ten for the winner and nothing for the others: flat everywhere, and the decision is a step."""
    winner = F.one_hot(logits.argmax(1), logits.shape[1])
    return 10 * winner + 0 * logits  # a gradient there is, of zero


def winners_take_all(logits: Tensor, x: Tensor) -> Tensor:
    """Bent by a wide random layer of which one unit in ten is kept (k-WTA, Xiao et al. 2020)."""
    hidden = x.flatten(1) @ noise(x[0].numel(), 256, seed=1)
    least = hidden.topk(25, dim=1).values[:, -1:]
    kept = torch.where(hidden >= least, hidden, 0.0)
    return bent(logits, torch.tanh(kept @ noise(256, logits.shape[1], seed=2)))


def randomised(logits: Tensor, x: Tensor) -> Tensor:
    """Noise that is another for every image, however near; drawn from the image itself, so that it can be repeated."""
    return bent(logits, torch.sin(1e4 * (x.flatten(1) @ noise(x[0].numel(), logits.shape[1], seed=3))))


def in_the_mates(logits: Tensor, _: Tensor) -> Tensor:
    """Each row's gradient goes to the next image of the batch; the values are the row's own."""
    return logits.detach() + (logits - logits.detach()).roll(1, dims=0)


def bent(logits: Tensor, by: Tensor) -> Tensor:
    """Move each logit by less than half of what parts the best two, so that the best stays the best."""
    best = logits.topk(2, dim=1).values
    room = (best[:, :1] - best[:, 1:]).detach() / 2
    return logits + 0.98 * room * by


def noise(rows: int, columns: int, seed: int) -> Tensor:
    """Normal, always the same."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


DISGUISES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "wall": ("logits are a step function of the label", wall),
    "k-winners": ("logits bent by k-winners-take-all", winners_take_all),
    "randomised": ("logits bent by noise drawn from the image", randomised),
    "mates": ("a row's gradient goes to another image of the batch", in_the_mates),
}


def plant(name: str, world: Digits) -> Planted:
    """The planted defence of that name, a fresh network, over these digits."""
    if name in DISGUISES:
        fault, disguise = DISGUISES[name]
        model = Disguised(means(world), disguise)
        return _of_the_twin(name, fault, model, world, knobs={"init": "fc-rows"})
    if name.startswith("beta-"):
        return _over_pixels(name, float(name.removeprefix("beta-")), world)
    fault, scale, levels = PLAIN[name]
    points = means(world, levels)
    return _of_the_twin(name, fault, Nearest(points, scale, levels), world, levels)


PLAIN: dict[str, tuple[str, float, int | None]] = {
    "none": ("no fault", 1.0, None),
    "vanishing": ("logits times 10,000", 1e4, None),
    "shattering": ("pixels are rounded first", 1.0, LEVELS),
}
FAULTLESS = ("none", "beta-0", "beta-0.05", "beta-0.5", "beta-1")
NAMES = tuple(dict.fromkeys((*PLAIN, *DISGUISES, *FAULTLESS)))


def means(world: Digits, levels: int | None = None) -> Tensor:
    """Mean training image of each class, [K, 64]."""
    pixels = quantised(world.train_x, levels).flatten(1)
    return torch.stack([pixels[world.train_y == c].mean(0) for c in range(world.n_classes)])


def _of_the_twin(
    name: str,
    fault: str,
    model: nn.Module,
    world: Digits,
    levels: int | None = None,
    knobs: dict[str, Any] | None = None,
) -> Planted:
    """What stands on the nearest mean stands on the defence, and on HPM over it."""
    points = means(world, levels).double().numpy()
    low, high = (quantised(torch.from_numpy(side), levels).numpy() for side in world.box())
    standing = linear_margin(2 * points, -(points**2).sum(1), low, high, world.y.numpy()) < 0
    return Planted(name, fault, model, standing, standing, knobs or {})


def _over_pixels(name: str, beta: float, world: Digits) -> Planted:
    low, high = world.box()
    y = world.y.numpy()
    hpm = pixel_hpm(world, beta)
    hpm_standing = np.array([not hpm.breakable(*image, label) for *image, label in zip(low, high, y, strict=True)])
    base_standing = linear_margin(hpm.weight, hpm.bias, low, high, y) < 0
    model = nn.Sequential(nn.Flatten(), linear(*_ridge(world)))
    fault = "HPM over pixels, FC is not the nearest mean"
    return Planted(name, fault, model, base_standing, hpm_standing, {"beta": beta})


def pixel_hpm(world: Digits, beta: float) -> PixelHPM:
    """HPM over the pixels themselves, with a head that ridge regression makes: not the nearest mean."""
    weight, bias = _ridge(world)
    return PixelHPM(weight.double().numpy(), bias.double().numpy(), means(world).double().numpy(), beta)


def _ridge(world: Digits) -> tuple[Tensor, Tensor]:
    pixels = world.train_x.flatten(1).double()
    centre = pixels.mean(0)
    wanted = 10 * F.one_hot(world.train_y, world.n_classes).double()
    gram = (pixels - centre).T @ (pixels - centre) + RIDGE * torch.eye(pixels.shape[1]).double()
    weight = torch.linalg.solve(gram, (pixels - centre).T @ (wanted - wanted.mean(0))).T
    bias = wanted.mean(0) - weight @ centre
    return weight.float(), bias.float()
