"""The straight line every model goes: spec -> weights -> wrapped classifier -> plans -> records -> card."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from hpm_robustbench.attacks.protocols import COUPLED_THREATS, find_protocol
from hpm_robustbench.data import (
    CorruptedSource,
    DataSource,
    ExampleSet,
    corrupted_folder,
    holds_clean,
    open_corrupted,
    open_dataset,
    select,
)
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.data.preprocessing import Preprocessing
from hpm_robustbench.errors import IntegrityError, UnknownName, UsageProblem
from hpm_robustbench.evaluation.aggregates import aggregate
from hpm_robustbench.evaluation.corruptions import Conditions, run_corruptions
from hpm_robustbench.evaluation.diagnostics import diagnose
from hpm_robustbench.evaluation.identity import lab_sha256, state_sha256, subject_sha256
from hpm_robustbench.evaluation.runner import WHOLE, Share, run
from hpm_robustbench.evaluation.verification import Verification, verify
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.views import Subject
from hpm_robustbench.ledger.card_from_corruptions import build_corruption_card
from hpm_robustbench.ledger.card_from_records import build_card
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.fine_tuning import FineTuning
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.model_card import Tuned, check_replaceable, place, write_card
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
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.shapes import Images
from hpm_robustbench.threat import Batching, Composition, Corruptions, Dataset, ThreatModel
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.finetuned import Finetuned, finetune_once, on_trial
from hpm_robustbench.training.recipe import Control, Tuning
from hpm_robustbench.weights import STRICT, Trust, load_weights
from hpm_robustbench.zoo.spec import ModelSpec

COUPLING = "coupling"
SCREENS = (QUICK, COUPLING)
Ready: TypeAlias = Callable[[torch.device], Wrapped]
"""Brings a model that is wrapped already to a device."""
_REFERENCE_IMAGES = 128
_POOL = 4
"""Batches of training images that an attacker draws from who does not know his mates."""
_FILE = 500
"""Images of one corruption and severity that are written down together, or one batch if that is larger."""


@dataclass(frozen=True)
class RunOptions:
    """How a model is put on trial.

    Attributes:
        n_ex: test images, the first of the split; at most all of them.
        batchings: ways in which the HPM classifier is deployed, each with a trial of its own; SOLO, the headline,
            is always among them.
        batch_size: images an attack works on together; part of what makes a result reproducible.
        joint_size: images answered together under JOINT.
        composition: which images these are.
        seed: of every random choice.
        device: where to compute, as torch names it.
        defence: the definition of HPM.
        tuning: how the wrapped model is fine-tuned before; by default nothing is learned but class means and tau.
        controls: try its controls too, to stand beside it on its card.
        compute: how the machine is used for that.
        data: a file or folder that holds the dataset, see ``open_dataset``.
        data_dir: where downloaded datasets lie.
        corruptions_data_dir: where corrupted images lie, see ``open_corrupted``; by default ``data`` or ``data_dir``.
        model_dir: where downloaded checkpoints lie; RobustBench's own folder will do.
        trust: what is believed of checkpoints from elsewhere.
        output: holds ``runs/``, ``prototypes/``, ``finetuned/`` and ``model_cards/``.
        screen: ``quick`` for a few attacks, ``coupling`` for what batch mates can do to each other under JOINT, or
            nothing for a trial that ends with a card.
        keep_images: keep the adversarial images beside the results, to be verified later.
        overwrite: replace a card that tells of other images, batches, seeds, budgets or HPM knobs.
    """

    n_ex: int = 1000
    batchings: tuple[Batching, ...] = (Batching.SOLO, Batching.JOINT)
    batch_size: int = 250
    joint_size: int = 128
    composition: Composition = Composition.IID
    seed: int = 0
    device: str = "cpu"
    defence: HPMConfig = field(default_factory=HPMConfig)
    tuning: Tuning | None = None
    controls: bool = False
    compute: Compute = field(default_factory=Compute)
    data: Path | None = None
    data_dir: Path = Path("data")
    corruptions_data_dir: Path | None = None
    model_dir: Path = Path("models")
    trust: Trust = STRICT
    output: Path = Path()
    screen: str | None = None
    keep_images: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.controls and (self.tuning is None or self.tuning.control is not None):
            raise UsageProblem(
                wanted="a recipe beside all its controls",
                got="no recipe" if self.tuning is None else f"the control {self.tuning.name} alone",
                next_step="give --recipe uniform-v1 --controls, or --control without --controls",
            )

    @property
    def defence_facts(self) -> dict[str, Any]:
        """The definition of HPM that stands trial, and how it was fine-tuned."""
        if self.tuning is None:
            return self.defence.to_json()
        return {**self.tuning.defence(self.defence).to_json(), "tuning": self.tuning.to_json()}


@dataclass(frozen=True)
class Outcome:
    """A finished trial: the card, where it was written, and the records behind it."""

    card: ModelCard
    card_path: Path
    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Screen:
    """What a short protocol left standing: upper bounds, for looking around, and never on a board."""

    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Case:
    """A model ready for trial: everything that costs something is loaded, nothing is attacked yet.

    ``corrupted`` are the test images under corruptions, on a track of that kind; ``course`` tells of the
    fine-tuning, where there was one. ``controls`` are cases of their own, which go to trial with it.
    """

    spec: ModelSpec
    test: ExampleSet
    corrupted: CorruptedSource | None
    trials: Sequence[tuple[BasePlan, Subject]]
    weights_sha256: tuple[str, ...]
    wrapped: Wrapped
    output: Path
    keep_images: bool
    is_screen: bool
    course: FineTuning | None = None
    controls: Mapping[Control, Case] = field(default_factory=dict)

    @property
    def all_trials(self) -> list[tuple[BasePlan, Subject]]:
        """Its own trials first, then those of its controls that are not among them; the base model's is."""
        trials = [trial for case in (self, *self.controls.values()) for trial in case.trials]
        return list({trial[0].run_key: trial for trial in trials}.values())


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
    if options.screen is not None:
        raise UsageProblem(
            wanted="a full protocol, since a card is asked for",
            got=f"{options.screen}, which is a screen and never becomes a card",
            next_step="leave it out, or use pipeline.screen",
        )
    case = prepare(spec, options, model=model, source=source)
    attack(case)
    examine(case)
    outcome = conclude(case)
    assert isinstance(outcome, Outcome)
    return outcome


