"""The surrogates: differentiable views of one classifier, each declaring whether its rows are independent.

A view returns logits to be attacked; whether the attack worked is asked of ``target_logits``, the deployed defence.
Views count the images that pass through them, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hpm_robustbench.errors import UnknownName
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.region import Region, region_of
from hpm_robustbench.shapes import Images, Logits


@dataclass
class Cost:
    """Images that went through a view."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Subject:
    """What stands trial: the wrapped classifier, the original base model, and which of the two is the target."""

    classifier: HPMClassifier
    base: nn.Module
    target: str = "hpm"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.classifier.prototypes.device

    def target_logits(self, x: Images) -> Logits:
        """Logits of the deployed model, without gradients."""
        with torch.no_grad():
            logits: Tensor = self.classifier(x) if self.target == "hpm" else self.base(x)
            return logits.detach()


class View:
    """One surrogate of a subject: called with images, it returns logits."""

    def __init__(self, name: str, subject: Subject, logits: Callable[[Images], Logits], row_independent: bool) -> None:
        self.name = name
        self.row_independent = row_independent
        self.cost = Cost()
        self.on_call: Callable[[], None] | None = None
        self._subject = subject
        self._logits = logits

    def __call__(self, x: Images) -> Logits:
        """Logits [N, K] in a fresh tensor, so that an attack that writes into it harms nobody."""
        if self.on_call is not None:
            self.on_call()
        self.cost.forward += len(x)
        logits = self._logits(x).clone()
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.cost.backward += len(gradient)

    def target_logits(self, x: Images) -> Logits:
        """Logits of the deployed model; counted as a forward pass."""
        self.cost.forward += len(x)
        return self._subject.target_logits(x)

    def region(self, x: Images) -> Region:
        """What decides the classifier's answer for each image, differentiable towards it; see ``region_of``."""
        if self.on_call is not None:
            self.on_call()
        self.cost.forward += len(x)
        region = region_of(self._subject.classifier, x)
        if region.distances.requires_grad:
            region.distances.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return region


def _hpm(subject: Subject) -> View:
    """The defence itself, with its own straight-through backward pass (S_ste)."""
    return View("hpm", subject, subject.classifier, subject.classifier.batching.row_independent)


def _fc(subject: Subject) -> View:
    """The FC head of the wrapped classifier (S_fc)."""
    return View("fc", subject, lambda x: subject.classifier.embed(x).logits, row_independent=True)


def _l2(subject: Subject) -> View:
    """Distances to the dataset prototypes alone, beta = 0 (S_l2)."""
    classifier = subject.classifier

    def logits(x: Images) -> Logits:
        return -classifier.static_distances(classifier.embed(x).features) / classifier.tau

    return View("l2", subject, logits, row_independent=True)


def _soft(subject: Subject) -> View:
    """The defence with soft memberships: continuous, with a gradient into every class (S_soft)."""
    classifier = subject.classifier
    config = replace(classifier.config, assignment="soft")

    def logits(x: Images) -> Logits:
        return -classifier.distances(classifier.embed(x), config) / classifier.tau

    return View("soft", subject, logits, classifier.batching.row_independent)


def _base(subject: Subject) -> View:
    """The original model, before any fine-tuning (S_base)."""
    return View("base", subject, subject.base, row_independent=True)


VIEWS: dict[str, Callable[[Subject], View]] = {"hpm": _hpm, "fc": _fc, "l2": _l2, "soft": _soft, "base": _base}


def make_view(name: str, subject: Subject) -> View:
    """The view of that name.

    Raises:
        UnknownName: nobody registered it.
    """
    if name not in VIEWS:
        raise UnknownName("view", name, VIEWS)
    return VIEWS[name](subject)
