"""What an attack is, what it may ask of a view, and how rows are packed for those that need it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from hpm_robustbench.shapes import Images, Labels, Logits, Mask
from hpm_robustbench.threat import ThreatModel

Parameter = int | float | str

Submissions: TypeAlias = Iterable[Images]
"""Complete answers to one question, each of them all rows, at least one; made while they are asked for.

A coupled classifier is shown each answer on its own, and a row counts as broken if it errs in one of them.
"""


@runtime_checkable
class View(Protocol):
    """A differentiable surrogate of the classifier on trial.

    ``row_independent`` promises that the logits of one image ignore every other image of the call; ``is_target``, that
    they are the very ones that ``target_logits`` answers.
    """

    name: str
    row_independent: bool
    is_target: bool

    def __call__(self, x: Images) -> Logits:
        """Logits of the surrogate, differentiable, in a tensor that the caller may write into."""
        ...

    def target_logits(self, x: Images) -> Logits:
        """Logits of the true target, without gradients; attacks use them only to choose among their own iterates."""
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """What is put to an attack: change the labels of the ``active`` rows of ``x`` within ``threat``.

    ``batch_size`` rows are computed together, and by a coupled target answered together.
    """

    view: View
    x: Images
    y: Labels
    active: Mask
    threat: ThreatModel
    seed: int
    batch_size: int


ALL, OWN, MATES = "all", "own", "mates"
"""Which rows of a batch an attacker has in hand who is after some of them: every row, those alone, or their mates."""


@dataclass(frozen=True)
class Attack:
    """A search for adversarial images within a threat model; it never says whether it succeeded.

    ``requires_row_independence`` says that it drops and repacks rows, so that a batch-coupled view would answer it a
    different question each time. ``move`` says which rows of a coupled batch it has in hand, unless a parameter does.
    """

    search: Callable[..., Submissions]
    requires_row_independence: bool
    move: str = ALL

    def __call__(self, task: Task, **parameters: Parameter) -> Submissions:
        """Candidate images [N C H W], one or several.

        On a row-independent view the rows that are not active come back as they are; on a batch-coupled one every row
        of a batch is the attacker's to move.
        """
        return self.search(task, **parameters)


def packed(attack_batch: Callable[..., Images], *, shares_passes: bool = False) -> Attack:
    """An attack that sees only active rows, in consecutive full batches, and starts from the same seed in each.

    ``attack_batch(view, x, y, threat, seed, **parameters)`` answers for one batch of active rows. If it
    ``shares_passes`` among several points of each row, it is also told how many images may go through ``at_once``.
    """

    def search(task: Task, **parameters: Parameter) -> Submissions:
        x_adv = task.x.clone()
        limits = {"at_once": task.batch_size} if shares_passes else {}
        with torch.no_grad():
            for rows in torch.split(task.active.nonzero().squeeze(1), task.batch_size):
                if len(rows):  # splitting nothing yields one empty batch
                    batch = task.view, task.x[rows], task.y[rows], task.threat, task.seed
                    x_adv[rows] = attack_batch(*batch, **limits, **parameters)
        return (x_adv,)

    return Attack(search, requires_row_independence=True)


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU: one stream for every device, and nobody else's is touched."""
    return torch.Generator().manual_seed(seed)
