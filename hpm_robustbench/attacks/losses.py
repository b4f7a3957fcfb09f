"""Per-row losses that an attacker ascends; ``margin`` and its targeted form are positive exactly where they succeed."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from hpm_robustbench.shapes import Labels, Logits, Losses

_TINY = 1e-12


def cross_entropy(logits: Logits, y: Labels) -> Losses:
    """Cross-entropy of the true class."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Logits, y: Labels) -> Losses:
    """Best other logit minus the true one."""
    return _others(logits, y).amax(1) - pick(logits, y)


def targeted_margin(logits: Logits, y: Labels, target: Labels) -> Losses:
    """The target's logit minus the true one."""
    return pick(logits, target) - pick(logits, y)


def dlr(logits: Logits, y: Labels) -> Losses:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6), invariant to shift and scale; the margin if K = 2."""
    if logits.shape[1] < 3:
        return margin(logits, y)
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, y) / (ordered[:, 0] - ordered[:, 2] + _TINY)


def targeted_dlr(logits: Logits, y: Labels, target: Labels) -> Losses:
    """Targeted difference of logits ratio (Croce & Hein 2020, eq. 7); the targeted margin below four classes."""
    if logits.shape[1] < 4:
        return targeted_margin(logits, y, target)
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return targeted_margin(logits, y, target) / (spread + _TINY)


def ranked_others(logits: Logits, y: Labels) -> Int[Tensor, "N R"]:
    """Classes other than ``y``, highest logit first; R = K - 1."""
    return _others(logits, y).argsort(dim=1, descending=True, stable=True)[:, :-1]


UNTARGETED: dict[str, Callable[[Logits, Labels], Losses]] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}


def pick(logits: Logits, classes: Labels) -> Losses:
    """Each row's value for its class."""
    return logits.gather(1, classes[:, None]).squeeze(1)


def _others(logits: Logits, y: Labels) -> Logits:
    return logits.scatter(1, y[:, None], float("-inf"))
