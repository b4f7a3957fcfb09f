"""Cards in the board's order: a track per dataset and threat model, the best known robust accuracy first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from hpm_robustbench.ledger.card_bench import HpmBench, Verdict
from hpm_robustbench.ledger.card_control import Control, written
from hpm_robustbench.ledger.card_evaluation import Evaluation, Metric
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.statistics import holm
from hpm_robustbench.threat import Batching


@dataclass(frozen=True)
class Row:
    """A card and its rank on its track, 1 being the most robust.

    ``p_holm`` is the SOLO verdict's p-value, adjusted for all models on the board: who tries HPM on twenty models and
    reports the best has to count the twenty.
    """

    rank: int
    card: ModelCard
    p_holm: float | None = None

    @property
    def bench(self) -> HpmBench:
        """What the card says beyond RobustBench's keys."""
        assert isinstance(self.card.hpm_bench, HpmBench)
        return self.card.hpm_bench

    @property
    def base(self) -> Evaluation | None:
        """The model without HPM."""
        return self.bench.evaluation("base", Batching.SOLO)

    @property
    def solo(self) -> Evaluation:
        """The headline: HPM answering one image at a time."""
        return self.bench.headline

    @property
    def joint(self) -> Evaluation | None:
        """HPM answering whole batches."""
        return self.bench.evaluation("hpm", Batching.JOINT)

    @property
    def verdict(self) -> Verdict | None:
        """Whether HPM SOLO helps."""
        return self.bench.verdict(Batching.SOLO)

    @property
    def p_value(self) -> float | None:
        """Of the comparison that the verdict rests on."""
        return written(self.bench.decisive(self.verdict).p_value) if self.verdict else None

    @property
    def fc(self) -> Control | None:
        """C1 beside HPM SOLO, after fine-tuning."""
        return self.bench.fc(Batching.SOLO)

    @property
    def page(self) -> str:
        """Address of the model's page, relative to the index."""
        return f"{self.card.dataset}/{self.solo.threat.norm.value}/{self.bench.model_id}.html"

    def flat(self) -> dict[str, Any]:
        """One line of the table for machines: RobustBench's columns, then HPM's."""
        base, joint, verdict = self.base, self.joint, self.verdict
        return {
            "rank": self.rank,
            "model": self.bench.model_id,
            "dataset": self.card.dataset,
            "threat_model": self.solo.threat.norm.value,
            "eps": self.solo.threat.eps,
            "method": self.card.name,
            **_columns("standard_accuracy", self.solo.clean),
            **_columns("autoattack_accuracy", self.solo.autoattack),
            **_columns("best_known_accuracy", self.solo.robust),
            "unreliable": self.card.unreliable,
            "additional_data": self.card.additional_data,
            "architecture": self.card.architecture,
            "venue": self.card.venue,
            "authors": self.card.authors,
            "link": self.card.link,
            "verdict": verdict.verdict if verdict else None,
            "p_value": self.p_value,
            "p_holm": self.p_holm,
            **_columns("base_clean", base.clean if base else None),
            **_columns("base_autoattack", base.autoattack if base else None),
            **_columns("c1_autoattack", self.fc.autoattack if self.fc else None),
            "control": self.bench.control,
            **_columns("hpm_joint_msa", joint.robust if joint else None),
            "joint_batch_size": joint.batch_size if joint else None,
            "joint_batch_per_class": joint.batch_per_class if joint else None,
            "joint_composition": joint.composition.value if joint else None,
            "n": self.solo.n,
            "license": self.bench.license,
            "page": self.page,
        }


@dataclass(frozen=True)
class Track:
    """The rows that compete: one dataset, one norm, one budget."""

    dataset: str
    norm: str
    eps: str
    rows: tuple[Row, ...]

    @property
    def anchor(self) -> str:
        """Name of the track's place on the index page."""
        return f"{self.dataset}-{self.norm}-{self.eps.replace('/', '-')}"


def tracks(cards: Iterable[ModelCard]) -> list[Track]:
    """Group cards by track and rank them; ties go to standard accuracy, then to the model's name."""
    ordered = sorted(cards, key=lambda card: (_track(card), _standing(card)))
    judged = [(row.page, p) for row in (Row(0, card) for card in ordered) if (p := row.p_value) is not None]
    adjusted = dict(zip([page for page, _ in judged], holm([p for _, p in judged]), strict=True))
    return [_ranked(list(group), adjusted) for _, group in groupby(ordered, key=_track)]


def _ranked(cards: list[ModelCard], adjusted: Mapping[str, float]) -> Track:
    rows = tuple(Row(rank, card, adjusted.get(Row(0, card).page)) for rank, card in enumerate(cards, start=1))
    threat = rows[0].solo.threat
    return Track(cards[0].dataset, threat.norm.value, threat.eps, rows)


def _track(card: ModelCard) -> tuple[str, str, Fraction]:
    threat = Row(0, card).solo.threat
    return card.dataset, threat.norm.value, Fraction(threat.eps_exact)


def _standing(card: ModelCard) -> tuple[Fraction, Fraction, str]:
    row = Row(0, card)
    robust, clean = row.solo.robust, row.solo.clean
    return -Fraction(robust.count, robust.n), -Fraction(clean.count, clean.n), row.bench.model_id


def _columns(name: str, metric: Metric | None) -> dict[str, float | None]:
    if metric is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
