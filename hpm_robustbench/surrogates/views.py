"""The surrogates: differentiable views of one classifier, each declaring whether its rows are independent.

A view returns logits to be attacked; whether the attack worked is asked of ``target_logits``, the deployed defence.
Views count the images that pass through them, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hpm_robustbench.errors import InvalidInput, UnknownName
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.shapes import ClassPrototypes, Features, Images, Logits
from hpm_robustbench.surrogates.region import Region, is_exact, region_of, region_of_head, shared_prototypes
from hpm_robustbench.threat import Batching

_DRAWS = 8
"""Batches of mates over which ``drawn`` takes the mean."""


@dataclass
class Cost:
    """Images that went through a view."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Subject:
    """What stands trial: the wrapped classifier, the original base model, and which of the two is the target."""

    classifier: HPMClassifier
    base: nn.Module
    target: str = "hpm"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.classifier.prototypes.device

    def target_logits(self, x: Images) -> Logits:
        """Logits of the deployed model, without gradients."""
        with torch.no_grad():
            logits: Tensor = self.classifier(x) if self.target == "hpm" else self.base(x)
            return logits.detach()


class View:
    """One surrogate of a subject: called with images, it returns logits."""

    def __init__(self, name: str, subject: Subject, logits: Callable[[Images], Logits], row_independent: bool) -> None:
        self.name = name
        self.row_independent = row_independent
        self.is_target = name == subject.target
        self.cost = Cost()
        self.on_call: Callable[[], None] | None = None
        self._subject = subject
        self._logits = logits

    def __call__(self, x: Images) -> Logits:
        """Logits [N, K] in a fresh tensor, so that an attack that writes into it harms nobody."""
        self._begin(x)
        return self._counted(self._logits(x).clone())

    def _begin(self, x: Images) -> None:
        if self.on_call is not None:
            self.on_call()
        self.cost.forward += len(x)

    def _counted(self, values: Tensor) -> Tensor:
        """The same values; a gradient that passes them is counted once per row."""
        if values.requires_grad:
            values.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return values

    def _count_backward(self, gradient: Tensor) -> None:
        self.cost.backward += len(gradient)

    def target_logits(self, x: Images) -> Logits:
        """Logits of the deployed model; counted as a forward pass."""
        self.cost.forward += len(x)
        return self._subject.target_logits(x)

    @property
    def region_is_exact(self) -> bool:
        """Whether ``region`` decides as the deployed model does."""
        return is_exact(self._subject.classifier.config)

    def region(self, x: Images) -> Region:
        """What decides the classifier's answer for each image, differentiable towards it; see ``region_of``."""
        self._begin(x)
        region = region_of(self._subject.classifier, x)
        return region._replace(distances=self._counted(region.distances))

    def beside(self, mates: Images) -> View:
        """The defence as it answers one image at a time beside these mates, who stay as they are: rows do not meet.

        Its passes count as this view's.
        """
        self.cost.forward += len(mates)
        batching, reference = (Batching.REFERENCE, mates) if len(mates) else (Batching.SOLO, None)
        classifier = self._subject.classifier.with_batching(batching, reference)
        view = View(self.name, replace(self._subject, classifier=classifier), classifier, row_independent=True)
        view.cost, view.on_call = self.cost, self.on_call
        return view

    def shared_prototypes(self, x: Images) -> ClassPrototypes:
        """The classifier's mixed prototypes for the batch ``x``, as constants."""
        self.cost.forward += len(x)
        return shared_prototypes(self._subject.classifier, x)

    def logits_against(self, x: Images, prototypes: Sequence[ClassPrototypes]) -> list[Logits]:
        """The classifier's logits had its mixed prototypes been these, for each of them; one pass for all."""
        self._begin(x)
        features = self._counted(self._subject.classifier.embed(x).features)
        return [_against(self._subject.classifier, features, constants) for constants in prototypes]


class HeadView(View):
    """A surrogate that answers as a plain head does: by its highest logit."""

    @property
    def region_is_exact(self) -> bool:
        """Whether the head is the deployed model."""
        return self.is_target

    def region(self, x: Images) -> Region:
        """What decides the head's own answer for each image, differentiable towards it; see ``region_of_head``."""
        return region_of_head(self(x))


def _against(classifier: HPMClassifier, features: Features, prototypes: ClassPrototypes) -> Logits:
    return -classifier.distances_to(features, prototypes) / classifier.tau


def _hpm(subject: Subject, _: Images | None) -> View:
    """The defence itself, with its own straight-through backward pass (S_ste)."""
    return View("hpm", subject, subject.classifier, subject.classifier.batching.row_independent)


def _fc(subject: Subject, _: Images | None) -> View:
    """The FC head of the wrapped classifier (S_fc)."""
    return HeadView("fc", subject, lambda x: subject.classifier.embed(x).logits, row_independent=True)


