"""Cards of corruption tracks in the board's order: a track per dataset and images, the highest mean accuracy first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from hpm_robustbench.ledger.card_corruptions import CorruptionBench, CorruptionEvaluation
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.image_set import ImageSet
from hpm_robustbench.ledger.ranks import ranked
from hpm_robustbench.threat import Batching, Corruptions


@dataclass(frozen=True)
class CorruptionRow:
    """A card and its rank on its track, 1 being the most robust; a control has none."""

    rank: int | None
    card: ModelCard

    @property
    def bench(self) -> CorruptionBench:
        """What the card says beyond RobustBench's keys."""
        assert isinstance(self.card.hpm_bench, CorruptionBench)
        return self.card.hpm_bench

    @property
    def base(self) -> CorruptionEvaluation | None:
        """The model without HPM; the card of C1 tells of none, but of C1 in its place."""
        return None if self.bench.control == "fc" else self.bench.evaluation("base", Batching.SOLO)

    @property
    def solo(self) -> CorruptionEvaluation:
        """The headline: HPM answering one image at a time."""
        return self.bench.headline

    @property
    def joint(self) -> CorruptionEvaluation | None:
        """HPM answering whole batches."""
        return self.bench.evaluation("hpm", Batching.JOINT)

    @property
    def page(self) -> str:
        """Address of the model's page, relative to the index."""
        return f"{self.card.dataset}/{self.bench.threat_name}/{self.bench.model_id}.html"

    def flat(self) -> dict[str, Any]:
        """One line of the table for machines: RobustBench's columns, then HPM's, then every cell of HPM SOLO."""
        base, joint = self.base, self.joint
        return {
            "rank": self.rank,
            "model": self.bench.model_id,
            "dataset": self.card.dataset,
            "threat_model": self.bench.threat_name,
            "method": self.card.name,
            "standard_accuracy": self.solo.clean.value,
            "robust_accuracy": self.solo.corruptions_acc,
            "additional_data": self.card.additional_data,
            "architecture": self.card.architecture,
            "venue": self.card.venue,
            "authors": self.card.authors,
            "link": self.card.link,
            "base_clean": base.clean.value if base else None,
            "base_corruptions": base.corruptions_acc if base else None,
            "hpm_joint_corruptions": joint.corruptions_acc if joint else None,
            "joint_batch_size": joint.largest_batch if joint else None,
            "joint_batch_per_class": joint.batch_per_class if joint else None,
            "joint_composition": joint.composition.value if joint else None,
            "n": self.solo.n,
            "fingerprint": self.solo.fingerprint,
            "license": self.bench.license,
            "page": self.page,
            **{
                f"{kind}_{severity}": round(self.solo.percent(kind, severity), 2)
                for kind in Corruptions.kinds
                for severity in Corruptions.severities
            },
        }


@dataclass(frozen=True)
class CorruptionTrack:
    """The rows that compete: one dataset, the same images, named where there are cards of other images, too."""

    dataset: str
    rows: tuple[CorruptionRow, ...]
    images: ImageSet | None = None

    @property
    def name(self) -> str:
        """The track in one line."""
        return f"{self.dataset} {Corruptions.name}{f', {self.images}' if self.images else ''}"

    @property
    def anchor(self) -> str:
        """Name of the track's place on the index page."""
        images = f"-{self.images.n}-{self.images.short}" if self.images else ""
        return f"{self.dataset}-{Corruptions.name}{images}"


def corruption_tracks(cards: Iterable[ModelCard]) -> list[CorruptionTrack]:
    """Group cards by dataset and images and rank the models; ties go to standard accuracy, then to the model's name."""
    ordered = sorted(cards, key=lambda card: (card.dataset, _images(card).order, _standing(card)))
    groups = [(key, list(group)) for key, group in groupby(ordered, key=lambda card: (card.dataset, _images(card)))]
    sets = Counter(dataset for (dataset, _), _ in groups)
    return [
        CorruptionTrack(
            dataset,
            tuple(CorruptionRow(rank, card) for rank, card in ranked(group)),
            images if sets[dataset] > 1 else None,
        )
        for (dataset, images), group in groups
    ]


def _images(card: ModelCard) -> ImageSet:
    return ImageSet.of(CorruptionRow(0, card).solo)


def _standing(card: ModelCard) -> tuple[Fraction, Fraction, str]:
    row = CorruptionRow(0, card)
    right = sum(count for counts in row.solo.right.values() for count in counts)
    return -Fraction(right, row.solo.n), -Fraction(row.solo.clean.count, row.solo.n), row.bench.model_id
