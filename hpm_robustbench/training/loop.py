"""The loop: one step after another, each a function of what is learned so far and of the step's number."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import Diverged, HpmBenchError, UsageProblem, first_line
from hpm_robustbench.evaluation.progress import Progress
from hpm_robustbench.hpm.classifier import Embedding, HPMClassifier
from hpm_robustbench.ledger.fine_tuning import Point
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.batches import Batch, Batches
from hpm_robustbench.training.checkpoint import Saved, read_saved, write_saved
from hpm_robustbench.training.compute import compile_if_faster
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.features import Features
from hpm_robustbench.training.folding import Folded, fold
from hpm_robustbench.training.inner import attacked
from hpm_robustbench.training.interruption import Interruption
from hpm_robustbench.training.learner import Learner, check_learns, trainable
from hpm_robustbench.training.measure import accuracy
from hpm_robustbench.training.memory import fitting
from hpm_robustbench.training.objective import Objective
from hpm_robustbench.training.optimiser import learning_rate, make_optimiser, restore, set_learning_rate, tensors_of
from hpm_robustbench.training.parts import Embed, backward
from hpm_robustbench.training.recipe import Tuning

log = logging.getLogger(__name__)

T = TypeVar("T")
_MOST_HELD_OUT = 500
_PLACE = ("at_once", "compiled", "step", "loss_sum")
"""What a checkpoint tells of a ``Position`` beside its curves."""
_PROVED = 4
"""Images on which a folded network is seen to be the same function."""


@dataclass(frozen=True)
class Lesson:
    """Everything that the trained weights depend on, but for the software and the kind of device.

    Attributes:
        classifier: wrapped and frozen; it stays as it is.
        training: images to learn from; a share is held out.
        threat: what the training attack may do.
        tuning: recipe, control and seed.
        precision: of the network's passes.
        at_once: images that pass through the network together; by default the whole batch.
        features: of the training images, for the recipes that train on nothing else.
        fixed: parameters that never learn, see ``Wrapped``.
    """

    classifier: HPMClassifier
    training: ExampleSet
    threat: ThreatModel
    tuning: Tuning
    precision: torch.dtype = torch.float32
    at_once: int | None = None
    features: Features = field(default_factory=Features)
    fixed: frozenset[str] = frozenset()

    def rows(self) -> tuple[Tensor, Tensor]:
        """Row numbers to train on and to measure on; the latter come from every part of the set."""
        n = len(self.training)
        aside = min(_MOST_HELD_OUT, int(self.tuning.recipe.held_out * n))
        held = torch.zeros(n, dtype=torch.bool)
        held[torch.arange(aside) * n // max(1, aside)] = True
        return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


class Result(NamedTuple):
    """A fine-tuned classifier, frozen, which shares nothing with the one before, and the points of its curves."""

    classifier: HPMClassifier
    curves: tuple[Point, ...]


@dataclass
class Position:
    """Where the loop is; with the tensors, all that a checkpoint holds."""

    at_once: int
    compiled: bool = False
    step: int = 0
    loss_sum: float = 0.0
    curves: list[Point] = field(default_factory=list)


class Loop:
    """A lesson on its way: what is learned so far, and the steps that change it."""

    def __init__(self, lesson: Lesson) -> None:
        check_learns(lesson.classifier, lesson.tuning, lesson.fixed)
        self.lesson, self._recipe = lesson, lesson.tuning.recipe
        frozen, device = lesson.classifier, lesson.classifier.prototypes.device
        learning, self._held_out = lesson.rows()
        self._images, backbone = lesson.training.images, None
        if self._recipe.from_features:
            self._images, backbone = lesson.features.of(lesson), nn.Flatten()
        self.batches = Batches(self._images, lesson.training.labels, learning, lesson.tuning, device)
        self.steps = self._recipe.epochs * self.batches.per_epoch
        classifier = trainable(frozen, lesson.tuning.defence(frozen.config), backbone)
        classifier.batching = Batching(self._recipe.batching)
        self.learner = Learner(classifier, lesson.tuning.learned, lesson.precision, lesson.fixed)
        self._optimiser = make_optimiser(self.learner, self._recipe) if self.steps else None
        self._average = _averaged(self.learner, self._recipe.average_share * self.steps)
        self._assigned = torch.zeros(len(classifier.prototypes), dtype=torch.int64, device=device)
        self._progress: Progress | None = None
        self.position = Position(lesson.at_once or 2 * self._recipe.batch_size)
        self._kept_at: int | None = None

    @property
    def folded(self) -> Folded | None:
        """What attacks pass through, if not through the learner; not to be asked before weights lie as they stay."""
        return None if self.position.compiled else self._folded

    @cached_property
    def _folded(self) -> Folded | None:
        attacks = self.steps and self._recipe.attack_steps
        return fold(self.learner, self.batches[0].x[:_PROVED]) if attacks else None

    def run(
        self, checkpoint: Path | None = None, *, key: str = "", every: float = 300.0, compiled: bool = False
    ) -> Result:
        """Train to the end, from a checkpoint of this ``key`` if there is one.

        Ctrl-C and SIGTERM take effect after a step, when a checkpoint is written.

        Args:
            checkpoint: file that is replaced from time to time; without it nothing is written.
            key: what the file belongs to.
            every: seconds between two checkpoints.
            compiled: let torch.compile rewrite the backbone where that is faster; what a checkpoint comes from was
                decided when it began, and is not decided anew.

        Raises:
            Diverged: a loss, a gradient or a weight is not finite; the last checkpoint is kept.
            UsageProblem: not even one image fits into memory.
            StorageProblem: the checkpoint cannot be written.
        """
        saved = None if checkpoint is None else read_saved(checkpoint, key)
        if saved is not None:
            self._restore(saved)
            log.info("continuing %s after step %d of %d", self.lesson.tuning.name, self.position.step, self.steps)
        elif compiled:
            self.position.compiled = self.with_what_fits(lambda x: compile_if_faster(self.learner, self.folded, x))
        name, done = self.lesson.tuning.name, self.position.step
        with Progress(name, self.steps, done=done, counted="steps") as self._progress:
            if not self.position.curves:
                self._measure(Point(epoch=0))
            self._step_to_the_end(checkpoint, key, every)
        classifier = self.deployed().freeze()
        if self.steps:
            self._check_finite(classifier)
        return Result(classifier, tuple(self.position.curves))

    def _step_to_the_end(self, checkpoint: Path | None, key: str, every: float) -> None:
        written = time.monotonic()
        with Interruption() as interruption:
            while self.position.step < self.steps:
                self.step()
                stopping = interruption.came
                if checkpoint is not None and (stopping or time.monotonic() - written >= every):
                    write_saved(checkpoint, self._saved(key))
                    written, self._kept_at = time.monotonic(), self.position.step
                if stopping:
                    interruption.let_through()

    def step(self) -> None:
        """Attack one batch, lower its loss, let prototypes and averages follow; after an epoch, measure."""
        assert self._optimiser is not None, "a recipe without steps takes none"
        batch = self.batches[self.position.step]
        objective = Objective(self.learner, self.lesson.tuning, batch.labels, batch.lender, self._tick)
        self._begin(f"epoch {self.position.step // self.batches.per_epoch + 1} of {self._recipe.epochs}")
        self.position.at_once, (loss, seen) = fitting(
            self.position.at_once, lambda at_once: self._gradients(objective, batch, at_once)
        )
        set_learning_rate(self._optimiser, learning_rate(self._recipe, self.position.step, self.steps))
        self._optimiser.step()
        self.learner.project()
        self._follow(objective, seen)
        self.position.loss_sum += loss
        self.position.step += 1
        if self._progress is not None:
            self._progress.advance()
        if self.position.step % self.batches.per_epoch == 0:
            self._end_epoch()

    def with_what_fits(self, prepare: Callable[[Tensor], T]) -> T:
        """Do something with as many images of the first batch as pass through the network together, or as fit."""
        x = self.batches[0].x
        self.position.at_once, done = fitting(self.position.at_once, lambda at_once: prepare(x[:at_once]))
        return done

    def _gradients(self, objective: Objective, batch: Batch, at_once: int) -> tuple[float, Embedding]:
        """Put gradients of the batch's loss in place; return the loss, and the embedding that it was computed from."""
        self.learner.zero_grad(set_to_none=True)
        start = drawn(self.lesson.tuning.seed, "start", self.position.step)
        moved = attacked(objective, batch.x, self.lesson.threat, start, at_once, self._attacked_through())
        shown = torch.cat([batch.x, moved]) if objective.two_passes else moved
        loss, seen = backward(self.learner.embed, shown, objective.loss, at_once)
        length = nn.utils.clip_grad_norm_(self.learner.parameters(), self._recipe.max_gradient_norm)
        if not (loss.isfinite() and length.isfinite()):
            got = f"a loss of {float(loss):g} with a gradient of length {float(length):g}"
            raise self._diverged(self.position.step + 1, got)
        return float(loss), seen

    def _attacked_through(self) -> Embed:
        if self.folded is None:
            return self.learner.embed
        self.folded.refresh()
        return self.folded.embed

    def _follow(self, objective: Objective, seen: Embedding) -> None:
        """Prototypes and averaged weights move a little towards what this step has seen and made."""
        clean, moved = objective.halves(seen)
        fed = clean if self._recipe.prototype_feed == "clean" else moved
        labels = objective.labels if self._recipe.prototype_labels == "true" else fed.logits.argmax(dim=1)
        self.learner.follow(fed, labels, self._recipe.prototype_momentum)
        if self._average is not None:
            self._average.update_parameters(self.learner)
        self._assigned += F.one_hot(moved.logits.argmax(dim=1), len(self._assigned)).sum(dim=0)

    def _end_epoch(self) -> None:
        unsupported = (self._assigned == 0).nonzero().squeeze(1).tolist()
        if unsupported:
            log.warning("no training image was put into the classes %s: no batch prototype", _listed(unsupported))
        number = self.position.step // self.batches.per_epoch
        loss = self.position.loss_sum / self.batches.per_epoch
        self._measure(Point(epoch=number, loss=loss, unsupported=unsupported))
        self.position.loss_sum = 0.0
        self._assigned.zero_()

    def _begin(self, label: str) -> None:
        if self._progress is not None:
            self._progress.begin(label)

    def _tick(self) -> None:
        if self._progress is not None:
            self._progress.tick()

    def _measure(self, point: Point) -> None:
        self._begin(f"measuring after epoch {point.epoch}")
        lesson, rows = self.lesson, self._held_out
        # An attack in every epoch would cost many times the training of a head on ready features.
        under_attack = not self._recipe.from_features or point.epoch in (0, self._recipe.epochs)
        images = lesson.training.images if under_attack else self._images
        _, measured = fitting(
            self.position.at_once,
            lambda at_once: accuracy(
                self.deployed() if under_attack else self._classifier(),
                images[rows],
                lesson.training.labels[rows],
                lesson.threat,
                lesson.tuning,
                at_once,
                under_attack=under_attack,
                tick=self._tick,
            ),
        )
        self.position.curves.append(point.model_copy(update=measured._asdict()))
        log.info("%s: %s", self.lesson.tuning.name, self.position.curves[-1])

    def deployed(self) -> HPMClassifier:
        """The classifier as it would be deployed now: averaged weights on the whole backbone, each image alone."""
        return self._classifier(self.lesson.classifier.backbone if self._recipe.from_features else None)

    @torch.no_grad()
    def _classifier(self, backbone: nn.Module | None = None) -> HPMClassifier:
        """The same on another backbone, by default on the one that is trained, which may take ready features."""
        learner = self.learner if self._average is None else self._average.module
        assert isinstance(learner, Learner)
        source = learner.classifier
        classifier = trainable(source, source.config, backbone)
        classifier.beta.copy_(source.beta)
        if "tau" in self.lesson.tuning.learned:
            classifier.tau.copy_(learner.log_tau.exp())
        return classifier

    def _saved(self, key: str) -> Saved:
        self._check_finite(self.learner)
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self._average.state_dict().items()}
        if self._optimiser is not None:
            tensors |= {f"optimiser.{name}": tensor for name, tensor in tensors_of(self._optimiser).items()}
        tensors["assigned"] = self._assigned
        position = self.position
        curves = [point.model_dump() for point in position.curves]
        facts = {name: getattr(position, name) for name in _PLACE}
        facts["curves"] = curves
        return Saved(tensors, {"key": key, "steps": self.steps, "threads": torch.get_num_threads(), **facts})

    def _restore(self, saved: Saved) -> None:
        parts: dict[str, dict[str, Tensor]] = {"learner": {}, "average": {}, "optimiser": {}}
        for name, tensor in saved.tensors.items():
            part, _, rest = name.partition(".")
            if rest:
                parts[part][rest] = tensor
        self.learner.load_state_dict(parts["learner"])
        if self._average is not None:
            self._average.load_state_dict(parts["average"])
        if self._optimiser is not None:
            restore(self._optimiser, parts["optimiser"])
        self._assigned.copy_(saved.tensors["assigned"])
        facts = {name: saved.facts[name] for name in _PLACE}
        self.position = Position(**facts, curves=[Point.model_validate(point) for point in saved.facts["curves"]])
        self._kept_at = self.position.step
        if self.position.compiled:
            self._compile_again()
        asked = self.lesson.at_once
        if asked is not None and asked < self.position.at_once:
            log.info("from now on %d images at once as asked for, %d before", asked, self.position.at_once)
            self.position.at_once = asked

    def _compile_again(self) -> None:
        """As the training began: without, it would end in other last bits."""
        self.learner.classifier.backbone.compile()
        try:
            with torch.no_grad():
                self.with_what_fits(self.learner.embed)
        except Exception as error:  # whatever a compiler may raise
            if isinstance(error, HpmBenchError):
                raise
            raise UsageProblem(
                wanted="the compiler that this training began with",
                got=first_line(error),
                next_step="repair it, or delete checkpoint.safetensors in the training's folder and begin anew without",
            ) from error

    def _check_finite(self, module: nn.Module) -> None:
        if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
            raise self._diverged(self.position.step, "weights that are not finite")

    def _diverged(self, step: int, got: str) -> Diverged:
        kept = "" if self._kept_at is None else f"; what was learned in {self._kept_at} steps is kept"
        return Diverged(
            wanted=f"a finite step {step} of {self.steps} of {self.lesson.tuning.name}",
            got=got,
            next_step=f"lower the learning rate, with --tune learning_rate=..., which begins anew{kept}",
        )


def _averaged(learner: Learner, steps: float) -> AveragedModel | None:
    """Exponential average over about so many steps; buffers, prototypes among them, are those of the learner."""
    if steps <= 1:
        return None
    return AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / steps))  # type: ignore[no-untyped-call]


def _listed(classes: list[int]) -> str:
    return f"{', '.join(map(str, classes[:10]))}{', ...' if len(classes) > 10 else ''}"
