"""The optimiser of a recipe, and its learning rate at each step as a pure function."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hpm_robustbench.training.recipe import Recipe


def make_optimiser(module: nn.Module, recipe: Recipe) -> Optimizer:
    """Over everything in ``module`` that learns; only weights of two or more dimensions decay."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimiser == "adamw":
        return AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))
    return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """At ``step``, counted from 0, of ``steps``: a linear rise, then the schedule."""
    rising = recipe.warm_up * steps
    if step + 1 < rising:
        return recipe.learning_rate * (step + 1) / rising
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1))) / 2


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """For the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def tensors_of(optimiser: Optimizer) -> dict[str, torch.Tensor]:
    """What an optimiser remembers of each parameter, by ``<number>.<name>``."""
    return {
        f"{number}.{name}": tensor
        for number, memory in optimiser.state_dict()["state"].items()
        for name, tensor in memory.items()
        if tensor is not None
    }


def restore(optimiser: Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Give an optimiser back what ``tensors_of`` took from it."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
