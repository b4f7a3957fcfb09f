"""A wrapped model and its images -> the plans of its trials, and who stands in each."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from hpm_robustbench.attacks.protocols import COUPLED_THREATS, find_protocol
from hpm_robustbench.data import CorruptedSource, ExampleSet
from hpm_robustbench.evaluation.identity import LAB, code_sha256, subject_sha256
from hpm_robustbench.ledger.coupling import COUPLING
from hpm_robustbench.ledger.plan import (
    CORRUPTIONS,
    MSA,
    QUICK,
    BasePlan,
    CorruptionPlan,
    Examples,
    Plan,
    corruption_steps,
    digest,
)
from hpm_robustbench.load import Wrapped
from hpm_robustbench.robustbench_compat import autoattack_version
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.shapes import Images
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching, Composition, Corruptions, ThreatModel
from hpm_robustbench.zoo.spec import ModelSpec

_REFERENCE_IMAGES = 128
_POOL = 4
"""Batches of training images that an attacker draws from who does not know his mates."""
_FILE = 500
"""Images of one corruption and severity that are written down together, or one batch if that is larger."""


@dataclass(frozen=True)
class Start:
    """A model with HPM on it, before anything is fine-tuned, and its images."""

    test: ExampleSet
    corrupted: CorruptedSource | None
    training: ExampleSet
    wrapped: Wrapped
    weights_sha256: tuple[str, ...]


def _examples(test: ExampleSet, corrupted: CorruptedSource | None) -> Examples:
    """What a plan says of the images; on a corruption track it covers the clean and all corrupted ones."""
    fingerprint = test.fingerprint
    if corrupted is not None:
        fingerprint = digest([fingerprint, corrupted.fingerprint(len(test))])
    return Examples(test.dataset.name, test.split, fingerprint, len(test))


def plan_trials(
    specs: Mapping[str, ModelSpec], start: Start, options: RunOptions
) -> Sequence[tuple[BasePlan, Subject]]:
    """The base model, then the HPM classifier at each batching, SOLO always included; ``specs`` by target."""
    wrapped, examples = start.wrapped, _examples(start.test, start.corrupted)
    if options.screen == COUPLING:
        return _coupling_trials(specs["hpm"], start, examples, options)
    base = Subject(wrapped.classifier, wrapped.base, "base")
    trials = [(_plan(specs["base"], base, Batching.SOLO, start.test, examples, options), base)]
    lender = trials[0][0].run_key if isinstance(trials[0][0], Plan) and options.screen is None else ""
    for batching in dict.fromkeys((Batching.SOLO, *options.batchings)):
        reference = _evenly_spaced(start.training, _REFERENCE_IMAGES) if batching is Batching.REFERENCE else None
        hpm = Subject(wrapped.classifier.with_batching(batching, reference), wrapped.base, "hpm")
        plan = _plan(specs["hpm"], hpm, batching, start.test, examples, options)
        trials.append((replace(plan, lender=lender), hpm))
    return trials


def _coupling_trials(
    spec: ModelSpec, start: Start, examples: Examples, options: RunOptions
) -> Sequence[tuple[BasePlan, Subject]]:
    """JOINT in batches of several sizes, under each threat to one of their images.

    Training images are what an attacker has who does not know his mates.
    """
    pool = _evenly_spaced(start.training, _POOL * options.joint_size)
    classifier = start.wrapped.classifier.with_batching(Batching.REFERENCE, pool).with_batching(Batching.JOINT)
    hpm = Subject(classifier, start.wrapped.base, "hpm")
    plan = _plan(spec, hpm, Batching.JOINT, start.test, examples, options)
    sizes = sorted({max(2, options.joint_size // parts) for parts in (16, 4, 1)})
    return [
        (replace(plan, protocol=threat, steps=steps, batch_size=size, shard_size=size), hpm)
        for size in sizes
        for threat, steps in COUPLED_THREATS.items()
    ]


def _evenly_spaced(examples: ExampleSet, n: int) -> Images:
    """``n`` images from every part of a set, which may be sorted by class."""
    return examples.images[:: max(1, len(examples) // n)][:n]


def _plan(
    spec: ModelSpec,
    subject: Subject,
    batching: Batching,
    test: ExampleSet,
    examples: Examples,
    options: RunOptions,
) -> BasePlan:
    """Under attack: MSA on HPM, and what of it fits any head on the base model. On a corruption track: all of them."""
    batch_size = options.joint_size if batching is Batching.JOINT else options.batch_size
    shared: dict[str, Any] = {
        "model": spec.name,
        "target": subject.target,
        "batching": batching,
        "examples": examples,
        "state_sha256": subject_sha256(subject, test),
        "defence": options.defence_facts if subject.target == "hpm" else {},
        "software": _software(subject.device, reads_images=isinstance(spec.threat, Corruptions)),
        "seed": options.seed,
        "batch_size": batch_size,
        **_composed(batching, options.composition, test),
    }
    if isinstance(spec.threat, ThreatModel):
        protocol = QUICK if options.screen else MSA
        fine_tuned = options.tuning is not None and options.tuning.moves_fc
        steps = find_protocol(protocol, subject.target, batching, fine_tuned)
        return Plan(threat=spec.threat, protocol=protocol, steps=steps, shard_size=batch_size, **shared)
    return CorruptionPlan(
        threat=spec.threat,
        protocol=CORRUPTIONS,
        steps=corruption_steps(subject.target),
        shard_size=batch_size * max(1, _FILE // batch_size),
        **shared,
    )


def _composed(batching: Batching, composition: Composition, test: ExampleSet) -> dict[str, Any]:
    """How a plan fills its batches, if not at random; only those of JOINT can tell the difference."""
    if batching is not Batching.JOINT or composition is Composition.IID:
        return {}
    return {"composition": composition, "labels": tuple(test.labels.tolist())}


def _software(device: torch.device, *, reads_images: bool) -> dict[str, str]:
    """What a result depends on; corrupted images are known by their files, so how these are read is part of it."""
    return {
        "torch": version("torch"),
        **autoattack_version(),
        "device": device.type,
        "lab": code_sha256(*LAB, "data") if reads_images else code_sha256(*LAB),
        **({"pillow": version("pillow")} if reads_images else {}),
    }


def environment_of(device: torch.device) -> dict[str, str]:
    """Versions and machine, written beside the results that came about there."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    packages = {name: version(name) for name in ("hpm-robustbench", "torch", "numpy", "robustbench")}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device.type,
        **gpu,
        **packages,
        **autoattack_version(),
    }
