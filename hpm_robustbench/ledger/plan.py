"""What will be done, as data: the hash of a plan is the key of its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.threat import Batching, Composition, Corruptions, Threat, ThreatModel, threat_from_json

FORMAT = 1
AUTOATTACK = "autoattack"
"""Group of the steps that together are standard AutoAttack on the target itself."""
COMPONENTS = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The attacks of standard AutoAttack, in its own order."""
BLACK_BOXES = frozenset({"square", "joint-square", "smoothed", "joint-smoothed", "hard-label", "noise"})
"""Attacks that ask for answers alone; at most a gradient of the clean images says which of them are worth it."""
STANDARD = "standard"
"""Protocol: standard AutoAttack alone, which is what older cards have of their base model."""
MSA = "msa"
"""Protocol of a card, and group of the steps that the Mixed Surrogate Attack adds to AutoAttack."""
QUICK = "quick"
"""Protocol, and group of the steps, of a screen, which never becomes a card."""
CORRUPTIONS = "corruptions"
"""Protocol, and group of the steps, of a plan without attacks."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Sha256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class Step:
    """One attack on one view of the classifier, or one corruption of what it sees, by name."""

    view: str
    attack: str
    group: str
    parameters: Mapping[str, int | float | str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``attack@view`` and the parameters; unique within a plan and safe as a file name."""
        suffix = "".join(f".{key}-{value}" for key, value in sorted(self.parameters.items()))
        return f"{self.attack}@{self.view}{suffix}"


@dataclass(frozen=True)
class Examples:
    """Which images: a dataset's split, the hash of the evaluated images and labels, and how many."""

    dataset: str
    split: str
    fingerprint: str
    n: int


