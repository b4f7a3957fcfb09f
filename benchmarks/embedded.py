"""The embedded model after its trial, for benchmarks that look for what MSA left."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.ledger.transfers import with_transfers
from hpm_robustbench.pipeline import Case, attack, examine, prepare
from hpm_robustbench.request import find_spec
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.training.recipe import Tuning, find_recipe
from hpm_robustbench.zoo.builtin import DIGITS_MODEL


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial of HPM: its plan, who stood it, and which of its images stand under everything, [N]."""

    plan: Plan
    subject: Subject
    standing: Tensor


@dataclass(frozen=True, eq=False)
class Embedded:
    """The model's case, with all of its trials finished; ``tuning`` if it was fine-tuned first."""

    case: Case
    tuning: Tuning | None

    @property
    def images(self) -> Tensor:
        return self.case.test.images

    @property
    def labels(self) -> Tensor:
        return self.case.test.labels

    @property
    def autoattack_passes(self) -> int:
        """Of standard AutoAttack on the base model, for all images."""
        return self._records["base"].passes

    def trials(self) -> Iterator[Trial]:
        """Those of HPM."""
        for plan, subject in self.case.trials:
            if isinstance(plan, Plan) and plan.target == "hpm":
                yield Trial(plan, subject, torch.tensor(self._records[plan.batching.value].standing()))

    @cached_property
    def _records(self) -> dict[str, RunRecord]:
        """By batching; that of the base model by its name."""
        finished = [Journal(self.case.output / "runs", plan).record() for plan, _ in self.case.trials]
        records = with_transfers([record for record in finished if record is not None])
        return {"base" if r.plan.target == "base" else r.plan.batching.value: r for r in records}


def tried(description: str | None) -> Embedded:
    """The model after its trial, as the command line asks for; what lies finished in the output is not done again."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    return Embedded(case, tuning)
