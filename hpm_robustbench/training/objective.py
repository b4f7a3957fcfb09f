"""What a step minimises, and what its attack maximises, for HPM and for each control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hpm_robustbench.hpm.classifier import Embedding
from hpm_robustbench.shapes import Labels, Logits
from hpm_robustbench.training.learner import Learner
from hpm_robustbench.training.parts import Embed
from hpm_robustbench.training.recipe import Control, Tuning


def _nobody_waits() -> None:
    pass


@dataclass(frozen=True)
class Objective:
    """The losses of one batch: its labels, and under the control ``shuffled`` which image lends whom its membership.

    ``lender`` is a permutation of the batch, or None. ``tick`` is called with every answer.
    """

    learner: Learner
    tuning: Tuning
    labels: Labels
    lender: Labels | None = None
    tick: Callable[[], None] = _nobody_waits

    @property
    def two_passes(self) -> bool:
        """Whether clean images are embedded beside the attacked ones."""
        return self.tuning.recipe.loss == "trades" or (
            self.tuning.recipe.prototype_feed == "clean" and self.tuning.recipe.attack_steps > 0
        )

    def answer(self, embedding: Embedding, view: str = "ste") -> Logits:
        """The logits of what is trained, or of the view of it that the attack sees."""
        self.tick()
        if view == "fc" or self.tuning.control is Control.FC:
            return embedding.logits
        if self.lender is not None:
            embedding = Embedding(embedding.features, embedding.logits[self.lender])
        soft = replace(self.learner.classifier.config, assignment="soft") if view == "soft" else None
        return self.learner.answer(embedding, soft)

    def attack_loss(self, attacked: Embedding, clean: Logits | None) -> Tensor:
        """What the inner attack raises: the cross-entropy, or the divergence from the answer to the clean images."""
        answer = self.answer(attacked, self.tuning.recipe.attack_view)
        if clean is None:
            return F.cross_entropy(answer, self.labels, reduction="sum")
        return _divergence(clean, answer) * len(answer)

    def loss(self, embedding: Embedding) -> Tensor:
        """What a step lowers, from an embedding of the attacked images, or of the clean and then the attacked ones."""
        recipe = self.tuning.recipe
        clean, attacked = self.halves(embedding)
        total = self._one(self.answer(clean), self.answer(attacked))
        if self.tuning.control is not Control.FC and recipe.fc_weight:
            total = total + recipe.fc_weight * self._one(clean.logits, attacked.logits)
        return total

    def halves(self, embedding: Embedding) -> tuple[Embedding, Embedding]:
        """The embeddings of the clean and of the attacked images; one and the same if only one was computed."""
        if not self.two_passes:
            return embedding, embedding
        clean, attacked = zip(*(tensor.chunk(2) for tensor in embedding), strict=True)
        return Embedding(*clean), Embedding(*attacked)

    def _one(self, clean: Logits, attacked: Logits) -> Tensor:
        recipe = self.tuning.recipe
        if recipe.loss == "ce":
            return F.cross_entropy(attacked, self.labels, label_smoothing=recipe.label_smoothing)
        right = F.cross_entropy(clean, self.labels, label_smoothing=recipe.label_smoothing)
        return right + recipe.trades_weight * _divergence(clean, attacked)


def _divergence(clean: Logits, attacked: Logits) -> Tensor:
    """KL(clean || attacked) of the softmax answers, mean over the batch (TRADES, as its authors compute it)."""
    return F.kl_div(F.log_softmax(attacked, dim=1), F.log_softmax(clean, dim=1), reduction="batchmean", log_target=True)


def clean_answer(objective: Objective, x: Tensor, at_once: int, embed: Embed) -> Logits | None:
    """What the attack of TRADES moves away from, without gradients; None for the cross-entropy."""
    if objective.tuning.recipe.loss != "trades":
        return None
    with torch.no_grad():
        parts = [embed(part) for part in torch.split(x, at_once)]
        whole = Embedding(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        return objective.answer(whole, objective.tuning.recipe.attack_view)
