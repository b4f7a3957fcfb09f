"""Random noise: the attack that no defence may lose to, and that no other attack may do worse than.

A model that noise breaks and gradients do not has hidden its gradients (Carlini et al. 2019, section 3.1).
"""

from __future__ import annotations

import torch

from hpm_robustbench.attacks.apgd import Ball, per_image
from hpm_robustbench.attacks.base import View, packed, seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.shapes import Images, Labels
from hpm_robustbench.threat import Norm, ThreatModel


def _noise(view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, *, tries: int = 100) -> Images:
    """Of ``tries`` random points, the first that the true target gets wrong, or the one nearest to that.

    In Linf every other point is a corner of the cube instead of any point in it; in L2 all lie on the sphere.
    """
    ball, generator, eps = Ball(x, threat), seeded(seed), float(threat.eps)
    best_x, best = x, torch.full_like(x[:, 0, 0, 0], float("-inf"))
    for attempt in range(tries):
        point = ball.random_point(generator)
        if threat.norm is Norm.LINF and attempt % 2:
            point = ball.project(x + eps * (point - x).sign())
        loss = margin(view.target_logits(point), y)
        better = (best <= 0) & (loss > best)
        best_x, best = torch.where(per_image(better), point, best_x), torch.where(better, loss, best)
    return best_x


NOISE = packed(_noise)