def screen(
    spec: ModelSpec, options: RunOptions, *, model: nn.Module | None = None, source: DataSource | None = None
) -> Screen:
    """Like ``evaluate``, but with the few attacks of a screen (``quick`` by default), and without a card."""
    case = prepare(spec, replace(options, screen=options.screen or QUICK), model=model, source=source)
    attack(case)
    outcome = conclude(case)
    assert isinstance(outcome, Screen)
    return outcome


def prepare(
    spec: ModelSpec, options: RunOptions, *, model: nn.Module | Ready | None = None, source: DataSource | None = None
) -> Case:
    """Read the images, load the weights, wrap the model and plan its trials; see ``evaluate``.

    A model that is ``Ready`` is wrapped already, and its spec names the sha256 of its weights.
    """
    with _full_precision_kernels():
        return _prepare(spec, options, model, source)


def _prepare(spec: ModelSpec, options: RunOptions, model: nn.Module | Ready | None, source: DataSource | None) -> Case:
    start = _start(spec, options, model, source)
    case = _case(spec, start, options)
    if not options.controls:
        return case
    assert options.tuning is not None
    tunings = {control: replace(options.tuning, control=control) for control in Control}
    each = {control: replace(options, tuning=tuning, controls=False) for control, tuning in tunings.items()}
    return replace(case, controls={control: _case(spec, start, asked) for control, asked in each.items()})


def _case(spec: ModelSpec, start: _Start, options: RunOptions) -> Case:
    named, base, course, sha256 = spec, spec, None, start.weights_sha256
    if options.tuning is not None:
        named = spec.tuned(options.tuning.name)
        base = named if options.tuning.control is Control.FC else spec
        finetuned = _fine_tune(spec, start, options, options.tuning)
        start, course = replace(start, wrapped=on_trial(start.wrapped, finetuned, options.tuning)), finetuned.course
    trials = _trials({"base": base, "hpm": named}, start, options)
    if not (options.overwrite or options.screen):
        _check_card(named, [plan for plan, _ in trials], sha256, options)
    return Case(
        spec=named,
        test=start.test,
        corrupted=start.corrupted,
        trials=trials,
        weights_sha256=sha256,
        wrapped=start.wrapped,
        output=options.output,
        keep_images=options.keep_images,
        is_screen=bool(options.screen),
        course=course,
    )


@dataclass(frozen=True)
class _Start:
    """A model with HPM on it, before anything is fine-tuned, and its images."""

    test: ExampleSet
    corrupted: CorruptedSource | None
    training: ExampleSet
    wrapped: Wrapped
    weights_sha256: tuple[str, ...]


def _start(spec: ModelSpec, options: RunOptions, model: nn.Module | Ready | None, source: DataSource | None) -> _Start:
    device = _device(options.device)
    _check_screen(spec, options)
    source = source or _open_clean(spec, options)
    _check_resolution(spec, source.dataset)
    corrupted = _open_corrupted(spec, source.dataset, options)
    test, training = select(source, options.n_ex)
    test = test if corrupted is None else corrupted.clean_counterpart(test)
    if callable(model) and not isinstance(model, nn.Module):
        wrapped, sha256 = model(device), spec.weights.sha256
    else:
        wrapped, sha256 = _wrapped(spec, options, model, training)
    return _Start(test, corrupted, training, wrapped, sha256)


