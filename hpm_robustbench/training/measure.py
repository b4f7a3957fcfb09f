"""How good a classifier is while it is trained: on images that it does not train on, each answered alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.shapes import Images, Labels
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
    x: Images,
    y: Labels,
    threat: ThreatModel,
    tuning: Tuning,
    at_once: int,
    *,
    under_attack: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Of a classifier, or of its FC head if the control says that it answers; the classifier ends up frozen, SOLO.

    Args:
        classifier: on the device to use.
        x: images, or what a classifier without a backbone takes.
        y: their labels; if there are none, nothing is measured.
        threat: what the attack may do.
        tuning: recipe, control and seed.
        at_once: images that pass through the network together.
        under_attack: whether to attack.
        tick: is called with every answer.
    """
    if not len(y):
        return Accuracy(None, None)
    classifier.batching = Batching.SOLO
    # Never a float of less precision, whatever the training uses: this is how the classifier will be deployed.
    learner = Learner(classifier, (), torch.float32)
    attack = tuning.recipe.model_copy(
        update={"loss": "ce", "attack_view": "ste", "attack_steps": _STEPS, "attack_step": _STEP}
    )
    clean = robust = 0
    for number, rows in enumerate(torch.split(torch.arange(len(y)), tuning.recipe.batch_size)):
        images, labels = (tensor[rows].to(classifier.prototypes.device) for tensor in (x, y))
        objective = Objective(learner, replace(tuning, recipe=attack), labels, tick=tick)
        right = _right(objective, images, at_once)
        clean += int(right.sum())
        if under_attack:
            moved = attacked(objective, images, threat, drawn(tuning.seed, "measure", number), at_once)
            robust += int((right & _right(objective, moved, at_once)).sum())
    return Accuracy(clean / len(y), robust / len(y) if under_attack else None)


def _right(objective: Objective, images: torch.Tensor, at_once: int) -> torch.Tensor:
    with torch.no_grad():
        parts = [objective.answer(objective.learner.embed(part)) for part in torch.split(images, at_once)]
    return torch.cat(parts).argmax(dim=1) == objective.labels
