"""Cards in the board's order: a track per dataset, threat model and images, the best known robust accuracy first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Any

from hpm_robustbench.ledger.card_bench import HpmBench, Verdict
from hpm_robustbench.ledger.card_control import Control, written
from hpm_robustbench.ledger.card_evaluation import Evaluation, Metric
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.image_set import ImageSet
from hpm_robustbench.ledger.ranks import ranked
from hpm_robustbench.ledger.same_network import base_of, fallen_anywhere, tempered
from hpm_robustbench.ledger.statistics import holm
from hpm_robustbench.ledger.step_list import OtherSteps, StepsOf, other_steps
from hpm_robustbench.threat import Batching


@dataclass(frozen=True)
class Row:
    """A card and its rank on its track, 1 being the most robust; a control has none.

    ``p_holm`` is the SOLO verdict's p-value, adjusted for all SOLO verdicts on the board that can reject: who shows
    twenty models has to count the twenty. Models that were tried without a card nobody can count. ``msa`` tells the
    steps of today, if they are known. ``fallen`` are the images that the base model has lost on any card of the board.
    """

    rank: int | None
    card: ModelCard
    p_holm: float | None = None
    msa: StepsOf | None = None
    fallen: frozenset[int] | None = None

    @property
    def bench(self) -> HpmBench:
        """What the card says beyond RobustBench's keys."""
        assert isinstance(self.card.hpm_bench, HpmBench)
        return self.card.hpm_bench

    @property
    def base(self) -> Evaluation | None:
        """The model without HPM; the card of C1 tells of none, but of C1 in its place."""
        return base_of(self.bench)

    @property
    def base_on_all_cards(self) -> Metric | None:
        """What stands on the base model when all cards of the board are counted, if that is less than on this one."""
        base = self.base
        if base is None or self.fallen is None or base.n - len(self.fallen) >= base.robust.count:
            return None
        return Metric.from_count(base.n - len(self.fallen), base.n)

    @property
    def solo(self) -> Evaluation:
        """The headline: HPM answering one image at a time."""
        return self.bench.headline

    @property
    def joint(self) -> Evaluation | None:
        """HPM answering whole batches."""
        return self.bench.evaluation("hpm", Batching.JOINT)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Those of the card, less certain where other cards of its network ask for it."""
        return [tempered(claim, self.bench, self.fallen) for claim in self.bench.verdicts]

    @property
    def verdict(self) -> Verdict | None:
        """Whether HPM SOLO helps."""
        return next((claim for claim in self.verdicts if claim.batching is Batching.SOLO), None)

    def without_hpm(self, claim: Verdict) -> Metric:
        """What stands on the base model in the comparison of a verdict."""
        hpm = self.bench.evaluation("hpm", claim.batching)
        assert hpm is not None
        return Metric.from_count(hpm.robust.count + claim.only_base - claim.only_hpm, claim.n)

    @property
    def p_value(self) -> float | None:
        """Of the comparison that the verdict rests on."""
        return written(self.bench.decisive(self.verdict).p_value) if self.verdict else None

    @property
    def can_reject(self) -> bool:
        """Whether there is a SOLO verdict, and some image that only one side of its comparisons has right."""
        # Given how many images differ, on which the exact test conditions, p is 1 where none does: that verdict is
        # never a false rejection, and so Holm keeps his promise without counting it (Tarone 1990). Where HPM differs
        # from C1 but not from the base model, or the other way round, it may still hurt, and the verdict counts.
        fc = self.bench.fc(Batching.SOLO)
        tests = [*([self.verdict.test] if self.verdict else []), *([fc.test] if self.verdict and fc else [])]
        return any(test.only_first + test.only_second for test in tests)

    @property
    def fc(self) -> Control | Evaluation | None:
        """C1 after fine-tuning: beside HPM SOLO, or as its own card tells of it."""
        own = self.bench.control == "fc"
        return self.bench.evaluation("base", Batching.SOLO) if own else self.bench.fc(Batching.SOLO)

    @property
    def page(self) -> str:
        """Address of the model's page, relative to the index."""
        return f"{self.card.dataset}/{self.solo.threat.norm.value}/{self.bench.model_id}.html"

    def other_steps(self, evaluation: Evaluation | None) -> OtherSteps | None:
        """How the attacks of one of the card's evaluations differ from those of today, if they do."""
        if evaluation is None or self.msa is None:
            return None
        hpm = [each.batching for each in self.bench.evaluations if each.target == "hpm"]
        return other_steps(evaluation, self.msa, hpm)

    @property
    def marked(self) -> bool:
        """Whether one of its numbers on the index was found by other attacks than those of today."""
        return any(self.other_steps(evaluation) for evaluation in (self.solo, self.joint))

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
            **_columns("base_best_known", base.robust if base else None),
            **_columns("base_on_all_cards", self.base_on_all_cards or (base.robust if base else None)),
            **_columns("c1_clean", self.fc.clean if self.fc else None),
            **_columns("c1_autoattack", self.fc.autoattack if self.fc else None),
            **_columns("c1_best_known", self.fc.robust if self.fc else None),
            "control": self.bench.control,
            **_columns("hpm_joint_msa", joint.robust if joint else None),
            "joint_batch_size": joint.largest_batch if joint else None,
            "joint_batch_per_class": joint.batch_per_class if joint else None,
            "joint_composition": joint.composition.value if joint else None,
            "solo_steps_of_today": self._of_today(self.solo),
            "joint_steps_of_today": self._of_today(joint),
            "n": self.solo.n,
            "fingerprint": self.solo.fingerprint,
            "license": self.bench.license,
            "page": self.page,
        }

    def _of_today(self, evaluation: Evaluation | None) -> bool | None:
        return self.other_steps(evaluation) is None if evaluation and self.msa else None


