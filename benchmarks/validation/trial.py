"""A planted defence goes the public road, and what stands is set beside the truth."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

import hpm_robustbench
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.plan import AUTOATTACK
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.ledger.transfers import with_transfers
from hpm_robustbench.pipeline import Outcome
from hpm_robustbench.threat import Batching
from validation.planted import EPS, Digits, Planted


@dataclass(frozen=True)
class Tried:
    """A finished trial of a planted defence."""

    planted: Planted
    world: Digits
    outcome: Outcome

    def record(self, target: str, batching: Batching = Batching.SOLO) -> RunRecord:
        """The rows of one trial."""
        return record_of(self.outcome, target, batching)

    @property
    def base_autoattack(self) -> np.ndarray:
        """What stands on the defence under standard AutoAttack, per row."""
        return np.array(self.record("base").standing(AUTOATTACK))

    @property
    def autoattack(self) -> np.ndarray:
        """What stands on HPM SOLO under standard AutoAttack."""
        return np.array(self.record("hpm").standing(AUTOATTACK))

    @property
    def msa(self) -> np.ndarray:
        """What stands on HPM SOLO under MSA."""
        return np.array(self.record("hpm").standing())

    @property
    def flags(self) -> list[str]:
        """Every warning of the trial, base model first."""
        bench = self.outcome.card.hpm_bench
        assert bench is not None
        return [f"{e.target}: {flag}" for e in bench.evaluations for flag in e.all_flags]


def record_of(outcome: Outcome, target: str, batching: Batching) -> RunRecord:
    """The rows of one trial of those behind a card."""
    records = with_transfers(outcome.records)
    return next(r for r in records if r.plan.target == target and r.plan.batching is batching)


def attempt(planted: Planted, world: Digits, batchings: tuple[Batching, ...] = ()) -> Tried:
    """Benchmark a planted defence in a folder that is gone afterwards; HPM SOLO always, others as asked."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = hpm_robustbench.benchmark(
            planted.model,
            (world.x, world.y),
            (world.train_x, world.train_y),
            name=f"Planted-{planted.name}",
            eps=EPS,
            head=head_of(planted.model),
            n_ex=len(world.x),
            batchings=batchings,
            output=Path(folder),
            defence=HPMConfig(**planted.knobs),
        )
    return Tried(planted, world, outcome)


def wrapped(planted: Planted, world: Digits) -> HPMClassifier:
    """HPM SOLO over a planted defence, as ``attempt`` puts it on trial."""
    head = head_of(planted.model)
    return hpm_robustbench.wrap(planted.model, world.train_x, world.train_y, head=head, **planted.knobs)


def head_of(model: nn.Module) -> str | None:
    """The head's name, where it is known; a disguise may leave two layers that could be it."""
    return "fc" if hasattr(model, "fc") else None
