"""A classifier that can still learn: a copy of a frozen one, with the parts that a recipe names set free."""

from __future__ import annotations

import copy
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import Embedding, HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import ema_update
from hpm_robustbench.shapes import ClassPrototypes, Images, Labels, Logits
from hpm_robustbench.training.recipe import Tuning


def learned_names(classifier: HPMClassifier, learned: Collection[str], fixed: Collection[str] = ()) -> set[str]:
    """Parameters of a classifier that change where these parts learn; tau does not, for its logarithm does.

    ``fixed`` may name one of several names of a parameter, as of a layer that is in a list as well.
    """
    named = dict(classifier.named_parameters(remove_duplicate=False))
    still = {id(named[name]) for name in (*fixed, "tau")}
    return {name for name, p in named.items() if name.partition(".")[0] in learned and id(p) not in still}


def check_learns(classifier: HPMClassifier, tuning: Tuning, fixed: Collection[str] = ()) -> None:
    """See that the steps of a tuning, where there are any, have something to change; a control may have less than HPM.

    Raises:
        InvalidInput: nothing learns.
    """
    if not tuning.recipe.epochs or "tau" in tuning.learned or learned_names(classifier, tuning.learned, fixed):
        return
    asked = f"learned={','.join(tuning.recipe.learned)}"
    if tuning.recipe.learned and not tuning.learned:
        raise InvalidInput(
            wanted=f"parts that {tuning.name} can train",
            got=f"{asked}, of which nothing has a part in this control",
            next_step="let fc or backbone learn as well, with --tune learned=...; or ask for HPM and other controls "
            "one by one, with --control instead of --controls",
        )
    raise InvalidInput(
        wanted=f"parts that {tuning.name} can train",
        got=f"{asked}, of which nothing can change in this model",
        next_step="choose another recipe; a model of several networks has no FC layer of its own, and what the authors "
        "of a model fixed stays so",
    )


class Learner(nn.Module):
    """A trainable copy of a classifier, always in eval mode: normalisation layers keep their statistics.

    tau is learned as its logarithm, so that a step changes it by a share of itself and never to zero or below.
    ``precision`` is that of the network's passes; what HPM computes from them is float32. ``fixed`` names parameters,
    ``backbone.*`` or ``fc.*``, that never learn.
    """

    def __init__(
        self,
        classifier: HPMClassifier,
        learned: Collection[str],
        precision: torch.dtype,
        fixed: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.log_tau = nn.Parameter(classifier.tau.detach().log())
        self.precision = precision
        self.free(learned, fixed)

    def free(self, learned: Collection[str], fixed: Collection[str] = ()) -> None:
        """Let exactly the named parts learn, without what is fixed in them; all else costs no gradient."""
        self.eval().requires_grad_(False)
        names = learned_names(self.classifier, learned, fixed)
        for name, parameter in self.classifier.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(name in names)
        self.log_tau.requires_grad_("tau" in learned)

    def train(self, mode: bool = True) -> Learner:
        """Stay in eval mode, whatever is asked."""
        super().train(False)
        return self

    def embed(self, x: Images) -> Embedding:
        """Features and FC logits in float32, computed in ``precision``."""
        with self.reduced(x.device):
            return self.classifier.embed(x)

    def reduced(self, device: torch.device) -> AbstractContextManager[None]:
        """Inside, the network computes in ``precision``; outside, nobody does."""
        if self.precision is torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.precision)

    def answer(self, embedding: Embedding, config: HPMConfig | None = None) -> Logits:
        """HPM's logits; ``config`` replaces the own definition for a surrogate."""
        return -self.classifier.distances(embedding, config) / self.log_tau.exp()

    def forward(self, x: Images) -> Logits:
        """HPM's logits of images."""
        return self.answer(self.embed(x))

    @torch.no_grad()
    def follow(self, seen: Embedding, labels: Labels, momentum: float) -> None:
        """Move the dataset prototypes towards the features of a batch (method: EMA), and carry its own ones on.

        Args:
            seen: the batch.
            labels: the class whose prototype follows each image.
            momentum: share of itself that a prototype keeps.
        """
        own = self.classifier
        carried = self._carried_on(seen) if own.config.absent == "carry" else None
        if momentum < 1:
            own.set_prototypes(ema_update(own.prototypes, seen.features, labels, momentum))
        if carried is not None:
            own.carried.copy_(carried)

    def _carried_on(self, seen: Embedding) -> ClassPrototypes:
        """For classes that the FC head finds in a batch, the mean of their features; for others what was carried."""
        return ema_update(self.classifier.carried, seen.features, seen.logits.argmax(dim=1), 0.0)

    @torch.no_grad()
    def project(self) -> None:
        """Bring beta back into [0, 1] after a step."""
        self.classifier.beta.clamp_(0, 1)


def trainable(frozen: HPMClassifier, config: HPMConfig, backbone: nn.Module | None = None) -> HPMClassifier:
    """A classifier that shares nothing with ``frozen``, under ``config``, perhaps on another backbone."""
    parts = Split(copy.deepcopy(backbone or frozen.backbone), copy.deepcopy(frozen.fc))
    classifier = HPMClassifier(parts, frozen.prototypes, config, tau=frozen.tau.item())
    classifier.carried.copy_(frozen.carried)
    return classifier.to(frozen.prototypes.device)


def features_as_images(backbone: nn.Module, images: Tensor, rows: Tensor, at_once: int, device: torch.device) -> Tensor:
    """What a fixed backbone returns for some rows, as images [N, R, 1, 1] of one pixel, which ``nn.Flatten`` undoes."""
    with torch.no_grad():
        parts = [backbone(images[some].to(device)) for some in torch.split(rows, at_once)]
    return torch.cat(parts)[:, :, None, None]