@dataclass(frozen=True)
class Track:
    """The rows that compete: one dataset, one norm, one budget, the same images.

    ``images`` are named where there are cards of other images, too.
    """

    dataset: str
    norm: str
    eps: str
    rows: tuple[Row, ...]
    images: ImageSet | None = None

    @property
    def name(self) -> str:
        """The track in one line."""
        return f"{self.dataset} {self.norm} {self.eps}{f', {self.images}' if self.images else ''}"

    @property
    def anchor(self) -> str:
        """Name of the track's place on the index page."""
        images = f"-{self.images.n}-{self.images.short}" if self.images else ""
        return f"{self.dataset}-{self.norm}-{self.eps.replace('/', '-')}{images}"


def tracks(cards: Iterable[ModelCard], msa: StepsOf | None = None) -> list[Track]:
    """Group cards by track and rank the models; ties go to standard accuracy, then to the model's name."""
    ordered = sorted(cards, key=lambda card: (_track(card), _images(card).order, _standing(card)))
    rows = _rows(ordered, msa)
    groups = [list(group) for _, group in groupby(ordered, key=lambda card: (_track(card), _images(card)))]
    sets = Counter(_track(group[0]) for group in groups)
    return [_ranked(group, rows, alone=sets[_track(group[0])] == 1) for group in groups]


def _rows(cards: Sequence[ModelCard], msa: StepsOf | None) -> dict[str, Row]:
    """By the address of its page what all cards together say of each, but for the ranks."""
    known = fallen_anywhere([Row(None, card).bench for card in cards])
    rows = [Row(None, card, msa=msa, fallen=fallen) for card, fallen in zip(cards, known, strict=True)]
    judged = [(row.page, p) for row in rows if row.can_reject and (p := row.p_value) is not None]
    adjusted = dict(zip([page for page, _ in judged], holm([p for _, p in judged]), strict=True))
    return {row.page: replace(row, p_holm=adjusted.get(row.page)) for row in rows}


def _ranked(cards: list[ModelCard], known: Mapping[str, Row], *, alone: bool) -> Track:
    rows = tuple(replace(known[Row(None, card).page], rank=rank) for rank, card in ranked(cards))
    threat = rows[0].solo.threat
    return Track(cards[0].dataset, threat.norm.value, threat.eps, rows, None if alone else _images(cards[0]))


def _track(card: ModelCard) -> tuple[str, str, Fraction]:
    threat = Row(None, card).solo.threat
    return card.dataset, threat.norm.value, Fraction(threat.eps_exact)


def _images(card: ModelCard) -> ImageSet:
    return ImageSet.of(Row(None, card).solo)


def _standing(card: ModelCard) -> tuple[Fraction, Fraction, str]:
    row = Row(None, card)
    robust, clean = row.solo.robust, row.solo.clean
    return -Fraction(robust.count, robust.n), -Fraction(clean.count, clean.n), row.bench.model_id


def _columns(name: str, metric: Metric | None) -> dict[str, float | None]:
    if metric is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
