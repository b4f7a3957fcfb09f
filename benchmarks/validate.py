"""How near MSA comes to truths that are known: a table of planted defences.

    python benchmarks/validate.py [--n-ex 100] [--only NAME ...]

Each defence goes the public road at the real protocols' budgets. ``truth`` is what stands under every attack there can
be; ``labels`` is what stands on HPM under an attack that sees labels alone, to tell what MSA could still find.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor
from validation.planted import EPS, NAMES, Digits, Planted, digits, plant
from validation.smoothed import smoothed
from validation.trial import Tried, attempt, wrapped

_COLUMNS = ("defence", "truth", "AutoAttack", "truth HPM", "AutoAttack HPM", "MSA", "labels")


def standing_under_labels(planted: Planted, world: Digits) -> np.ndarray:
    """What stands on HPM SOLO under the attack that sees labels alone."""
    classifier = wrapped(planted, world)

    def decide(x: Tensor) -> Tensor:
        with torch.no_grad():
            return classifier(x).argmax(1)

    return (decide(smoothed(decide, world.x, world.y, float(EPS))) == world.y).numpy()


def line(tried: Tried, labels: np.ndarray) -> str:
    planted = tried.planted
    rows = (planted.base_standing, tried.base_autoattack, planted.hpm_standing, tried.autoattack, tried.msa, labels)
    return f"{planted.name:12}" + "".join(f"{100 * standing.mean():16.1f}" for standing in rows)


def main() -> None:
    """Try each defence in turn; percent of images that stand, then the flags of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-ex", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    given = parser.parse_args()
    world = digits(given.n_ex)
    print(f"{_COLUMNS[0]:12}" + "".join(f"{column:>16}" for column in _COLUMNS[1:]))
    for name in given.only:
        labels = standing_under_labels(plant(name, world), world)
        tried = attempt(plant(name, world), world)
        print(line(tried, labels), flush=True)
        for flag in tried.flags:
            print(f"    {flag}")


if __name__ == "__main__":
    main()