def _l2(subject: Subject, _: Images | None) -> View:
    """Distances to the dataset prototypes alone, beta = 0 (S_l2)."""
    classifier = subject.classifier

    def logits(x: Images) -> Logits:
        return _against(classifier, classifier.embed(x).features, classifier.prototypes)

    return View("l2", subject, logits, row_independent=True)


def _soft(temperature: float) -> Callable[[Subject, Images | None], View]:
    """The defence with soft memberships: continuous, with a gradient into every class (S_soft)."""

    def view(subject: Subject, _: Images | None) -> View:
        classifier = subject.classifier
        softened = replace(classifier.config, assignment="soft", temperature=temperature)
        return _variant("soft" if temperature == 1 else f"soft-{temperature}", subject, softened)

    return view


def _batch(subject: Subject, _: Images | None) -> View:
    """Soft batch prototypes alone, beta = 1 (S_bt)."""
    return _variant("batch", subject, replace(subject.classifier.config, assignment="soft", beta=1.0))


def _variant(name: str, subject: Subject, config: HPMConfig) -> View:
    classifier = subject.classifier

    def logits(x: Images) -> Logits:
        return -classifier.distances(classifier.embed(x), config) / classifier.tau

    return View(name, subject, logits, classifier.batching.row_independent)


def _frozen(subject: Subject, clean: Images | None) -> View:
    """The defence with the prototypes of the clean batch, as constants (S_frz): a plain linear classifier (P1)."""
    prototypes = shared_prototypes(subject.classifier, _given(clean, "frozen", "whose prototypes it keeps"))

    def logits(x: Images) -> Logits:
        return _against(subject.classifier, subject.classifier.embed(x).features, prototypes)

    return View("frozen", subject, logits, row_independent=True)


def _drawn(subject: Subject, clean: Images | None) -> View:
    """The defence beside as many drawn mates as the clean batch has, the mean of some draws (S_eot).

    What an attacker expects who does not know his mates, but images like them: expectation over transformation, with
    the batch as the transformation (Athalye et al. 2018).
    """
    classifier, generator = subject.classifier, torch.Generator().manual_seed(0)
    n = len(_given(clean, "drawn", "whose size it takes")) - 1
    draws = [classifier.draw_mates(n, generator) for _ in range(_DRAWS)]

    def logits(x: Images) -> Logits:
        embedding = classifier.embed(x)
        answers = [-classifier.distances(embedding, mates=mates) / classifier.tau for mates in draws]
        return torch.stack(answers).mean(dim=0)

    return View("drawn", subject, logits, row_independent=True)


def _given(clean: Images | None, view: str, what_for: str) -> Images:
    if clean is None:
        raise InvalidInput(
            wanted=f"the clean batch for the view {view}, {what_for}",
            got="no images",
            next_step=f'call make_view("{view}", subject, images)',
        )
    return clean


def _mixed(subject: Subject, _: Images | None) -> View:
    """Mean of the standardised logits of FC, static and soft HPM, from one pass (S_mix)."""
    classifier = subject.classifier
    softened = replace(classifier.config, assignment="soft")

    def logits(x: Images) -> Logits:
        embedding = classifier.embed(x)
        static, soft = classifier.static_distances(embedding.features), classifier.distances(embedding, softened)
        return torch.stack([_standardised(part) for part in (embedding.logits, -static, -soft)]).mean(dim=0)

    return View("mixed", subject, logits, classifier.batching.row_independent)


def _standardised(logits: Logits) -> Logits:
    """Zero mean and unit deviation over the classes; no head then drowns another."""
    spread = logits.std(dim=1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    return (logits - logits.mean(dim=1, keepdim=True)) / spread


def _base(subject: Subject, _: Images | None) -> View:
    """The original model, before any fine-tuning (S_base)."""
    return HeadView("base", subject, subject.base, row_independent=True)


VIEWS: dict[str, Callable[[Subject, Images | None], View]] = {
    "hpm": _hpm,
    "fc": _fc,
    "l2": _l2,
    "soft": _soft(1.0),
    "soft-0.5": _soft(0.5),
    "soft-0.1": _soft(0.1),
    "batch": _batch,
    "frozen": _frozen,
    "drawn": _drawn,
    "mixed": _mixed,
    "base": _base,
}


def make_view(name: str, subject: Subject, clean: Images | None = None) -> View:
    """The view of that name.

    Args:
        name: one of ``VIEWS``.
        subject: what stands trial.
        clean: the batch before it was attacked; ``frozen`` needs it, and ``drawn`` its size.

    Raises:
        UnknownName: nobody registered it.
        InvalidInput: ``frozen`` or ``drawn`` without a clean batch, or ``drawn`` without images to draw from.
    """
    if name not in VIEWS:
        raise UnknownName("view", name, VIEWS)
    return VIEWS[name](subject, clean)
