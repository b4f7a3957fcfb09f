"""Which attacks there are, and the sealed call through which all of them run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from hpm_robustbench.attacks.alone import ALONE
from hpm_robustbench.attacks.autoattack import APGD_CE, APGD_T, FAB_T, SQUARE
from hpm_robustbench.attacks.ball import per_image
from hpm_robustbench.attacks.base import Attack, Submissions, Task, View
from hpm_robustbench.attacks.conjunction import CONJUNCTION
from hpm_robustbench.attacks.gmsa import GMSA
from hpm_robustbench.attacks.hard_label import HARD_LABEL
from hpm_robustbench.attacks.in_turns import IN_TURNS
from hpm_robustbench.attacks.joint import JOINT
from hpm_robustbench.attacks.joint_conjunction import JOINT_CONJUNCTION
from hpm_robustbench.attacks.joint_square import JOINT_SQUARE
from hpm_robustbench.attacks.noise import NOISE
from hpm_robustbench.attacks.smoothed import JOINT_SMOOTHED, SMOOTHED
from hpm_robustbench.errors import BatchCoupled, UnknownName
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.shapes import Images, Labels, Mask
from hpm_robustbench.threat import ThreatModel

ATTACKS: dict[str, Attack] = {
    "apgd-ce": APGD_CE,
    "apgd-t": APGD_T,
    "fab-t": FAB_T,
    "square": SQUARE,
    "conjunction": CONJUNCTION,
    "hard-label": HARD_LABEL,
    "smoothed": SMOOTHED,
    "noise": NOISE,
    "joint": JOINT,
    "in-turns": IN_TURNS,
    "joint-conjunction": JOINT_CONJUNCTION,
    "gmsa": GMSA,
    "joint-square": JOINT_SQUARE,
    "joint-smoothed": JOINT_SMOOTHED,
    "alone": ALONE,
}


def find_attack(name: str) -> Attack:
    """The attack of that name.

    Raises:
        UnknownName: nobody registered it.
    """
    if name not in ATTACKS:
        raise UnknownName("attack", name, ATTACKS)
    return ATTACKS[name]


def run_attack(
    step: Step, view: View, x: Images, y: Labels, active: Mask, threat: ThreatModel, seed: int, batch_size: int
) -> Iterator[Images]:
    """Run a step's attack on its view, leaving no trace but the images it proposes, once or several times.

    ``x``, ``y`` and torch's random state are as before. On a row-independent view, rows that are not active come back
    bit for bit.

    Raises:
        UnknownName: the step names an attack that does not exist.
        BatchCoupled: the attack repacks rows and the view's rows depend on each other.
    """
    attack = find_attack(step.attack)
    if attack.requires_row_independence and not view.row_independent:
        raise BatchCoupled(
            wanted=f"a row-independent view for {step.attack}, which drops and repacks rows",
            got=f"the view {view.name}, whose rows depend on each other",
            next_step="use the view base, fc or l2, answer images alone (batching solo or reference), or attack whole "
            "batches with joint",
        )
    may_change = active.clone() if view.row_independent else torch.ones_like(active)
    task = Task(view, x.clone(), y.clone(), active.clone(), threat, seed, batch_size)
    return _sealed(lambda: attack(task, **step.parameters), x.clone(), may_change)


def _sealed(search: Callable[[], Submissions], x: Images, may_change: Mask) -> Iterator[Images]:
    with _random_state_kept():
        answers = iter(search())
    while True:
        with _random_state_kept():
            x_adv = next(answers, None)
        if x_adv is None:
            return
        yield torch.where(per_image(may_change), x_adv.detach(), x)


def _random_state_kept() -> AbstractContextManager[None]:
    # Asking for the state of a CUDA that nobody uses would start it.
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(devices=range(torch.cuda.device_count() if in_use else 0))
