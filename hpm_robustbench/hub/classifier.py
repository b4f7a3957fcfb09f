"""The defence with the Hub's verbs: save, publish, and load back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import HPMClassifier as Defence
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hub.contents import contents
from hpm_robustbench.hub.description import CONFIG
from hpm_robustbench.hub.found import find
from hpm_robustbench.hub.origin import Origin
from hpm_robustbench.hub.publication import Wish, gather
from hpm_robustbench.hub.remote import Destination, Sent, send
from hpm_robustbench.hub.restore import Means, answer_in, restore
from hpm_robustbench.ledger.atomic import write_all
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.shapes import ClassPrototypes
from hpm_robustbench.state_dict import read_state_dict
from hpm_robustbench.training.header import RECORD
from hpm_robustbench.zoo.licences import check_licences


class HPMClassifier(Defence):
    """An HPM classifier that knows where it comes from, so that others can have the same one."""

    def __init__(self, parts: Split, prototypes: ClassPrototypes, config: HPMConfig, *, origin: Origin) -> None:
        super().__init__(parts, prototypes, config)
        self.origin = origin

    @classmethod
    def of(cls, classifier: Defence, origin: Origin) -> HPMClassifier:
        """The same classifier with its origin, frozen; backbone and head are shared."""
        parts = Split(classifier.backbone, classifier.fc)
        own = cls(parts, torch.zeros_like(classifier.prototypes), classifier.config, origin=origin)
        state = classifier.state_dict()
        answer_in(own, classifier.batching, state, "memory")
        own.to(classifier.prototypes.device).load_state_dict(state)
        own.freeze()
        return own

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str = "main", **means: Any) -> HPMClassifier:
        """Load a published classifier: the same logits as where it was published, bit for bit on equal machines.

        Args:
            name: ``owner/name`` on the Hugging Face Hub, or a folder that ``save_pretrained`` has written.
            revision: a commit, branch or tag on the Hub.
            **means: ``model_dir``, ``network``, ``device`` and ``trust``, see ``Means``.

        Raises:
            DownloadFailed: it, or its base model, cannot be fetched.
            IntegrityError: a file is not the one that was published.
            InvalidInput: it is no classifier that ``hpm-bench push`` has published.
            UnknownName: its base model is not in the catalog, and no ``network`` was given.
        """
        found = find(name, revision)
        state = read_state_dict(found.tensors)
        restored = restore(found.description, state, Means(**means), found.where)
        return cls.of(restored.classifier, replace(restored.origin, training=found.training))

    def save_pretrained(self, folder: str | Path, *, include_backbone: bool = True, means: Means | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and what is known of its training.

        ``from_pretrained`` takes the folder.

        Args:
            folder: is made; what was saved there before is replaced.
            include_backbone: without it, only what the base model lacks is written, after a proof that the base model
                and this file give this classifier.
            means: how the base model is had for that.

        Raises:
            InvalidInput: others could not have the backbone that is left out.
            StorageProblem: the folder cannot be written.
        """
        files = contents(self, self.origin, include_backbone=include_backbone, means=means)
        write_all(Path(folder), files, last=CONFIG, optional=[RECORD])

    def push_to_hub(
        self,
        destination: str | Destination,
        card: ModelCard,
        *,
        include_backbone: bool = True,
        licences: Sequence[str] = (),
        means: Means | None = None,
    ) -> Sent:
        """Publish this classifier and its card in one commit; ``hpm-bench push`` also proves that they belong together.

        Args:
            destination: ``owner/name``, or a ``Destination`` with a branch and the like.
            card: of its trial, as ``benchmark`` returns it.
            include_backbone: as for ``save_pretrained``.
            licences: further ones under which the caller may publish.
            means: how the base model is had, without a backbone.

        Raises:
            UploadFailed: nobody is logged in, or the Hub said no.
            UsageProblem: the licence does not let anybody publish it.
            InvalidInput: the card is RobustBench's own and tells of no trial, or see ``save_pretrained``.
        """
        if card.hpm_bench is None:
            raise InvalidInput(
                wanted="the card of a trial", got="a plain RobustBench entry", next_step="give benchmark()'s card"
            )
        goal = Destination(destination) if isinstance(destination, str) else destination
        spec = self.origin.spec
        check_licences([replace(spec, paper=replace(spec.paper, license=card.hpm_bench.license))], licences)
        made = gather(self, self.origin, card, Wish(goal.repo, include_backbone=include_backbone), means)
        return send(made.files, goal, f"Publish {spec.name} with HPM")
