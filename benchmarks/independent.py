"""An attacker of other making behind MSA: does he take an image that it left?

    python -m benchmarks.independent --output DIR [--batching joint]
    python -m benchmarks.independent --output DIR --data DIR --card model_cards/cifar10/Linf/CrownCnnA-Adversarial.json

He shares no code with the product's attacks (``validation/independent.py``), and starts from what a card says has
stood; without one, that of the embedded model. SOLO meets him with 27 restarts of 100 steps; under JOINT whole batches
move for the sake of one standing image at a time, in 4 restarts of 40 steps each. What he takes there of images that
fell to MSA's last steps, and to nothing before them, tells how strong he is himself.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.behind import Trial, tried
from benchmarks.validation.independent import misclassified, misclassified_one_by_one
from hpm_robustbench.threat import Batching


def taken(trial: Trial, x: Tensor, y: Tensor, rows: Tensor) -> int:
    """How many of these rows, a mask [N], he breaks."""
    classifier, eps = trial.subject.classifier, float(trial.plan.threat.eps)
    if trial.plan.batching is Batching.SOLO:
        return int(misclassified(classifier, x[rows], y[rows], eps, restarts=27, steps=100).sum())
    found = 0
    for batch in trial.plan.batches():
        victims = rows[batch].nonzero().squeeze(1).tolist()
        wrong = misclassified_one_by_one(classifier, x[batch], y[batch], eps, victims, restarts=4, steps=40)
        found += int((rows[batch] & wrong).sum())
    return found


def fallen_to_one(trial: Trial, most: int) -> Tensor:
    """The first so many images that fell to the step that works for one victim at a time: [N], a mask."""
    return trial.mask([row for row, step in trial.fallen.items() if step.startswith("in-turns@")][:most])


def main() -> None:
    """Two lines for JOINT, one for SOLO."""
    found = tried(__doc__, Batching.SOLO, Batching.JOINT)
    for trial in found.trials():
        told = f"{trial.plan.model}, {trial.plan.batching.value}"
        if trial.plan.batching is Batching.JOINT:
            easier = fallen_to_one(trial, 20)
            ones = taken(trial, found.images, found.labels, easier)
            print(f"{told}: takes {ones} of {int(easier.sum())} that MSA took in turns, for one at a time", flush=True)
        left = taken(trial, found.images, found.labels, trial.standing)
        print(f"{told}: takes {left} of {int(trial.standing.sum())} that stand", flush=True)


if __name__ == "__main__":
    main()
