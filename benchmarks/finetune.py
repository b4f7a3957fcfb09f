"""Images per second of fine-tuning, against a plain loop of the same recipe, in the same run.

    python -m benchmarks.finetune [--device cpu] [--images 256] [--steps 4] [--compile]
    python -m benchmarks.finetune --cifar10 DIR [--model CifarResNet20-Standard] [--head-images 1000]

The plain loop does what the recipe says in the way that one would write it down first: float32, the usual memory
layout, parameters that collect gradients during the attack. Neither computes in TF32. Both start from the embedded
model, or with ``--cifar10``, a folder as ``benchmarks.real_models`` reads it, from one of its networks, and take turns,
with a third: the same passes through the same network and back by themselves, whose time is the share of ours that no
loop can save. Memory is the most that a process had in use which made two steps of one of them. Targets: at least 1.8
times the plain loop on a CPU with bfloat16 units, 2.5 times on CUDA.

``--head-images`` also measures what the recipe ``head`` costs on so many images of that network, measurements of its
curves included, in epochs of clean forward passes over them; the target is two. The smaller the network, the more its
head weighs.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cifar10 import images_of
from benchmarks.real_models import MODELS, weights_path
from hpm_robustbench.data import ExampleSet, open_dataset
from hpm_robustbench.hpm.prototypes import ema_update
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.request.models import find_spec, own_spec
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.augment import augmented
from hpm_robustbench.training.compute import compile_if_faster, precision_on, prefer_channels_last
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.learner import trainable
from hpm_robustbench.training.loop import Lesson, Loop
from hpm_robustbench.training.optimiser import learning_rate, make_optimiser, set_learning_rate
from hpm_robustbench.training.recipe import Tuning, find_recipe
from hpm_robustbench.weights import load_weights
from hpm_robustbench.zoo.builtin import DIGITS_MODEL

ROUNDS, EPOCHS = 3, 1000
OF_CIFAR10 = 0.01
"""Share of CIFAR-10's training images that is held out: 500 of 50,000."""