def _wrapped(
    spec: ModelSpec, options: RunOptions, model: nn.Module | None, training: ExampleSet
) -> tuple[Wrapped, tuple[str, ...]]:
    """The wrapped model, and what its weights hash to."""
    if model is None:
        model, sha256 = load_weights(spec, options.model_dir, trust=options.trust)
    else:
        sha256 = (state_sha256(model),)
    wrapped = wrap(
        model,
        training,
        options.defence,
        head=spec.head,
        device=options.device,
        batch_size=options.batch_size,
        keep=options.output / "prototypes",
    )
    return wrapped, sha256


def fine_tune(spec: ModelSpec, options: RunOptions, tunings: Sequence[Tuning]) -> list[Finetuned]:
    """Wrap a model and fine-tune it, each time anew from its own weights; what is finished already is read.

    Args:
        spec: which model, on which track.
        options: how; ``n_ex`` says which test images a later trial takes, so that none of them is trained on.
        tunings: the recipe, and its controls.

    Raises:
        HpmBenchError: see ``errors``; the same call continues where an earlier one was cut off.
    """
    with _full_precision_kernels():
        start = _start(spec, options, None, None)
        return [_fine_tune(spec, start, options, tuning) for tuning in tunings]


def _fine_tune(spec: ModelSpec, start: _Start, options: RunOptions, tuning: Tuning) -> Finetuned:
    folder = options.output / "finetuned"
    return finetune_once(spec.name, start.wrapped, start.training, spec.threat, tuning, folder, options.compute)


def _check_screen(spec: ModelSpec, options: RunOptions) -> None:
    if options.screen not in (None, *SCREENS):
        raise UnknownName("screen", str(options.screen), SCREENS)
    if options.screen and isinstance(spec.threat, Corruptions):
        raise UsageProblem(
            wanted="an Lp threat model for a screen",
            got="corruptions, where nobody attacks",
            next_step="leave --screen out; --n-ex makes it shorter",
        )


def _check_card(spec: ModelSpec, plans: Sequence[BasePlan], weights_sha256: Sequence[str], options: RunOptions) -> None:
    trials = {plan.trial for plan in plans}
    path = place(options.output / "model_cards", spec.dataset, spec.threat.name, spec.name)
    check_replaceable(path, trials, options.defence_facts, weights_sha256, controls=options.controls)


def attack(case: Case, share: Share = WHOLE) -> None:
    """Do this share of what is not yet written down; on a corruption track nothing is attacked, only evaluated."""
    with _full_precision_kernels():
        for plan, subject in case.all_trials:
            runs, environment = case.output / "runs", _environment(subject.device)
            if isinstance(plan, Plan):
                run(plan, subject, case.test, runs, environment, share, keep_images=case.keep_images)
            else:
                assert isinstance(plan, CorruptionPlan) and case.corrupted is not None
                run_corruptions(plan, subject, Conditions(case.test, case.corrupted), runs, environment, share)


def examine(case: Case) -> None:
    """Aggregate every finished trial under attack and look for indicators of attack failure, where nobody has yet."""
    with _full_precision_kernels():
        for plan, subject in case.all_trials:
            if isinstance(plan, Plan) and not case.is_screen:
                aggregate(plan, subject, case.test, case.output / "runs")
                diagnose(plan, subject, case.test, case.output / "runs")


def verify_kept(case: Case) -> list[Verification]:
    """Judge again every adversarial image that was kept of a case, which this process has loaded afresh."""
    with _full_precision_kernels():
        return [
            verify(plan, subject, case.test, case.output / "runs")
            for plan, subject in case.all_trials
            if isinstance(plan, Plan)
        ]


def _full_precision_kernels() -> AbstractContextManager[None]:
    """On CUDA: no TF32 in convolutions, which rounds to 10 bits, and no kernel that adds up in a changing order.

    The same while a model is prepared and while it is attacked: a run recognises its model by its answers.
    """
    kernels: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return kernels


def conclude(case: Case) -> Outcome | Screen:
    """Collect the records of a case whose every shard is written down, and write its card, if they are worth one.

    The controls' cards come first, so that none is missing that the case's own card tells of.
    """
    trials = case.all_trials if case.is_screen else case.trials
    records = tuple(_record(Journal(case.output / "runs", plan)) for plan, _ in trials)
    if case.is_screen:
        return Screen(records)
    beside = {control.value: conclude(each).records for control, each in case.controls.items()}
    tuned = {} if case.course is None else {"tuned": Tuned(case.course, beside)}
    name = case.spec.preprocessing
    about_images = {"images": f"Preprocessed as {name}, unless they had that size already."} if name else {}
    build = build_card if case.corrupted is None else build_corruption_card
    card = build(
        case.spec,
        records,
        n_classes=case.test.dataset.n_classes,
        weights_sha256=case.weights_sha256,
        notes={**case.wrapped.notes, **about_images},
        **tuned,
    )
    return Outcome(card, write_card(card, case.output / "model_cards"), records)


