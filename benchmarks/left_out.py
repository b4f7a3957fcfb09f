"""Steps that MSA leaves out: would one of them, added at its end, take an image that it left?

    python -m benchmarks.left_out --output DIR [--recipe uniform-v1] [--n-ex 500]

The embedded model goes the public road first (what lies finished in DIR is not done again). Then every step below meets
the images that still stand, as if MSA had it last: how many it met and took, and its passes over those of standard
AutoAttack on the base model. The first line of each trial repeats one of MSA's own steps with a larger budget: so much
takes whoever only tries longer.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import MSA, Plan, Step
from hpm_robustbench.ledger.record import RunRecord, Verdict
from hpm_robustbench.ledger.transfers import with_lent
from hpm_robustbench.pipeline import Case, attack, examine, prepare
from hpm_robustbench.request import find_spec
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Batching
from hpm_robustbench.training.recipe import Tuning, find_recipe
from hpm_robustbench.zoo.builtin import DIGITS_MODEL


def _step(view: str, name: str, **parameters: int | float | str) -> Step:
    return Step(view, name, MSA, parameters)


LEFT_OUT = {
    Batching.SOLO: (
        _step("hpm", "conjunction", steps=200),
        _step("hpm", "conjunction", softness=0.05),
        *(_step("base", attack) for attack in ("fab-t", "square")),
        *(_step(view, "apgd-t") for view in ("l2", "soft", "soft-0.5", "soft-0.1", "batch", "mixed")),
        _step("l2", "fab-t"),
        _step("l2", "square"),
        _step("hpm", "smoothed"),
        _step("hpm", "noise", tries=1000),
    ),
    Batching.JOINT: (
        _step("hpm", "in-turns", turns=3, own_steps=30),
        _step("hpm", "joint", loss="margin", steps=25, victims=1),
        *(_step("base", attack) for attack in ("fab-t", "square")),
        *(_step("hpm", "joint", loss="targeted", target_rank=rank) for rank in (2, 3, 4)),
        *(_step(view, "joint", loss="ce") for view in ("soft-0.1", "batch", "mixed")),
        *(_step("hpm", "gmsa", space=space) for space in ("avg", "min")),
        *(_step("hpm", "joint-conjunction", target_rank=rank) for rank in (2, 3)),
        _step("frozen", "apgd-t"),
        _step("hpm", "joint-smoothed", steps=20, targets=1),
        _step("hpm", "noise", tries=1000),
    ),
}


def steps_behind(batching: Batching, fine_tuned: bool) -> tuple[Step, ...]:
    """What is tried behind a trial; the FC head meets what the base model meets, unless it is the base model still."""
    steps = LEFT_OUT[batching]
    return steps + tuple(replace(step, view="fc") for step in steps if step.view == "base" and fine_tuned)


def taken(step: Step, plan: Plan, subject: Subject, x: Tensor, y: Tensor, standing: Tensor) -> tuple[int, int]:
    """Standing rows that the step breaks, batch by batch, and its passes."""
    broken = passes = 0
    for rows in plan.batches():
        if not standing[rows].any():
            continue
        view, whole = make_view(step.view, subject, x[rows]), [slice(None)]
        left = standing[rows].clone()
        for x_adv in run_attack(step, view, x[rows], y[rows], standing[rows], plan.threat, plan.seed, plan.batch_size):
            left &= judge(subject.target_logits, x[rows], x_adv, y[rows], plan.threat, whole).verdict != Verdict.BROKEN
        broken += int((standing[rows] & ~left).sum())
        passes += view.cost.forward + view.cost.backward
    return broken, passes


def _record(case: Case, plan: Plan) -> RunRecord:
    record = Journal(case.output / "runs", plan).record()
    assert record is not None
    return with_lent(record)


def report(case: Case, fine_tuned: bool) -> None:
    """A line for each step of each trial of HPM."""
    base = next(plan for plan, _ in case.trials if plan.target == "base")
    assert isinstance(base, Plan)
    autoattack = _record(case, base).passes
    for plan, subject in case.trials:
        if plan.target == "base":
            continue
        assert isinstance(plan, Plan)
        standing = torch.from_numpy(np.array(_record(case, plan).standing()))
        print(f"{plan.model}, {plan.batching.value}: {int(standing.sum())} of {len(standing)} stand under MSA")
        for step in steps_behind(plan.batching, fine_tuned):
            broken, passes = taken(step, plan, subject, case.test.images, case.test.labels, standing)
            print(f"    {step.name:50} takes {broken:3}  {passes / autoattack:6.2f} x AutoAttack", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe")
    parser.add_argument("--n-ex", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tuning = None if given.recipe is None else Tuning(find_recipe(given.recipe), None, 0)
    # No card is written here, so none that lies there already is in the way.
    options = RunOptions(n_ex=given.n_ex, output=given.output, tuning=tuning, overwrite=True)
    case = prepare(find_spec(DIGITS_MODEL), options)
    attack(case)
    examine(case)
    report(case, tuning is not None and tuning.moves_fc)


if __name__ == "__main__":
    main()
