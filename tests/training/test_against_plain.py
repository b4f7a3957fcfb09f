"""What a step does under each knob, against the same steps written down once more, by hand and without the loop.

Both run in float64, so that nothing but the mathematics can differ. Both are given the same batches and the same random
starts, which test_loop.py and test_augment.py look at. HPM itself is not written again here: it has its own reference
in tests/hpm.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hpm_robustbench.attacks.ball import Ball
from hpm_robustbench.hpm.classifier import Embedding
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.batches import Batch
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.learner import trainable
from hpm_robustbench.training.loop import Lesson, Loop
from hpm_robustbench.training.recipe import Control, Tuning

EPS = 0.1
LINF = ThreatModel.parse("Linf", str(EPS))
TAU = 3.0
"""The fitted one is so small that the softmax of these few images is saturated."""


class Plain:
    """A training of a few steps, as a person would write it down who knows the recipe."""

    def __init__(self, wrapped: Any, tuning: Tuning, steps: int) -> None:
        self.recipe, self.control, self.steps = tuning.recipe, tuning.control, steps
        changed = {Control.STATIC: {"beta": 0.0}, Control.LEAVE_ONE_OUT: {"include_self": False}}
        config = replace(wrapped.classifier.config, **changed.get(self.control, {}))
        self.net, self.seed = trainable(wrapped.classifier, config).double(), tuning.seed
        self.net.requires_grad_(False)
        self.net.batching = Batching(self.recipe.batching)
        self.log_tau = torch.tensor(math.log(TAU), dtype=torch.float64)
        self.weights = [p.requires_grad_() for part in (self.net.backbone, self.net.fc) for p in part.parameters()]
        if self.control is not Control.FC:
            self.weights.append(self.log_tau.requires_grad_())
        self.memory: list[Any] = [None] * len(self.weights)
        self.averages: list[Tensor] = []

    def answer(self, seen: Embedding, lender: Tensor | None, view: str = "ste") -> Tensor:
        if view == "fc" or self.control is Control.FC:
            return seen.logits
        logits = seen.logits if lender is None else seen.logits[lender]
        config = replace(self.net.config, assignment="soft") if view == "soft" else self.net.config
        return -self.net.distances(Embedding(seen.features, logits), config) / self.log_tau.exp()

    def step(self, number: int, batch: Batch, start: Tensor) -> None:
        generator = drawn(self.seed, "shuffle", number)
        other = torch.randperm(len(batch.x), generator=generator) if self.control is Control.SHUFFLED else None
        batch = batch._replace(lender=other)
        moved = self.attack(batch, start)
        clean_seen, seen = self.net.embed(batch.x), self.net.embed(moved)
        loss = self.one_loss(*(self.answer(e, batch.lender) for e in (clean_seen, seen)), batch.labels)
        if self.control is not Control.FC:
            loss = loss + self.recipe.fc_weight * self.one_loss(clean_seen.logits, seen.logits, batch.labels)
        gradients = list(torch.autograd.grad(loss, self.weights))
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        if length > self.recipe.max_gradient_norm:
            gradients = [g * self.recipe.max_gradient_norm / length for g in gradients]
        with torch.no_grad():
            for index, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
                self.update(index, weight, gradient, number)
            fed = clean_seen if self.recipe.prototype_feed == "clean" else seen
            self.follow(fed, batch.labels if self.recipe.prototype_labels == "true" else fed.logits.argmax(1))
            self.average()

    def attack(self, batch: Batch, point: Tensor) -> Tensor:
        if not self.recipe.attack_steps:
            return batch.x
        view = self.recipe.attack_view
        with torch.no_grad():
            target = self.answer(self.net.embed(batch.x), batch.lender, view).softmax(1)
        for _ in range(self.recipe.attack_steps):
            leaf = point.detach().requires_grad_()
            answer = self.answer(self.net.embed(leaf), batch.lender, view)
            if self.recipe.loss == "trades":
                raised = divergence(target, answer.softmax(1))
            else:
                raised = -answer.log_softmax(1)[torch.arange(len(answer)), batch.labels].mean()
            (uphill,) = torch.autograd.grad(raised, leaf)
            point = leaf.detach() + self.recipe.attack_step * EPS * uphill.sign()
            point = torch.max(torch.min(point, batch.x + EPS), batch.x - EPS).clamp(0, 1)
        return point

    def one_loss(self, clean: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
        if self.recipe.loss == "ce":
            return self.cross_entropy(attacked, labels)
        beside = divergence(clean.softmax(1), attacked.softmax(1))
        return self.cross_entropy(clean, labels) + self.recipe.trades_weight * beside

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = torch.full_like(logits, self.recipe.label_smoothing / logits.shape[1])
        target[torch.arange(len(logits)), labels] += 1 - self.recipe.label_smoothing
        return -(target * logits.log_softmax(1)).sum(1).mean()

    def rate(self, number: int) -> float:
        rising = self.recipe.warm_up * self.steps
        done = number + 1
        if done < rising:
            return self.recipe.learning_rate * done / rising
        if self.recipe.schedule == "constant":
            return self.recipe.learning_rate
        return self.recipe.learning_rate * math.cos(math.pi / 2 * (done - rising) / (self.steps + 1 - rising)) ** 2

    def update(self, index: int, weight: Tensor, gradient: Tensor, number: int) -> None:
        rate, momentum = self.rate(number), self.recipe.momentum
        decay = self.recipe.weight_decay if weight.dim() > 1 else 0.0
        if self.recipe.optimiser == "adamw":
            first, second = self.memory[index] or (torch.zeros_like(weight), torch.zeros_like(weight))
            first = momentum * first + (1 - momentum) * gradient
            second = 0.999 * second + 0.001 * gradient**2
            self.memory[index] = first, second
            unbiased = (second / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8
            weight.mul_(1 - rate * decay).sub_(rate * first / (1 - momentum ** (number + 1)) / unbiased)
            return
        gradient = gradient + decay * weight
        velocity = gradient if self.memory[index] is None else momentum * self.memory[index] + gradient
        self.memory[index] = velocity
        weight.sub_(rate * (gradient + momentum * velocity))  # Nesterov

    def follow(self, seen: Embedding, labels: Tensor) -> None:
        keep, prototypes = self.recipe.prototype_momentum, self.net.prototypes.clone()
        for label in labels.unique():
            mean = seen.features[labels == label].mean(0)
            prototypes[label] = keep * prototypes[label] + (1 - keep) * mean
        self.net.set_prototypes(prototypes)

    def average(self) -> None:
        over = self.recipe.average_share * self.steps
        if over <= 1 or not self.averages:
            self.averages = [weight.detach().clone() for weight in self.weights]
            return
        for average, weight in zip(self.averages, self.weights, strict=True):
            average.add_((weight - average) / over)

    def deployed(self) -> dict[str, Tensor]:
        for weight, average in zip(self.weights, self.averages, strict=True):
            weight.copy_(average)
        self.net.tau.fill_(TAU if self.control is Control.FC else self.log_tau.exp())
        return {name: tensor.clone() for name, tensor in self.net.state_dict().items()}


def divergence(from_: Tensor, to: Tensor) -> Tensor:
    return (from_ * (from_ / to).log()).sum(1).mean()


def by_the_loop(wrapped, digits, tuning: Tuning) -> tuple[Loop, dict[str, Tensor]]:
    loop = Loop(Lesson(wrapped.classifier, digits, LINF, tuning))
    loop.batches._images = loop.batches._images.double()
    with torch.no_grad():
        for module in filter(None, (loop.learner, loop._average)):
            module.double()
        learners = [loop.learner] if loop._average is None else [loop.learner, loop._average.module]
        for learner in learners:
            learner.log_tau.fill_(math.log(TAU))
            learner.classifier.tau.fill_(TAU)
    for _ in range(loop.steps):
        loop.step()
    return loop, loop.deployed().state_dict()


def by_hand(wrapped, loop: Loop) -> dict[str, Tensor]:
    tuning = loop.lesson.tuning
    plain = Plain(wrapped, tuning, loop.steps)
    for number in range(loop.steps):
        batch = loop.batches[number]
        start = Ball(batch.x, LINF).random_point(drawn(tuning.seed, "start", number))
        plain.step(number, batch, start)
    with torch.no_grad():
        return plain.deployed()


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for part, tensor in wanted.items():
        torch.testing.assert_close(
            found[part], tensor, rtol=1e-6, atol=1e-8, check_dtype=False, msg=partial("{}: {}".format, part)
        )


KNOBS: dict[str, dict[str, object]] = {
    "as it is": {},
    "trades": {"loss": "trades"},
    "trades_weight": {"loss": "trades", "trades_weight": 1.0},
    "trades by the FC head": {"loss": "trades", "attack_view": "fc"},
    "label_smoothing": {"label_smoothing": 0.2},
    "fc_weight": {"fc_weight": 0.25},
    "batching": {"batching": "solo"},
    "attack_view soft": {"attack_view": "soft"},
    "attack_view fc": {"attack_view": "fc"},
    "attack_steps": {"attack_steps": 0},
    "attack_step": {"attack_step": 0.6},
    "adamw": {"optimiser": "adamw", "learning_rate": 0.003},
    "adamw with decay": {"optimiser": "adamw", "learning_rate": 0.003, "weight_decay": 0.5},
    "learning_rate": {"learning_rate": 0.02},
    "schedule": {"schedule": "constant"},
    "warm_up": {"warm_up": 0.6},
    "momentum": {"momentum": 0.0},
    "weight_decay": {"weight_decay": 0.5},
    "max_gradient_norm": {"max_gradient_norm": 0.05},
    "average_share": {"average_share": 0.0},
    "prototype_momentum": {"prototype_momentum": 0.3},
    "prototype_labels": {"prototype_labels": "fc"},
    "prototype_feed": {"prototype_feed": "clean"},
}


@pytest.mark.parametrize("name", KNOBS)
def test_the_loop_learns_what_the_recipe_says(name: str, wrapped, digits, quick) -> None:
    recipe = quick.with_knobs({"held_out": 0.0, **KNOBS[name]})
    loop, found = by_the_loop(wrapped, digits, Tuning(recipe))
    assert_equal(found, by_hand(wrapped, loop))
    if name != "as it is":  # so the equality is not one of trainings that ignore the knob
        _, otherwise = by_the_loop(wrapped, digits, Tuning(quick.with_knobs({"held_out": 0.0})))
        assert any(not torch.allclose(found[part], otherwise[part], rtol=1e-4, atol=1e-6) for part in found)


@pytest.mark.parametrize("control", list(Control))
@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_so_does_each_control(control: Control, loss: str, wrapped, digits, quick) -> None:
    recipe = quick.with_knobs({"held_out": 0.0, "loss": loss})
    loop, found = by_the_loop(wrapped, digits, Tuning(recipe, control))
    _, otherwise = by_the_loop(wrapped, digits, Tuning(recipe))
    assert not torch.allclose(found["fc.weight"], otherwise["fc.weight"], rtol=1e-4, atol=1e-6)
    assert_equal(found, by_hand(wrapped, loop))