@dataclass(frozen=True)
class BasePlan:
    """A trial of one target under one threat model: everything its outcome depends on, and nothing else.

    ``target`` is ``hpm`` or ``base``. ``state_sha256`` covers every weight and buffer of target and surrogates,
    their answers to the first images, and the code of their layers.
    ``defence`` is the HPM configuration (empty for ``base``). ``batch_size`` is the batch that is computed
    together and, for JOINT, the batch in which the defence answers. ``software`` names versions and the kind of device.
    ``labels`` of all examples are part of a plan whose ``composition`` depends on them. ``lender`` is the run key of
    the base model's trial, whose images HPM is shown in the end.
    """

    model: str
    target: str
    batching: Batching
    threat: Threat
    protocol: str
    steps: tuple[Step, ...]
    examples: Examples
    state_sha256: str
    defence: Mapping[str, Any]
    software: Mapping[str, str]
    seed: int = 0
    batch_size: int = 250
    shard_size: int = 250
    composition: Composition = Composition.IID
    labels: tuple[int, ...] = ()
    lender: str = ""

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise UsageProblem(
                wanted="steps with distinct names", got=", ".join(names), next_step="remove the repeated step"
            )
        if min(self.batch_size, self.shard_size, self.examples.n) < 1 or self.shard_size % self.batch_size:
            raise UsageProblem(
                wanted="at least one example and a shard size that is a multiple of the batch size",
                got=f"{self.examples.n} examples, shard {self.shard_size}, batch {self.batch_size}",
                next_step="change --n-ex or --batch-size",
            )
        composed = self.composition is not Composition.IID
        if len(self.labels) != self.examples.n * composed or (composed and self.batching is not Batching.JOINT):
            raise ValueError("labels of all examples belong to JOINT batches that are composed by them, and only there")

    @property
    def run_key(self) -> str:
        """The first 16 hex digits of the sha256 of the plan."""
        return digest(self.to_json())[:16]

    @property
    def coupled(self) -> bool:
        """Whether the target's answer for an image may depend on the other images of its batch."""
        return self.target == "hpm" and not self.batching.row_independent

    @property
    def aggregated(self) -> bool:
        """Whether what broke the rows is put together at the end: in a coupled trial that is no screen."""
        return self.coupled and all(step.group != QUICK for step in self.steps)

    @property
    def trial(self) -> tuple[object, ...]:
        """What tells the evaluation that a card makes of this plan from others of the same model."""
        budget = self.threat.to_json().get("eps_exact")
        images = self.examples.fingerprint
        return self.target, self.batching, self.batch_size, self.composition, self.seed, budget, images

    @property
    def trial_of_model(self) -> tuple[object, ...]:
        """The trial and whose it is: what runs have in common that attack the same model there."""
        return self.model, *self.trial

    def seed_of(self, step: Step) -> int:
        """What a step draws from: AutoAttack's all have one seed, as in the original; others begin elsewhere."""
        shared = step.attack in COMPONENTS and step.view == self.target and not step.parameters
        return self.seed if shared else int(digest([self.seed, step.name])[:8], 16)

    def shards(self) -> list[list[int]]:
        """Row numbers of each shard: JOINT rows are shuffled once by the seed and composed, others keep their order."""
        return [shard for rows in self._sequences() for shard in _parts(rows, self.shard_size)]

    def batches(self) -> list[list[int]]:
        """Row numbers of each batch; the last one of a shard may be a partial one."""
        return [batch for shard in self.shards() for batch in _parts(shard, self.batch_size)]

    def _sequences(self) -> list[list[int]]:
        """Rows in the order in which they fill batches; those of two sequences never meet."""
        if self.batching is not Batching.JOINT:
            return [list(range(self.examples.n))]
        order: list[int] = np.random.default_rng(self.seed).permutation(self.examples.n).tolist()
        label = self.labels.__getitem__
        if self.composition is Composition.SINGLE_CLASS:
            return [list(rows) for _, rows in groupby(sorted(order, key=label), key=label)]
        if self.composition is Composition.SORTED:
            return [[row for window in _parts(order, 2 * self.batch_size) for row in sorted(window, key=label)]]
        return [order]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``plan_from_json`` is its inverse. Composition iid and no lender go without saying."""
        data = asdict(self)
        if not self.lender:
            del data["lender"]
        data["format"] = FORMAT
        composition, labels = data.pop("composition"), data.pop("labels")
        if composition is not Composition.IID:
            data |= {"composition": composition.value, "labels": list(labels)}
        data["batching"] = self.batching.value
        data["threat"] = self.threat.to_json()
        data["steps"] = [
            {"view": s.view, "attack": s.attack, "group": s.group, "parameters": dict(s.parameters)} for s in self.steps
        ]
        return data


def _parts(rows: list[int], size: int) -> list[list[int]]:
    """Consecutive rows, ``size`` at a time; the last part may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class Plan(BasePlan):
    """A trial under attack."""

    threat: ThreatModel


@dataclass(frozen=True)
class CorruptionPlan(BasePlan):
    """A trial on corrupted images, one step for each corruption and severity; nobody attacks."""

    threat: Corruptions


def corruption_steps(target: str) -> tuple[Step, ...]:
    """Every corruption at every severity, in the order of Hendrycks and Dietterich."""
    return tuple(
        Step(target, kind, CORRUPTIONS, {"severity": severity})
        for kind in Corruptions.kinds
        for severity in Corruptions.severities
    )


def plan_from_json(data: Mapping[str, Any]) -> Plan | CorruptionPlan:
    """Rebuild a plan from its JSON values.

    Raises:
        IntegrityError: not a plan of this format.
    """
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        fields = {key: value for key, value in data.items() if key != "format"}
        fields["batching"] = Batching(data["batching"])
        fields["threat"] = threat_from_json(data["threat"])
        fields["steps"] = tuple(Step(**step) for step in data["steps"])
        fields["examples"] = Examples(**data["examples"])
        if "composition" in data:
            fields |= {"composition": Composition(data["composition"]), "labels": tuple(data["labels"])}
        return Plan(**fields) if isinstance(fields["threat"], ThreatModel) else CorruptionPlan(**fields)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, UsageProblem) as error:
        raise IntegrityError(
            wanted=f"a run plan of format {FORMAT}",
            got=f"{type(error).__name__}: {error}",
            next_step="remove this run folder, or read it with the version that wrote it",
        ) from error
