"""Every choice that the definition of HPM leaves open, as one frozen value. No torch.

The defence is reconstructed from the abstract of arXiv 2606.01746; its full text is not at hand. So each choice is a
recorded knob with a default, and the whole value is part of the run key.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard, get_args, get_type_hints

from hpm_robustbench.errors import UsageProblem


@dataclass(frozen=True)
class HPMConfig:
    """How dataset and batch prototypes are made, mixed and compared.

    Attributes:
        beta: weight of the batch prototype in [0, 1]; 0 is the static l2 classifier.
        kappa: count-aware weight beta * n / (n + kappa) of a class with n batch members; 0 keeps beta constant.
        tau: temperature of the logits -distance / tau; ``fit`` minimises the training cross-entropy.
        distance: squared l2, l2, or l2 / sqrt(D).
        normalize: compare features and prototypes on the unit sphere.
        assignment: how FC logits put an image into a class: ``hard`` (argmax, straight-through backward), ``soft``
            (softmax), ``threshold`` (hard, confident images only), ``top-k`` (softmax over the k best classes).
        temperature: of the softmax behind the assignment.
        confidence: least top probability for ``threshold``.
        k: classes kept by ``top-k``.
        absent: a class without batch members uses its dataset prototype, is dropped, or uses the carried prototype.
        include_self: whether an image is a member of its own batch prototype (False is leave-one-out).
        gradient: what the backward pass sees of the batch prototypes: weights and features, one of them, or neither.
        init: dataset prototypes from class means of the training features, rows of the FC layer, or zeros.
    """

    beta: float = 0.5
    kappa: float = 0.0
    tau: float | Literal["fit"] = "fit"
    distance: Literal["squared", "l2", "scaled-l2"] = "squared"
    normalize: bool = False
    assignment: Literal["hard", "soft", "threshold", "top-k"] = "hard"
    temperature: float = 1.0
    confidence: float = 0.5
    k: int = 2
    absent: Literal["dataset", "drop", "carry"] = "dataset"
    include_self: bool = True
    gradient: Literal["full", "weights", "features", "none"] = "full"
    init: Literal["class-means", "fc-rows", "zeros"] = "class-means"

    def __post_init__(self) -> None:
        _require(_is_number(self.beta) and 0 <= self.beta <= 1, "beta in [0, 1]", self.beta)
        _require(_is_number(self.kappa) and self.kappa >= 0, "a finite kappa of at least 0", self.kappa)
        fitted = self.tau == "fit"
        _require(fitted or (_is_number(self.tau) and self.tau > 0), "a finite tau above 0, or 'fit'", self.tau)
        _require(_is_number(self.temperature) and self.temperature > 0, "a temperature above 0", self.temperature)
        _require(_is_number(self.confidence) and 0 <= self.confidence <= 1, "confidence in [0, 1]", self.confidence)
        _require(type(self.k) is int and self.k >= 1, "k as a whole number of at least 1", self.k)
        for name in ("normalize", "include_self"):
            _require(isinstance(getattr(self, name), bool), f"{name} as true or false", getattr(self, name))
        hints = get_type_hints(type(self))
        for name in ("distance", "assignment", "absent", "gradient", "init"):
            allowed = get_args(hints[name])
            _require(getattr(self, name) in allowed, f"{name} as one of {', '.join(allowed)}", getattr(self, name))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; part of the run key."""
        return asdict(self)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, wanted: str, got: object) -> None:
    if not holds:
        raise UsageProblem(wanted=wanted, got=repr(got), next_step="change the HPM configuration")
