"""Greedy Model Space Attack (Chen et al. 2022, arXiv 2110.14735, algorithm 1), with prototypes as the model space.

A transductive defence answers a batch with a model that it makes from that batch. So whatever is optimised against one
model meets another. GMSA attacks all models met so far at once: here, the mixed prototypes of the clean batch and of
every batch that an earlier round arrived at.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.base import Submissions, View, seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.whole_batches import Cover, batchwise
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.shapes import ClassPrototypes, Images, Labels, Logits, Losses, Mask
from hpm_robustbench.threat import ThreatModel


@runtime_checkable
class PrototypeView(View, Protocol):
    """A view whose model for a batch can be held fixed."""

    def shared_prototypes(self, x: Images) -> ClassPrototypes:
        """What the batch ``x`` is compared with, as constants."""
        ...

    def logits_against(self, x: Images, prototypes: list[ClassPrototypes]) -> list[Logits]:
        """Logits of ``x`` under each of several fixed prototypes, differentiable."""
        ...


def _gmsa(
    view: PrototypeView,
    x: Images,
    y: Labels,
    active: Mask,
    threat: ThreatModel,
    seed: int,
    *,
    space: str = "min",
    rounds: int = 5,
    steps: int = 20,
) -> Submissions:
    """``space`` says what a row maximises over the models: its least margin (``min``) or its mean margin (``avg``)."""
    if space not in ("min", "avg"):
        raise UnknownName("space", space, ["min", "avg"])
    kept, models = Cover(view, y, active), [view.shared_prototypes(x)]
    start: torch.Generator | Images = seeded(seed)

    def loss(images: Images) -> Losses:
        margins = torch.stack([margin(logits, y) for logits in view.logits_against(images, models)])
        return margins.amin(dim=0) if space == "min" else margins.mean(dim=0)

    for _ in range(rounds):
        start = ascend(loss, x, threat, steps=steps, start=start, free=active, observe=kept.observe).x
        models.append(view.shared_prototypes(start))
    return kept.submissions


GMSA = batchwise(_gmsa)
