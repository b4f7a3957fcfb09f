"""Batch-joint attacks: whole batches are moved together, through the prototypes that they share.

A batch-coupled classifier answers a batch. So the gradient carries every row's effect on every other, and rows of
different iterates are never put together: each submission is one iterate, as the true target was shown it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpm_robustbench.attacks.apgd import LossPerRow, ascend
from hpm_robustbench.attacks.base import Attack, Submissions, View, seeded
from hpm_robustbench.attacks.losses import UNTARGETED, ranked_others, targeted_dlr
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import ThreatModel

TARGETED = "targeted"
_MOST_KEPT = 16
"""Iterates of one batch that are held at a time."""


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
) -> Submissions:
    """Attack consecutive whole batches; a batch without active rows is left alone.

    ``loss`` is ``ce``, ``dlr``, ``margin`` or ``targeted``, which aims each row at the class of rank ``target_rank``
    (2 is the runner-up) among the view's clean logits. ``restart`` selects another random start.
    """
    answers: list[Sequence[Tensor]] = []
    for rows in torch.split(torch.arange(len(x), device=x.device), batch_size):
        if not active[rows].any():
            answers.append((x[rows],))
            continue
        kept = Cover(view, y[rows], active[rows])
        own_loss = _loss_per_row(view, x[rows], y[rows], loss, target_rank)
        ascend(
            own_loss if view.row_independent else for_the_active(own_loss, active[rows]),
            x[rows],
            threat,
            steps=steps,
            generator=seeded(seed + restart),
            free=active[rows] if view.row_independent else None,
            observe=kept.observe,
        )
        answers.append(kept.submissions)
    return side_by_side(answers)


@dataclass(frozen=True)
class _Iterate:
    x: Images
    wrong: Mask
    score: tuple[int, float]


class Cover:
    """Few iterates of one batch that together have every row wrong that any iterate had wrong.

    The first is the one with the most active rows wrong on the true target, ties by summed loss.
    """

    def __init__(self, view: View, y: Labels, active: Mask) -> None:
        self._view, self._y, self._active = view, y, active
        self._kept: list[_Iterate] = []
        self._wrong = torch.zeros_like(active)

    @property
    def submissions(self) -> Submissions:
        """What was kept, the best as a whole first."""
        return tuple(iterate.x for iterate in self._kept)

    def observe(self, x: Images, losses: Losses) -> bool:
        """Look at one iterate; True when no active row is left to win by one submission."""
        wrong = self._active & (self._view.target_logits(x).argmax(dim=1) != self._y)
        score = int(wrong.sum()), float(losses.sum())
        if not self._kept or score > self._kept[0].score or bool((wrong & ~self._wrong).any()):
            self._keep(_Iterate(x, wrong, score))
        return score[0] == int(self._active.sum())

    def _keep(self, iterate: _Iterate) -> None:
        """Take it in; of all that are held, the ones stay that add rows to those with a higher score."""
        best, *rest = sorted([*self._kept, iterate], key=lambda held: held.score, reverse=True)
        self._kept, self._wrong = [best], best.wrong
        for held in rest:
            if len(self._kept) < _MOST_KEPT and bool((held.wrong & ~self._wrong).any()):
                self._kept.append(held)
                self._wrong = self._wrong | held.wrong


def side_by_side(answers: Sequence[Sequence[Tensor]]) -> Submissions:
    """Submissions of consecutive batches as submissions of all rows; a batch with fewer repeats its first."""
    most = max(len(answer) for answer in answers)
    return tuple(torch.cat([answer[k if k < len(answer) else 0] for answer in answers]) for k in range(most))


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


JOINT = Attack(_joint, requires_row_independence=False)
