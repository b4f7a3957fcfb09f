"""Steps that MSA leaves out: would one of them, added at its end, take an image that it left?

    python -m benchmarks.left_out --output DIR [--batching joint]
    python -m benchmarks.left_out --output DIR --data DIR --card model_cards/cifar10/Linf/CrownCnnA-Adversarial.json

Every step below meets the images that stand in a card (the embedded model's by default), as if MSA had it last: how
many it met and took, and its passes over those of standard AutoAttack on the base model. The first line of each trial,
under SOLO the first four, repeat one of MSA's own steps with a larger budget: so much takes whoever only tries longer.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from benchmarks.behind import Trial, Tried, tried
from hpm_robustbench.attacks.registry import find_attack, run_attack
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.ledger.plan import MSA, Step
from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.surrogates.views import make_view
from hpm_robustbench.threat import Batching


def _step(view: str, name: str, **parameters: int | float | str) -> Step:
    return Step(view, name, MSA, parameters)


LEFT_OUT = {
    Batching.SOLO: (
        _step("hpm", "hard-label", queries=10000),
        _step("hpm", "conjunction", restarts=400),
        _step("hpm", "conjunction", restarts=40, steps=200),
        _step("hpm", "conjunction", restarts=40, softness=0.05),
        *(_step("base", attack) for attack in ("fab-t", "square")),
        *(_step(view, "apgd-t") for view in ("l2", "soft", "soft-0.5", "soft-0.1", "batch", "mixed")),
        *(_step("l2", attack) for attack in ("apgd-ce", "fab-t", "square")),
        _step("hpm", "smoothed"),
        _step("hpm", "noise", tries=1000),
    ),
    Batching.JOINT: (
        _step("hpm", "in-turns", turns=3, own_steps=30),
        _step("hpm", "joint", loss="margin", steps=25, victims=1),
        *(_step("hpm", "joint", loss=loss, restarts=5) for loss in ("ce", "dlr")),
        *(_step("base", attack) for attack in ("fab-t", "square")),
        *(_step("hpm", "joint", loss="targeted", target_rank=rank) for rank in (2, 3, 4)),
        *(_step(view, "joint", loss="ce") for view in ("soft-0.1", "batch", "mixed")),
        *(_step("hpm", "gmsa", space=space) for space in ("avg", "min")),
        *(_step("hpm", "joint-conjunction", target_rank=rank) for rank in (2, 3)),
        *(_step(view, "alone", steps=100) for view in ("base", "l2")),
        *(_step("l2", attack) for attack in ("apgd-ce", "fab-t", "square")),
        *(_step("frozen", attack) for attack in ("apgd-ce", "apgd-t", "fab-t", "square")),
        _step("hpm", "joint-smoothed", steps=20, targets=1),
        _step("hpm", "noise", tries=1000),
    ),
}


def steps_behind(batching: Batching, fine_tuned: bool) -> tuple[Step, ...]:
    """What is tried behind a trial; the FC head meets what the base model meets, unless it is the base model still."""
    steps = LEFT_OUT[batching]
    return steps + tuple(replace(step, view="fc") for step in steps if step.view == "base" and fine_tuned)


def moved(step: Step, trial: Trial) -> Tensor:
    """Rows that the step moves: [N], a mask.

    Under JOINT a mate that has fallen need not stay clean. Whoever moves each row for its own sake moves all that are
    right without any attack, whoever has victims those that stand.
    """
    for_itself = find_attack(step.attack).requires_row_independence or step.attack in ("gmsa", "noise")
    return trial.right if for_itself and trial.plan.batching is Batching.JOINT else trial.standing


def taken(step: Step, trial: Trial, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Standing rows that the step breaks, batch by batch, and its passes."""
    plan, standing, moving = trial.plan, trial.standing, moved(step, trial)
    broken = passes = 0
    for rows in plan.batches():
        if not standing[rows].any():
            continue
        view, whole = make_view(step.view, trial.subject, x[rows]), [slice(None)]
        left = standing[rows].clone()
        question = x[rows], y[rows], moving[rows], plan.threat, plan.seed_of(step), plan.batch_size
        for x_adv in run_attack(step, view, *question):
            verdict = judge(trial.subject.target_logits, x[rows], x_adv, y[rows], plan.threat, whole).verdict
            left &= verdict != Verdict.BROKEN
        broken += int((standing[rows] & ~left).sum())
        passes += view.cost.forward + view.cost.backward
    return broken, passes


def report(found: Tried) -> None:
    """A line for each step of each trial of HPM."""
    for trial in found.trials():
        plan = trial.plan
        print(f"{plan.model}, {plan.batching.value}: {int(trial.standing.sum())} of {plan.examples.n} stand under MSA")
        for step in steps_behind(plan.batching, fine_tuned=any(step.view == "fc" for step in plan.steps)):
            broken, passes = taken(step, trial, found.images, found.labels)
            multiple = passes / found.autoattack_passes
            print(f"    {step.name:50} takes {broken:3}  {multiple:6.2f} x AutoAttack", flush=True)


if __name__ == "__main__":
    report(tried(__doc__, *LEFT_OUT))
