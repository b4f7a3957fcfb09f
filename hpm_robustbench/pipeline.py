"""The straight line every model goes: spec -> weights -> wrapped classifier -> plans -> records -> card."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from hpm_robustbench.attacks.protocols import find_protocol
from hpm_robustbench.data import DataSource, ExampleSet, open_dataset, select
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.evaluation.runner import WHOLE, Share, lab_sha256, run, state_sha256, subject_sha256
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.views import Subject
from hpm_robustbench.ledger.card_from_records import build_card
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.model_card import check_replaceable, place, write_card
from hpm_robustbench.ledger.plan import Examples, Plan
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.shapes import Images
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.weights import load_weights
from hpm_robustbench.zoo.spec import ModelSpec

_REFERENCE_IMAGES = 128


@dataclass(frozen=True)
class RunOptions:
    """How a model is put on trial.

    Attributes:
        n_ex: test images, the first of the split; at most all of them.
        batchings: ways in which the HPM classifier is deployed, each with a trial of its own; SOLO, the headline,
            is always among them.
        batch_size: images an attack works on together; part of what makes a result reproducible.
        joint_size: images answered together under JOINT.
        seed: of every random choice.
        device: where to compute, as torch names it.
        defence: the definition of HPM.
        data: a file or folder that holds the dataset, see ``open_dataset``.
        data_dir: where downloaded datasets lie.
        model_dir: where downloaded checkpoints lie, in RobustBench's layout.
        output: holds ``runs/``, ``prototypes/`` and ``model_cards/``.
        overwrite: replace a card that tells of other images, batches, seeds, budgets or HPM knobs.
    """

    n_ex: int = 1000
    batchings: tuple[Batching, ...] = (Batching.SOLO, Batching.JOINT)
    batch_size: int = 250
    joint_size: int = 128
    seed: int = 0
    device: str = "cpu"
    defence: HPMConfig = field(default_factory=HPMConfig)
    data: Path | None = None
    data_dir: Path = Path("data")
    model_dir: Path = Path("models")
    output: Path = Path()
    overwrite: bool = False


@dataclass(frozen=True)
class Outcome:
    """A finished trial: the card, where it was written, and the records behind it."""

    card: ModelCard
    card_path: Path
    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Case:
    """A model ready for trial: everything that costs something is loaded, nothing is attacked yet."""

    spec: ModelSpec
    test: ExampleSet
    trials: Sequence[tuple[Plan, Subject]]
    weights_sha256: tuple[str, ...]
    prototypes_from: str
    output: Path


def evaluate(
    spec: ModelSpec, options: RunOptions, *, model: nn.Module | None = None, source: DataSource | None = None
) -> Outcome:
    """Wrap a model, attack it and its base, judge, and write its card.

    Repeating the call continues where an earlier one stopped, and yields the same bytes.

    Args:
        spec: which model, on which track.
        options: how.
        model: the network itself, if the caller has it in memory; otherwise the spec says where it comes from.
        source: the images themselves, likewise.

    Raises:
        HpmBenchError: see ``errors``; whatever was finished before is kept.
    """
    case = prepare(spec, options, model=model, source=source)
    attack(case)
    return conclude(case)


def prepare(
    spec: ModelSpec, options: RunOptions, *, model: nn.Module | None = None, source: DataSource | None = None
) -> Case:
    """Read the images, load the weights, wrap the model and plan its trials; see ``evaluate``."""
    _attackable(spec)
    device = _device(options.device)
    source = source or open_dataset(spec.dataset, data=options.data, data_dir=options.data_dir)
    test, training = select(source, options.n_ex)
    if model is None:
        model, sha256 = load_weights(spec, options.model_dir)
    else:
        sha256 = (state_sha256(model),)
    wrapped = wrap(
        model,
        training,
        options.defence,
        head=spec.head,
        device=device,
        batch_size=options.batch_size,
        keep=options.output / "prototypes",
    )
    trials = _trials(spec, wrapped, training, test, options)
    if not options.overwrite:
        _check_card(spec, [plan for plan, _ in trials], options)
    return Case(spec, test, trials, sha256, wrapped.prototypes_from, options.output)


def _check_card(spec: ModelSpec, plans: Sequence[Plan], options: RunOptions) -> None:
    trials = {
        (p.target, p.batching, p.batch_size, p.seed, str(p.threat.eps.value), p.examples.fingerprint) for p in plans
    }
    path = place(options.output / "model_cards", spec.dataset, spec.threat.name, spec.name)
    check_replaceable(path, trials, options.defence.to_json())


def attack(case: Case, share: Share = WHOLE) -> None:
    """Do this share of what is not yet written down."""
    with _full_precision_kernels():
        for plan, subject in case.trials:
            run(plan, subject, case.test, case.output / "runs", _environment(subject.device), share)


def _full_precision_kernels() -> AbstractContextManager[None]:
    """On CUDA: no TF32 in convolutions, which rounds to 10 bits, and no kernel that adds up in a changing order."""
    kernels: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return kernels


def conclude(case: Case) -> Outcome:
    """Collect the records of a case whose every shard is written down, and write its card."""
    journals = [Journal(case.output / "runs", plan) for plan, _ in case.trials]
    records = tuple(record for journal in journals if (record := journal.record()) is not None)
    card = build_card(
        case.spec,
        records,
        n_classes=case.test.dataset.n_classes,
        weights_sha256=case.weights_sha256,
        notes={"prototypes": case.prototypes_from},
    )
    return Outcome(card, write_card(card, case.output / "model_cards"), records)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageProblem(
            wanted=f"the device {name!r}", got=str(error).splitlines()[0], next_step="use --device cpu, or cuda:0"
        ) from error
    return device


def _trials(
    spec: ModelSpec, wrapped: Wrapped, training: ExampleSet, test: ExampleSet, options: RunOptions
) -> Sequence[tuple[Plan, Subject]]:
    """The base model under AutoAttack, then the HPM classifier under MSA at each batching, SOLO always included."""
    base = Subject(wrapped.classifier, wrapped.base, "base")
    trials = [(_plan(spec, base, Batching.SOLO, test, options), base)]
    for batching in dict.fromkeys((Batching.SOLO, *options.batchings)):
        reference = _evenly_spaced(training, _REFERENCE_IMAGES) if batching is Batching.REFERENCE else None
        hpm = Subject(wrapped.classifier.with_batching(batching, reference), wrapped.base, "hpm")
        trials.append((_plan(spec, hpm, batching, test, options), hpm))
    return trials


def _evenly_spaced(examples: ExampleSet, n: int) -> Images:
    """``n`` images from every part of a set, which may be sorted by class."""
    return examples.images[:: max(1, len(examples) // n)][:n]


def _plan(
    spec: ModelSpec,
    subject: Subject,
    batching: Batching,
    test: ExampleSet,
    options: RunOptions,
) -> Plan:
    batch_size = options.joint_size if batching is Batching.JOINT else options.batch_size
    protocol = "standard" if subject.target == "base" else "msa"
    return Plan(
        model=spec.name,
        target=subject.target,
        batching=batching,
        threat=_attackable(spec),
        protocol=protocol,
        steps=find_protocol(protocol, subject.target, batching),
        examples=Examples(test.dataset.name, test.split, test.fingerprint, len(test)),
        state_sha256=subject_sha256(subject, test),
        defence=options.defence.to_json() if subject.target == "hpm" else {},
        software={
            "torch": version("torch"),
            "pyautoattack": version("pyautoattack"),
            "device": subject.device.type,
            "lab": lab_sha256(),
        },
        seed=options.seed,
        batch_size=batch_size,
        shard_size=batch_size,
    )


def _attackable(spec: ModelSpec) -> ThreatModel:
    if isinstance(spec.threat, ThreatModel):
        return spec.threat
    raise UsageProblem(
        wanted=f"a norm and a budget to attack {spec.name} under",
        got=f"a model against {spec.threat}",
        next_step="add them, such as --threat_model Linf --eps 8/255",
    )


def _environment(device: torch.device) -> dict[str, str]:
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    packages = {name: version(name) for name in ("hpm-robustbench", "torch", "numpy", "pyautoattack", "robustbench")}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device.type,
        **gpu,
        **packages,
    }
