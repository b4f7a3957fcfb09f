"""An attacker of other making behind MSA: does he take an image of the embedded model that it left?

    python -m benchmarks.independent --output DIR [--recipe uniform-v1] [--n-ex 500]

He shares no code with the product's attacks (``validation/independent.py``). SOLO meets him with 27 restarts of 100
steps; under JOINT whole batches move for the sake of one standing image at a time, in 4 restarts of 40 steps each.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.embedded import Trial, tried
from benchmarks.validation.independent import misclassified, misclassified_one_by_one
from hpm_robustbench.threat import Batching


def taken(trial: Trial, x: Tensor, y: Tensor) -> int:
    """Standing images that he breaks."""
    classifier, eps = trial.subject.classifier, float(trial.plan.threat.eps)
    if trial.plan.batching is Batching.SOLO:
        left = trial.standing
        return int(misclassified(classifier, x[left], y[left], eps, restarts=27, steps=100).sum())
    found = 0
    for rows in trial.plan.batches():
        left = trial.standing[rows]
        victims = left.nonzero().squeeze(1).tolist()
        wrong = misclassified_one_by_one(classifier, x[rows], y[rows], eps, victims, restarts=4, steps=40)
        found += int((left & wrong).sum())
    return found


def main() -> None:
    """A line for each trial of HPM."""
    embedded = tried(__doc__)
    for trial in embedded.trials():
        found = taken(trial, embedded.images, embedded.labels)
        left = int(trial.standing.sum())
        print(f"{trial.plan.model}, {trial.plan.batching.value}: takes {found} of {left} that stand", flush=True)


if __name__ == "__main__":
    main()
