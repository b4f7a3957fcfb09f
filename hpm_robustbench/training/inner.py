"""The attack inside a training step: PGD on the whole batch (Madry et al., ICLR 2018)."""

from __future__ import annotations

import torch

from hpm_robustbench.attacks.ball import Ball
from hpm_robustbench.shapes import Images
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.training.objective import Objective, clean_answer
from hpm_robustbench.training.parts import Embed, backward


def attacked(
    objective: Objective,
    x: Images,
    threat: ThreatModel,
    generator: torch.Generator,
    at_once: int,
    embed: Embed | None = None,
) -> Images:
    """Images within ``threat`` of ``x`` that raise the objective's attack loss; ``x`` itself if there are no steps.

    Args:
        objective: of this batch.
        x: clean images in [0, 1].
        threat: norm and radius.
        generator: source of the random start.
        at_once: images that pass through the network together.
        embed: what the attack's passes go through; by default the learner's own network.
    """
    embed = embed or objective.learner.embed
    recipe = objective.tuning.recipe
    if not recipe.attack_steps:
        return x
    ball, clean = Ball(x, threat), clean_answer(objective, x, at_once, embed)
    point = ball.random_point(generator)
    for _ in range(recipe.attack_steps):
        leaf = point.detach().requires_grad_()
        backward(embed, leaf, lambda seen: objective.attack_loss(seen, clean), at_once, [leaf])
        assert leaf.grad is not None
        # Where a network has no gradient at some image, the step leaves that one where it is.
        uphill = ball.direction(leaf.grad.nan_to_num())
        point = ball.project(leaf.detach() + recipe.attack_step * float(threat.eps) * uphill)
    return point