def _record(journal: Journal) -> RunRecord:
    record = journal.record()
    if record is None:  # written, and gone or damaged since
        raise IntegrityError(
            wanted=f"every step of the run {journal.folder}",
            got="a file that is missing or not whole any more",
            next_step="run the same command again; it does what is missing",
        )
    return record


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageProblem(
            wanted=f"the device {name!r}", got=str(error).splitlines()[0], next_step="use --device cpu, or cuda:0"
        ) from error
    return device


def _open_clean(spec: ModelSpec, options: RunOptions) -> DataSource:
    """The dataset itself; on a corruption track a folder of corrupted images alone does not stand in for it."""
    data = options.data
    corrupted = isinstance(spec.threat, Corruptions) and data is not None and corrupted_folder(spec.dataset, data)
    if corrupted and data is not None and not holds_clean(spec.dataset, data):
        if spec.dataset not in KNOWN:
            raise UsageProblem(
                wanted=f"the clean images of {spec.dataset} beside the corrupted ones",
                got=f"only the corrupted ones, {data}",
                next_step="give the clean ones with --data, and the corrupted ones with --corruptions_data_dir",
            )
        data = None
    return open_dataset(spec.dataset, data=data, data_dir=options.data_dir, preprocessing=spec.preprocessing)


def _check_resolution(spec: ModelSpec, dataset: Dataset) -> None:
    """Refuse images of another size than a model was made for: most networks would run on them, and be wrong."""
    if spec.preprocessing is None:
        return
    side = Preprocessing.parse(spec.preprocessing).side
    if dataset.image_shape[1:] != (side, side):
        raise UsageProblem(
            wanted=f"images of {side} x {side} for {spec.name}, whose preprocessing is {spec.preprocessing}",
            got=f"{dataset.name} of {dataset.image_shape[1]} x {dataset.image_shape[2]}",
            next_step="name a folder of original images, one folder per class, with --data",
        )


def _open_corrupted(spec: ModelSpec, dataset: Dataset, options: RunOptions) -> CorruptedSource | None:
    """The corrupted test images, on a corruption track."""
    if not isinstance(spec.threat, Corruptions):
        return None
    places = [options.corruptions_data_dir] if options.corruptions_data_dir else [options.data, options.data_dir]
    return open_corrupted(dataset, [place for place in places if place])


def _examples(test: ExampleSet, corrupted: CorruptedSource | None) -> Examples:
    """What a plan says of the images; on a corruption track it covers the clean and all corrupted ones."""
    fingerprint = test.fingerprint
    if corrupted is not None:
        fingerprint = digest([fingerprint, corrupted.fingerprint(len(test))])
    return Examples(test.dataset.name, test.split, fingerprint, len(test))


def _trials(specs: Mapping[str, ModelSpec], start: _Start, options: RunOptions) -> Sequence[tuple[BasePlan, Subject]]:
    """The base model, then the HPM classifier at each batching, SOLO always included; ``specs`` by target."""
    wrapped, examples = start.wrapped, _examples(start.test, start.corrupted)
    if options.screen == COUPLING:
        return _coupling_trials(specs["hpm"], start, examples, options)
    base = Subject(wrapped.classifier, wrapped.base, "base")
    trials = [(_plan(specs["base"], base, Batching.SOLO, start.test, examples, options), base)]
    for batching in dict.fromkeys((Batching.SOLO, *options.batchings)):
        reference = _evenly_spaced(start.training, _REFERENCE_IMAGES) if batching is Batching.REFERENCE else None
        hpm = Subject(wrapped.classifier.with_batching(batching, reference), wrapped.base, "hpm")
        trials.append((_plan(specs["hpm"], hpm, batching, start.test, examples, options), hpm))
    return trials


def _coupling_trials(
    spec: ModelSpec, start: _Start, examples: Examples, options: RunOptions
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
        (replace(plan, protocol=threat, steps=(step,), batch_size=size, shard_size=size), hpm)
        for size in sizes
        for threat, step in COUPLED_THREATS.items()
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
    """Under attack: AutoAttack on the base model, MSA on HPM. On a corruption track: every corruption on each."""
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
        protocol = QUICK if options.screen else "standard" if subject.target == "base" else MSA
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
        "pyautoattack": version("pyautoattack"),
        "device": device.type,
        "lab": lab_sha256("data") if reads_images else lab_sha256(),
        **({"pillow": version("pillow")} if reads_images else {}),
    }


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