class PlainLoop:
    """The same recipe without any of the measures that make it fast."""

    def __init__(self, wrapped: Wrapped, training: ExampleSet, threat: ThreatModel, batch_size: int) -> None:
        self.recipe, self.eps = find_recipe("uniform-v1"), float(threat.eps)
        self.classifier = trainable(wrapped.classifier, wrapped.classifier.config).eval().requires_grad_(True)
        self.classifier.to(memory_format=torch.contiguous_format)
        self.classifier.batching = Batching.JOINT
        self.average = copy.deepcopy(self.classifier)
        self.classifier.beta.requires_grad_(False)
        self.optimiser = make_optimiser(self.classifier, self.recipe)
        self.steps = EPOCHS * len(training) // batch_size
        self.training, self.batch_size, self.number = training, batch_size, 0
        self.device = self.classifier.prototypes.device

    def step(self) -> None:
        n, recipe = len(self.training), self.recipe
        rows = torch.arange(self.number * self.batch_size, (self.number + 1) * self.batch_size) % n
        x, y = self.training.images[rows].to(self.device), self.training.labels[rows].to(self.device)
        x = augmented(x, recipe, drawn(0, "augment", self.number))
        set_learning_rate(self.optimiser, learning_rate(recipe, self.number, self.steps))
        self.number += 1
        moved = (x + self.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(self.recipe.attack_steps):
            moved = moved.detach().requires_grad_()
            F.cross_entropy(self.classifier(moved), y).backward()
            stepped = moved + self.recipe.attack_step * self.eps * moved.grad.sign()
            moved = stepped.clamp(x - self.eps, x + self.eps).clamp(0, 1)
        self.optimiser.zero_grad()
        seen = self.classifier.embed(moved.detach())
        answer = -self.classifier.distances(seen) / self.classifier.tau
        (F.cross_entropy(answer, y) + F.cross_entropy(seen.logits, y)).backward()
        nn.utils.clip_grad_norm_(self.classifier.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            own = self.classifier
            own.set_prototypes(ema_update(own.prototypes, seen.features, y, recipe.prototype_momentum))
            for mine, averaged in zip(self.classifier.parameters(), self.average.parameters(), strict=True):
                averaged.lerp_(mine, 1 / (recipe.average_share * self.steps))


class BarePasses:
    """The passes of our step and nothing else: to the images for each step of the attack, and once to the weights."""

    def __init__(self, ours: Loop) -> None:
        self.learner, self.x = ours.learner, ours.batches[0].x
        self.steps = ours.lesson.tuning.recipe.attack_steps
        self.attacked = self.learner.classifier.backbone if ours.folded is None else ours.folded.network

    def step(self) -> None:
        for _ in range(self.steps):
            leaf = self.x.detach().requires_grad_()
            self._features(self.attacked, leaf).sum().backward(inputs=[leaf])
        self._features(self.learner.classifier.backbone, self.x).sum().backward()
        self.learner.zero_grad(set_to_none=True)

    def _features(self, network: nn.Module, x: Tensor) -> Tensor:
        with self.learner.reduced(x.device):
            return network(x).float()


class FewImages:
    """A published network on the first training images of CIFAR-10."""

    def __init__(self, name: str, folder: Path, device: torch.device, count: int) -> None:
        model = MODELS[name]
        asked = {"name": name, "head": None, "about": None, "dataset": model.dataset, "threat_model": None}
        spec = own_spec(model.factory, str(weights_path(model, folder)), eps=model.eps, **asked)
        self.images = images_of(folder / "cifar10", "train", count)
        self.wrapped = wrap(load_weights(spec, Path("models")).model, self.images, device=device)
        assert isinstance(spec.threat, ThreatModel)
        self.threat, self.device = spec.threat, device

    def head_in_epochs(self, count: int) -> float:
        """Seconds of the recipe ``head`` on so many images, divided by those of a clean forward pass over them."""
        recipe, images = find_recipe("head").with_knobs({"held_out": OF_CIFAR10}), self.images.head(count)
        lesson = Lesson(self.wrapped.classifier, images, self.threat, Tuning(recipe))
        seconds = []
        for work in (*[lambda: self._clean_epoch(images)] * 2, lambda: Loop(lesson).run()):
            began = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return seconds[2] / seconds[1]

    def _clean_epoch(self, images: ExampleSet) -> None:
        with torch.no_grad():
            for batch in torch.split(images.images, 128):
                self.wrapped.classifier.embed(batch.to(self.device))


def few_digits(device: torch.device, count: int) -> tuple[Wrapped, ExampleSet, ThreatModel]:
    """The embedded model on its first training images."""
    spec = find_spec(DIGITS_MODEL)
    training = open_dataset(spec.dataset).train(count)
    assert training is not None
    assert isinstance(spec.threat, ThreatModel)
    return wrap(load_weights(spec, Path("models")).model, training, device=device), training, spec.threat


class Contest:
    """Our loop and the plain one on the same images; ``few`` is the published network that they train, if it is one."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.device, self.few = torch.device(chosen.device), None
        if chosen.cifar10:
            most = max(chosen.images, chosen.head_images or 0)
            self.few = FewImages(chosen.model, chosen.cifar10, self.device, most)
            wrapped, training, threat = self.few.wrapped, self.few.images.head(chosen.images), self.few.threat
        else:
            wrapped, training, threat = few_digits(self.device, chosen.images)
        recipe = find_recipe("uniform-v1").with_knobs({"epochs": EPOCHS, "held_out": 0.0})
        self.precision = precision_on(self.device, recipe)
        self.batch_size = recipe.batch_size
        self.wrapped, self.training, self.threat, self.tuning = wrapped, training, threat, Tuning(recipe)
        self.compiled = chosen.compile

    def plain(self) -> PlainLoop:
        return PlainLoop(self.wrapped, self.training, self.threat, self.batch_size)

    def ours(self) -> Loop:
        loop = Loop(Lesson(self.wrapped.classifier, self.training, self.threat, self.tuning, self.precision))
        prefer_channels_last(loop.learner.classifier, loop.batches[0].x)
        loop.position.compiled = self.compiled and compile_if_faster(loop.learner, loop.folded, loop.batches[0].x)
        return loop


@full_precision_kernels()
def peak_gib(chosen: argparse.Namespace, which: str) -> float:
    """GiB in use at most while two steps of one loop are made on a device; on a CPU, by the whole process."""
    contest = Contest(chosen)
    loop = getattr(contest, which)()
    if contest.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timed(loop, 2, contest.device)
    if contest.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def alone(chosen: argparse.Namespace, which: str) -> float:
    """``peak_gib`` in a process of its own, which on Linux begins with the peak of the one that starts it."""
    chosen = argparse.Namespace(**{**vars(chosen), "head_images": None})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return round(pool.submit(peak_gib, chosen, which).result(), 2)


def timed(loop: PlainLoop | Loop | BarePasses, steps: int, device: torch.device) -> float:
    """Seconds of some steps."""
    began = time.perf_counter()
    for _ in range(steps):
        loop.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@full_precision_kernels()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--model", choices=sorted(MODELS), default="AutoAttackResNet18-Standard")
    parser.add_argument("--head-images", type=int)
    chosen = parser.parse_args()
    if chosen.head_images and not chosen.cifar10:
        parser.error("--head-images needs --cifar10, whose networks it measures")
    if chosen.images < find_recipe("uniform-v1").batch_size:
        parser.error("--images must be a batch at least")
    peaks = {which: alone(chosen, which) for which in ("plain", "ours")}  # before this process has a peak of its own
    contest = Contest(chosen)
    plain, ours = contest.plain(), contest.ours()
    loops = (plain, ours, BarePasses(ours))
    for loop in loops:
        timed(loop, 1, contest.device)
    seconds = [[timed(loop, chosen.steps, contest.device) for loop in loops] for _ in range(ROUNDS)]
    images = chosen.steps * contest.batch_size
    report = {
        "device": str(contest.device),
        "precision": str(contest.precision),
        "compiled": ours.position.compiled,
        "folded": ours.folded is not None,
        "plain images/s": round(images / statistics.median(p for p, _, _ in seconds), 1),
        "ours images/s": round(images / statistics.median(o for _, o, _ in seconds), 1),
        "ratio": round(statistics.median(p / o for p, o, _ in seconds), 3),
        "share in passes": round(statistics.median(b / o for _, o, b in seconds), 3),
        "peak GiB": peaks,
        "head in clean epochs": contest.few
        and chosen.head_images
        and round(contest.few.head_in_epochs(chosen.head_images), 2),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
