r"""MSA's conjunction again, from many other random starts, on the few images that it came nearest to breaking.

    python -m benchmarks.other_starts --output DIR
    python -m benchmarks.other_starts --output DIR --data DIR --finetuned benchmarks/fine_tuned \
                                      --card model_cards/cifar10/Linf/CrownCnnA-Adversarial_uniform-v1.json

MSA climbs each condition of its conjunction for each target from one start, and from 40 others where that ended near.
What still others would find, this tells behind a card: of the images that stand under SOLO those whose hard minimum is
highest are met again, on every condition.
"""

from __future__ import annotations

import torch

from benchmarks.behind import Trial, Tried, tried
from hpm_robustbench.attacks.conjunction import CONDITIONS, RegionView, in_units_of, least, promising_targets
from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.ledger.plan import MSA, Step
from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.surrogates.views import make_view
from hpm_robustbench.threat import Batching

NEAREST, STARTS = 10, 40
CONJUNCTION = Step("hpm", "conjunction", MSA)


def climbed(trial: Trial, x: Images, y: Labels, seed: int) -> tuple[Mask, Losses]:
    """The conjunction from one start: which rows it broke, and how near it came, [N] each."""
    view, plan = make_view("hpm", trial.subject, x), trial.plan
    assert isinstance(view, RegionView)
    [x_adv] = run_attack(CONJUNCTION, view, x, y, torch.ones_like(y, dtype=torch.bool), plan.threat, seed, len(x))
    verdict = judge(trial.subject.target_logits, x, x_adv, y, plan.threat, [slice(None)]).verdict
    return verdict == Verdict.BROKEN, nearness(view, x, x_adv, y)


@torch.no_grad()
def nearness(view: RegionView, x: Images, x_adv: Images, y: Labels) -> Losses:
    """The highest hard minimum of any condition for any target, in units of the clean row: above 0 where one holds."""
    clean = view.region(x)
    region, targets = in_units_of(clean, view.region(x_adv)), promising_targets(clean, y)
    of_each = [least(condition(region, y, target), 0) for condition in CONDITIONS for target in targets.unbind(dim=1)]
    return torch.stack(of_each).amax(dim=0)


def report(found: Tried) -> None:
    """Which rows fall, and from how many of the starts."""
    for trial in found.trials():
        plan, standing = trial.plan, trial.standing.nonzero().squeeze(1)
        print(f"{plan.model}: {len(standing)} of {plan.examples.n} stand under MSA")
        near = [climbed(trial, found.images[rows], found.labels[rows], plan.seed)[1] for rows in standing.split(250)]
        rows = standing[torch.cat(near).argsort(descending=True, stable=True)[:NEAREST]]
        # Copies of a row start from different noise, since it is drawn for all rows at once.
        copies = rows.repeat(STARTS)
        fell = climbed(trial, found.images[copies], found.labels[copies], plan.seed + 1)[0]
        for row, times in zip(rows.tolist(), fell.view(STARTS, -1).sum(dim=0).tolist(), strict=True):
            print(f"    row {row:5} falls from {times:2} of {STARTS} other starts", flush=True)


if __name__ == "__main__":
    report(tried(__doc__, Batching.SOLO))
