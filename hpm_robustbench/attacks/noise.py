"""Random noise: the attack that no defence may lose to, and that no other attack may do worse than.

A model that noise breaks and gradients do not has hidden its gradients (Carlini et al. 2019, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hpm_robustbench.attacks.ball import Ball, per_image
from hpm_robustbench.attacks.base import Attack, Parameter, Submissions, Task, View, packed, seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.whole_batches import Cover, batchwise
from hpm_robustbench.shapes import Images, Labels, Mask
from hpm_robustbench.threat import Norm, ThreatModel


def _noise(view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, *, tries: int = 100) -> Images:
    """Of ``tries`` random points, for each row the first that the true target gets wrong, or the nearest to that."""
    best_x, best = x, torch.full_like(x[:, 0, 0, 0], float("-inf"))
    for point in random_points(x, threat, seed, tries):
        loss = margin(view.target_logits(point), y)
        better = (best <= 0) & (loss > best)
        best_x, best = torch.where(per_image(better), point, best_x), torch.where(better, loss, best)
    return best_x


def _joint_noise(
    view: View, x: Images, y: Labels, active: Mask, threat: ThreatModel, seed: int, *, tries: int = 100
) -> Submissions:
    """The same for rows that are judged together: a try is a whole batch of random points."""
    cover = Cover(view, y, active)
    for point in random_points(x, threat, seed, tries):
        logits = view.target_logits(point)
        cover.take(point, logits, margin(logits, y))
    return cover.submissions


def random_points(x: Images, threat: ThreatModel, seed: int, tries: int) -> Iterator[Images]:
    """Points of the ball that seek nothing, [N C H W] each.

    In Linf every other one is a corner of the cube instead of any point in it; in L2 all lie on the sphere.
    """
    ball, generator, eps = Ball(x, threat), seeded(seed), float(threat.eps)
    for attempt in range(tries):
        point = ball.random_point(generator)
        to_corner = threat.norm is Norm.LINF and attempt % 2
        yield ball.project(x + eps * (point - x).sign()) if to_corner else point


def _search(task: Task, **parameters: Parameter) -> Submissions:
    attack = packed(_noise) if task.view.row_independent else batchwise(_joint_noise)
    return attack(task, **parameters)


NOISE = Attack(_search, requires_row_independence=False)
