"""Batch-joint attacks: whole batches are moved together, through the prototypes that they share.

A batch-coupled classifier answers a batch. So the gradient carries every row's effect on every other, and what counts
is how many rows of one submitted batch are wrong: rows of different iterates are never put together.
"""

from __future__ import annotations

import torch

from hpm_robustbench.attacks.apgd import LossPerRow, ascend
from hpm_robustbench.attacks.base import Attack, View, seeded
from hpm_robustbench.attacks.losses import UNTARGETED, ranked_others, targeted_dlr
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import ThreatModel

TARGETED = "targeted"


def _joint(
    view: View,
    x: Images,
    y: Labels,
    active: Mask,
    threat: ThreatModel,
    seed: int,
    batch_size: int,
    *,
    loss: str = "ce",
    steps: int = 100,
    restart: int = 0,
    target_rank: int = 2,
) -> Images:
    """Attack consecutive whole batches; a batch without active rows is left alone.

    ``loss`` is ``ce``, ``dlr``, ``margin`` or ``targeted``, which aims each row at the class of rank ``target_rank``
    (2 is the runner-up) among the view's clean logits. ``restart`` selects another random start.
    """
    x_adv = x.clone()
    for rows in torch.split(torch.arange(len(x), device=x.device), batch_size):
        if not active[rows].any():
            continue
        kept = _MostWrong(view, y[rows], active[rows])
        ascend(
            _loss_per_row(view, x[rows], y[rows], loss, target_rank),
            x[rows],
            threat,
            steps=steps,
            generator=seeded(seed + restart),
            free=active[rows] if view.row_independent else None,
            observe=kept.observe,
        )
        x_adv[rows] = kept.x
    return x_adv


class _MostWrong:
    """Keeps the whole-batch iterate with the most active rows wrong on the true target, ties by summed loss."""

    def __init__(self, view: View, y: Labels, active: Mask) -> None:
        self._view, self._y, self._active = view, y, active
        self._score = (-1, 0.0)
        self.x: Images

    def observe(self, x: Images, losses: Losses) -> bool:
        wrong = self._active & (self._view.target_logits(x).argmax(dim=1) != self._y)
        score = int(wrong.sum()), float(losses.sum())
        if score > self._score:
            self._score, self.x = score, x
        return score[0] == int(self._active.sum())


def _loss_per_row(view: View, x: Images, y: Labels, loss: str, target_rank: int) -> LossPerRow:
    if loss in UNTARGETED:
        return lambda point: UNTARGETED[loss](view(point), y)
    if loss != TARGETED:
        raise UnknownName("loss", loss, [*UNTARGETED, TARGETED])
    with torch.no_grad():
        others = ranked_others(view(x), y)
    target = others[:, min(target_rank - 2, others.shape[1] - 1)]
    return lambda point: targeted_dlr(view(point), y, target)


JOINT = Attack(_joint, requires_row_independence=False)
