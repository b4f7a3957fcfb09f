"""Batch-joint APGD: whole batches are moved together, through the prototypes that they share.

A batch-coupled classifier answers a batch. So the gradient carries every row's effect on every other, and rows of
different iterates are never put together: each submission is one iterate, as the true target was shown it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from hpm_robustbench.attacks.apgd import LossPerRow, ascend
from hpm_robustbench.attacks.base import ALL, MATES, OWN, View, seeded
from hpm_robustbench.attacks.losses import UNTARGETED, ranked_others, targeted_dlr
from hpm_robustbench.attacks.whole_batches import Cover, Remembering, batchwise
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import ThreatModel

TARGETED = "targeted"
MOVES = (ALL, OWN, MATES)


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
    restarts: int = 1,
    target_rank: int = 2,
    victims: int = 0,
    move: str = ALL,
    movers: int = 0,
) -> Iterator[Images]:
    """Move the batch so that its active rows err, all at once or ``victims`` of them at a time.

    ``loss`` is ``ce``, ``dlr``, ``margin`` or ``targeted``, which aims each row at the class of rank ``target_rank``
    (2 is the runner-up) among the view's clean logits. A restart begins at other random points, for the rows that
    still stand. A few victims at a time are a strong attack on a coupled defence, and a dear one: all others move for
    them alone. ``move`` says which rows the attacker has: ``all``, the victims themselves beside clean mates
    (``own``), or only ``movers`` of the rows that follow them (``mates``, 0 for all of these), while the victims stay
    as they are.
    """
    view = Remembering(view)
    own_loss = _loss_per_row(view, x, y, loss, target_rank)
    won, start = torch.zeros_like(active), seeded(seed)
    for _, group in product(range(restarts), _groups(active, victims)):
        wanted = group & ~won
        if not wanted.any():
            continue
        aimed_at = active & ~won if move == ALL else wanted  # who moves for others has not fallen for himself
        kept = Cover(view, y, aimed_at, wanted if victims else None)
        ascend(
            own_loss if view.row_independent else for_the_active(own_loss, wanted),
            x,
            threat,
            steps=steps,
            start=start,
            free=wanted if view.row_independent else _movable(wanted, move, movers),
            observe=kept.observe,
        )
        won |= kept.wrong
        if kept.wrong.any():
            yield from kept.submissions
    if not won.any():
        yield from kept.submissions  # the judge wants to see something, even if it is a failure


def _movable(victims: Mask, move: str, movers: int) -> Mask | None:
    """The rows that the attacker has in hand; None for all."""
    if move not in MOVES:
        raise UnknownName("move", move, MOVES)
    if move == OWN:
        return victims
    if move == ALL:
        return None
    last = int(victims.nonzero().max())
    following = (torch.arange(len(victims), device=victims.device) - last - 1) % len(victims)
    return ~victims & (following < (movers or len(victims)))


def _groups(active: Mask, size: int) -> list[Mask]:
    """Active rows, ``size`` at a time; 0 means all at once."""
    rows = active.nonzero().squeeze(1)
    return [torch.zeros_like(active).index_fill(0, part, True) for part in torch.split(rows, size or len(rows))]


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
