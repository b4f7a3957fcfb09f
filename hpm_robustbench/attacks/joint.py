"""Batch-joint APGD: whole batches are moved together, through the prototypes that they share.

A batch-coupled classifier answers a batch. So the gradient carries every row's effect on every other, and rows of
different iterates are never put together: each submission is one iterate, as the true target was shown it.
"""

from __future__ import annotations

import torch

from hpm_robustbench.attacks.apgd import LossPerRow, ascend
from hpm_robustbench.attacks.base import Submissions, View, seeded
from hpm_robustbench.attacks.losses import UNTARGETED, ranked_others, targeted_dlr
from hpm_robustbench.attacks.whole_batches import Cover, batchwise
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
    *,
    loss: str = "ce",
    steps: int = 100,
    restart: int = 0,
    target_rank: int = 2,
) -> Submissions:
    """``loss`` is ``ce``, ``dlr``, ``margin`` or ``targeted``; ``restart`` selects another random start.

    ``targeted`` aims each row at the class of rank ``target_rank`` (2 is the runner-up) among the view's clean logits.
    """
    kept = Cover(view, y, active)
    own_loss = _loss_per_row(view, x, y, loss, target_rank)
    ascend(
        own_loss if view.row_independent else for_the_active(own_loss, active),
        x,
        threat,
        steps=steps,
        generator=seeded(seed + restart),
        free=active if view.row_independent else None,
        observe=kept.observe,
    )
    return kept.submissions


def for_the_active(loss_per_row: LossPerRow, active: Mask) -> LossPerRow:
    """The loss of the active rows, for which their mates move too: those share the mean of it, without a say."""
    if active.all():
        return loss_per_row

    def loss(point: Images) -> Losses:
        losses = loss_per_row(point)
        return torch.where(active, losses, losses[active].mean().detach())

    return loss


def _loss_per_row(view: View, x: Images, y: Labels, loss: str, target_rank: int) -> LossPerRow:
    if loss in UNTARGETED:
        return lambda point: UNTARGETED[loss](view(point), y)
    if loss != TARGETED:
        raise UnknownName("loss", loss, [*UNTARGETED, TARGETED])
    with torch.no_grad():
        others = ranked_others(view(x), y)
    target = others[:, min(target_rank - 2, others.shape[1] - 1)]
    return lambda point: targeted_dlr(view(point), y, target)


JOINT = batchwise(_joint)
