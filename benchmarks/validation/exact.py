"""What no attack can beat: the exact answer to "can this image be misclassified?", without any attack.

Two worlds are simple enough. A linear classifier has a closed form. HPM over the pixels themselves, each image alone,
has the error region of identity P2, and deciding whether a box meets it takes linear programs, closed forms, and for
one of its three parts branch and bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import linprog

SLACK = 1e-4
"""By so much a condition must hold: what is nearer to the boundary counts as robust, and float32 cannot blur it."""


def linear_margin(weight: np.ndarray, bias: np.ndarray, low: np.ndarray, high: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Largest (best other logit - own logit) of a linear classifier over boxes; positive means breakable.

    Args:
        weight: [K, D].
        bias: [K].
        low: least value of each pixel, [N, D].
        high: largest, likewise.
        y: true classes [N].

    Returns:
        [N]
    """
    slope = weight[None] - weight[y][:, None]  # [N, K, D]
    best = np.maximum(slope * low[:, None], slope * high[:, None]).sum(axis=2) + bias[None] - bias[y][:, None]
    best[np.arange(len(y)), y] = -np.inf
    return best.max(axis=1)


def linear_margin_l2(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, eps: float, y: np.ndarray) -> np.ndarray:
    """The same over L2 balls cut off at the box [0, 1], where the best move is a scaled and clipped slope.

    The scale that spends the budget (Karush-Kuhn-Tucker) is bisected.
    """
    slope = weight[None] - weight[y][:, None]
    image = x[:, None]
    low, high = np.zeros((len(x), len(weight), 1)), np.full((len(x), len(weight), 1), 1e6)
    for _ in range(100):
        scale = (low + high) / 2
        move = np.clip(scale * slope, -image, 1 - image)
        over = np.linalg.norm(move, axis=2, keepdims=True) > eps
        low, high = np.where(over, low, scale), np.where(over, scale, high)
    best = (slope * (image + np.clip(low * slope, -image, 1 - image))).sum(axis=2) + bias[None] - bias[y][:, None]
    best[np.arange(len(y)), y] = -np.inf
    return best.max(axis=1)


@dataclass(frozen=True)
class PixelHPM:
    """HPM SOLO whose features are the pixels: FC weight [K, D] and bias [K], prototypes [K, D], one beta; float64."""

    weight: np.ndarray
    bias: np.ndarray
    prototypes: np.ndarray
    beta: float

    @property
    def discount(self) -> float:
        """Factor on the squared distance to the class that FC chose."""
        return (1 - self.beta) ** 2

    def predict(self, z: np.ndarray) -> np.ndarray:
        """Answers [N] for images [N, D]."""
        distances = ((z[:, None] - self.prototypes[None]) ** 2).sum(axis=2)
        chosen = (z @ self.weight.T + self.bias).argmax(axis=1)
        distances[np.arange(len(z)), chosen] *= self.discount
        return distances.argmin(axis=1)

    def breakable(self, low: np.ndarray, high: np.ndarray, y: int) -> bool:
        """Whether any image of the box is answered otherwise than ``y``."""
        return self.witness(low, high, y) is not None

    def witness(self, low: np.ndarray, high: np.ndarray, y: int) -> np.ndarray | None:
        """An image [D] of the box that is answered otherwise than ``y``, if there is one.

        FC leaves y and another class is nearer; or another is nearer even at y's discount; or FC chooses a class that
        is nearer at its own discount.
        """
        others = [c for c in range(len(self.prototypes)) if c != y]
        searches = [
            *(partial(self._leaves, k=k, c=c) for k in others for c in others),
            *(partial(self._beats_discount, c=c) for c in others),
            *(partial(self._chosen_and_nearer, c=c) for c in others),
        ]
        return next((z for search in searches if (z := search(low, high, y)) is not None), None)

    def _over_fc(self, c: int, k: int) -> tuple[np.ndarray, float]:
        """The half-space in which FC prefers c to k, as slope and offset."""
        return self.weight[c] - self.weight[k], self.bias[c] - self.bias[k] - SLACK

    def _nearer(self, c: int, y: int) -> tuple[np.ndarray, float]:
        """The half-space in which prototype c is nearer than y."""
        p, q = self.prototypes[c], self.prototypes[y]
        return 2 * (p - q), q @ q - p @ p - SLACK

    def _leaves(self, low: np.ndarray, high: np.ndarray, y: int, k: int, c: int) -> np.ndarray | None:
        """FC prefers k to y, so it does not choose y, and c is nearer than y: two half-spaces and a box."""
        halves = [self._over_fc(k, y), self._nearer(c, y)]
        return _inside(*_stacked(halves), np.zeros(len(low)), low, high)

    def _beats_discount(self, low: np.ndarray, high: np.ndarray, y: int, c: int) -> np.ndarray | None:
        """The least of D_c - g D_y, a separable and convex parabola over a box; a plane at g = 1."""
        g, p, q = self.discount, self.prototypes[c], self.prototypes[y]
        z = np.clip((p - g * q) / (1 - g), low, high) if g < 1 else np.where(p > q, high, low)
        return z if (z - p) @ (z - p) - g * ((z - q) @ (z - q)) < -SLACK else None

    def _chosen_and_nearer(self, low: np.ndarray, high: np.ndarray, y: int, c: int) -> np.ndarray | None:
        """FC chooses c, and g D_c < D_y: the most of D_y - g D_c over a polytope."""
        chosen = _stacked([self._over_fc(c, k) for k in range(len(self.prototypes)) if k != c])
        return self._branch(chosen, low, high, y, c)

    def _branch(
        self, chosen: tuple[np.ndarray, np.ndarray], low: np.ndarray, high: np.ndarray, y: int, c: int
    ) -> np.ndarray | None:
        """Bound z^2 from above by its chord, which makes a linear program; where that is too coarse, halve a side.

        A vertex of the polytope lies inside the box in as many pixels as there are other classes at most, so the
        chord is exact but for those.
        """
        g, p, q = self.discount, self.prototypes[c], self.prototypes[y]
        linear, constant = 2 * (g * p - q), q @ q - g * (p @ p) - SLACK
        chord, bound = (1 - g) * (low + high) + linear, constant - (1 - g) * (low @ high)
        z = _inside(*chosen, chord, low, high)
        if z is None or chord @ z + bound <= 0:
            return None
        if (1 - g) * (z @ z) + linear @ z + constant > 0:
            return z
        side = int(((z - low) * (high - z)).argmax())
        lower, upper = high.copy(), low.copy()
        lower[side] = upper[side] = z[side]
        below = self._branch(chosen, low, lower, y, c)
        return self._branch(chosen, upper, high, y, c) if below is None else below


def _stacked(halves: list[tuple[np.ndarray, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([slope for slope, _ in halves]), np.array([offset for _, offset in halves])


def _inside(
    slopes: np.ndarray, offsets: np.ndarray, favoured: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray | None:
    """The image of a box that lies farthest towards ``favoured`` among those with slopes z + offsets >= 0, if any."""
    if (np.maximum(slopes * low, slopes * high).sum(axis=1) + offsets < 0).any():
        return None  # one half-space misses the box; most do, and this is far cheaper than to ask the solver
    return linprog(-favoured, -slopes, offsets, bounds=list(zip(low, high, strict=True))).x
