"""How good a classifier is while it is trained: on images that it does not train on, each answered alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.inner import attacked
from hpm_robustbench.training.learner import Learner
from hpm_robustbench.training.objective import Objective
from hpm_robustbench.training.recipe import Tuning

_STEPS, _STEP = 10, 0.25


class Accuracy(NamedTuple):
    """Shares of the held-out images, clean and under PGD; None where nothing was held out, or nobody attacked."""

    clean: float | None
    robust: float | None


def accuracy(
    classifier: HPMClassifier,
    held_out: ExampleSet | None,
    threat: ThreatModel,
    tuning: Tuning,
    at_once: int,
    *,
    under_attack: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Of a classifier, or of its FC head if the control says that it answers; the classifier ends up frozen, SOLO.

    ``tick`` is called with every answer.
    """
    if held_out is None:
        return Accuracy(None, None)
    classifier.batching = Batching.SOLO
    # Never a float of less precision, whatever the training uses: this is how the classifier will be deployed.
    learner = Learner(classifier, (), torch.float32)
    attack = tuning.recipe.model_copy(
        update={"loss": "ce", "attack_view": "ste", "attack_steps": _STEPS * under_attack, "attack_step": _STEP}
    )
    clean = robust = 0
    for number, rows in enumerate(torch.split(torch.arange(len(held_out)), tuning.recipe.batch_size)):
        x, y = (tensor[rows].to(classifier.prototypes.device) for tensor in (held_out.images, held_out.labels))
        objective = Objective(learner, replace(tuning, recipe=attack), y, tick=tick)
        moved = attacked(objective, x, threat, drawn(tuning.seed, "measure", number), at_once)
        right, stands = (_right(objective, images, at_once) for images in (x, moved))
        clean, robust = clean + int(right.sum()), robust + int((right & stands).sum())
    return Accuracy(clean / len(held_out), robust / len(held_out) if under_attack else None)


def _right(objective: Objective, images: torch.Tensor, at_once: int) -> torch.Tensor:
    with torch.no_grad():
        parts = [objective.answer(objective.learner.embed(part)) for part in torch.split(images, at_once)]
    return torch.cat(parts).argmax(dim=1) == objective.labels
