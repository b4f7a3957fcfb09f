"""The defence as a module: a backbone, its FC head, and prototypes."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.hpm.backbone import Split, features_of
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import (
    Reference,
    distances,
    hpm_distances,
    memberships,
    squared_distances,
)
from hpm_robustbench.shapes import ClassPrototypes, Features, Images, Logits
from hpm_robustbench.threat import Batching

_REFERENCE_AT_ONCE = 128
"""Reference images that go through the backbone together."""


class Embedding(NamedTuple):
    """One pass through the backbone: features as HPM compares them [N, D] and FC logits [N, K], in full precision."""

    features: Tensor
    logits: Tensor


class HPMClassifier(nn.Module):
    """Images [N, C, H, W] in [0, 1] to logits [N, K] by distance to mixed prototypes.

    ``batching`` says which images the answer for one image may look at; see ``with_batching``. The FC head makes the
    memberships of the batch prototypes. ``tau`` and ``beta`` are parameters so that a recipe may learn them.
    """

    def __init__(self, parts: Split, prototypes: ClassPrototypes, config: HPMConfig, *, tau: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.fc = parts
        self.config = config
        self.batching = Batching.SOLO
        self.prototypes: Tensor
        self.carried: Tensor
        self.reference_features: Tensor
        self.reference_memberships: Tensor
        for name in ("prototypes", "carried"):
            self.register_buffer(name, prototypes.new_zeros(self.fc.out_features, self.fc.in_features))
        self.set_prototypes(prototypes)
        self.tau = nn.Parameter(torch.tensor(float(tau)))
        self.beta = nn.Parameter(torch.full((len(prototypes),), float(config.beta)))
        self._frozen = False

    def set_prototypes(self, prototypes: ClassPrototypes) -> None:
        """Put dataset prototypes in place; those carried for absent classes start out equal.

        Raises:
            InvalidInput: they do not fit the head.
        """
        if prototypes.shape != self.prototypes.shape:
            raise InvalidInput(
                wanted=f"prototypes of shape {tuple(self.prototypes.shape)}, as the head has classes and features",
                got=str(tuple(prototypes.shape)),
                next_step="compute them from this model's own features",
            )
        prototypes = prototypes.detach()
        self.prototypes.copy_(F.normalize(prototypes, dim=1) if self.config.normalize else prototypes)
        self.carried.copy_(self.prototypes)

    def embed(self, x: Images) -> Embedding:
        """Run the backbone once; surrogates that share it start from here."""
        raw = self.backbone(x)
        features, logits = _full_precision(features_of(self.fc, raw)), _full_precision(self.fc(raw))
        return Embedding(F.normalize(features, dim=1) if self.config.normalize else features, logits)

    def distances(
        self, embedding: Embedding, config: HPMConfig | None = None, mates: Reference | None = None
    ) -> Logits:
        """Distances to the mixed prototypes.

        Args:
            embedding: of the images.
            config: replaces the own one, for a surrogate of this classifier.
            mates: what each image is answered beside, whatever the batching, again for a surrogate.
        """
        config = config or self.config
        beta = self.beta if config.beta == self.config.beta else torch.full_like(self.beta, config.beta)
        with torch.autocast(embedding.features.device.type, enabled=False):
            return hpm_distances(
                embedding.features,
                embedding.logits,
                self.prototypes,
                beta,
                config,
                self.batching if mates is None else Batching.REFERENCE,
                reference=self.reference if mates is None else mates,
                carried=self.carried,
            )

    @property
    def reference(self) -> Reference | None:
        """The fixed clean set that every image joins, under REFERENCE."""
        if self.batching is not Batching.REFERENCE:
            return None
        return Reference(self.reference_features, self.reference_memberships)

    def draw_mates(self, n: int, generator: torch.Generator) -> Reference:
        """``n`` of the reference images, at random and with replacement, whatever the batching is now.

        Raises:
            InvalidInput: the classifier never got any.
        """
        if "reference_features" not in self._buffers:
            raise InvalidInput(
                wanted="reference images, from which mates are drawn",
                got="none",
                next_step="pass them to with_batching(Batching.REFERENCE, images) before any other batching",
            )
        rows = torch.randint(len(self.reference_features), (n,), generator=generator).to(self.prototypes.device)
        return Reference(self.reference_features[rows], self.reference_memberships[rows])

    def static_distances(self, features: Features) -> Logits:
        """Distances to the dataset prototypes alone (beta = 0)."""
        return self.distances_to(features, self.prototypes)

    def distances_to(self, features: Features, prototypes: ClassPrototypes) -> Logits:
        """Distances to prototypes that are given, in the configured measure."""
        with torch.autocast(features.device.type, enabled=False):
            return distances(squared_distances(features, prototypes), features.shape[1], self.config)

    def forward(self, x: Images) -> Logits:
        """Logits -distance / tau."""
        return -self.distances(self.embed(x)) / self.tau

    def with_batching(self, batching: Batching, reference: Images | None = None) -> HPMClassifier:
        """The same weights, answering under another batching.

        Args:
            batching: what the answer for one image may look at.
            reference: the fixed clean images of REFERENCE; a copy under another batching still holds them.

        Raises:
            InvalidInput: REFERENCE without images.
        """
        if (batching is Batching.REFERENCE) != (reference is not None):
            raise InvalidInput(
                wanted="reference images for REFERENCE, and for it alone",
                got=f"{batching.value} with {'some' if reference is not None else 'none'}",
                next_step="pass the images with Batching.REFERENCE",
            )
        other = copy.copy(self)
        other.batching = batching
        other._buffers = dict(self._buffers)
        if reference is not None:
            with torch.no_grad():
                chunks = torch.split(reference.to(self.prototypes.device), _REFERENCE_AT_ONCE)
                parts = [self.embed(chunk) for chunk in chunks]
            features, logits = (torch.cat(column) for column in zip(*parts, strict=True))
            other.register_buffer("reference_features", features)
            other.register_buffer("reference_memberships", memberships(logits, self.config).detach())
        return other

    def freeze(self) -> HPMClassifier:
        """Eval mode in every submodule, no parameter gradients, and no way back to training mode."""
        self.eval().requires_grad_(False)
        self._frozen = True
        return self

    def train(self, mode: bool = True) -> HPMClassifier:
        """Switch mode as any module does.

        Raises:
            InvalidInput: asked to train after ``freeze``.
        """
        if mode and self._frozen:
            raise InvalidInput(
                wanted="a frozen classifier to stay in eval mode",
                got="train(True)",
                next_step="load a fresh classifier to train it",
            )
        super().train(mode)
        return self


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
