"""What a model card says beyond RobustBench's keys: its ``hpm_bench`` block, which checks itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue, model_validator

from hpm_robustbench.ledger.card_block import Block, Count, Images, Name, PercentText, Sha256, Target
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.statistics import Outcome, compare, mcnemar, outcome
from hpm_robustbench.threat import Batching

SCHEMA_VERSION: Final = "1.0"
RULE = (
    "HPM helps (hurts) if more (fewer) images stand under every attack on the HPM classifier than under AutoAttack on "
    "the base model, and the exact McNemar test on the same images rejects equality at 0.05; otherwise it is undecided."
)


class Verdict(Block):
    """Whether HPM helps, by the written rule, on the same images as the base model.

    ``only_base`` images stand only under AutoAttack on the base model, ``only_hpm`` only under all attacks on HPM.
    """

    verdict: Outcome
    batching: Batching
    n: Images
    only_base: Count
    only_hpm: Count
    p_value: Annotated[float, Field(ge=0, le=1)]
    rule: str

    @classmethod
    def of(cls, base: Sequence[bool], hpm: Sequence[bool], batching: Batching) -> Verdict:
        """Compare which rows stand, in the same order."""
        test = mcnemar(base, hpm)
        return cls(
            verdict=outcome(test),
            batching=batching,
            n=len(base),
            only_base=test.only_first,
            only_hpm=test.only_second,
            p_value=float(f"{test.p_value:.6g}"),  # the same digits with every release of scipy
            rule=RULE,
        )

    @model_validator(mode="after")
    def _follows_from_the_counts(self) -> Verdict:
        if self.only_base + self.only_hpm > self.n:
            raise ValueError(f"{self.only_base} and {self.only_hpm} images are more than {self.n}")
        test = compare(self.only_base, self.only_hpm)
        if outcome(test) != self.verdict or not math.isclose(test.p_value, self.p_value, rel_tol=1e-5):
            raise ValueError("verdict or p_value does not follow from only_base and only_hpm")
        return self


class Published(Block):
    """Accuracies that others published for the base model, in percent; None where nobody did."""

    clean_acc: PercentText | None
    autoattack_acc: PercentText | None
    reported: PercentText | None
    external: PercentText | None


class Weights(Block):
    """Where the base model's checkpoint came from and what it hashed to."""

    source: str
    sha256: list[Sha256]


class Samples(Block):
    """Where what happened to each image is published: a Parquet file with one row per image, in a dataset of the Hub.

    ``revision`` is a tag that is named after the file's sha256.
    """

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", max_length=193)]
    revision: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=128)]
    file: Annotated[str, Field(pattern=r"^[\w.-]+\.parquet$", max_length=140)]
    sha256: Sha256
    rows: Images


class Bench(Block):
    """What every ``hpm_bench`` block tells: whose card it is, and what the defence was.

    ``notes`` are sentences by topic, such as ``prototypes``; ``samples`` are known of a published model.
    """

    schema_version: Literal["1.0"]
    model_id: Name
    base_model: Name
    factory: str
    license: str
    weights: Weights
    defence: dict[str, JsonValue]
    notes: dict[str, str]
    samples: Samples | None = None

    @property
    def tuning(self) -> dict[str, JsonValue]:
        """How the classifier was fine-tuned: name, values, and the options that ask for it; empty if not at all."""
        tuning = self.defence.get("tuning")
        return tuning if isinstance(tuning, dict) else {}

    @property
    def untuned_id(self) -> str:
        """The model's name before it was fine-tuned."""
        return self.model_id.removesuffix(f"_{self.tuning['name']}") if self.tuning else self.model_id

    @property
    def knobs(self) -> dict[str, JsonValue]:
        """The definition of HPM, without how it was fine-tuned."""
        return {knob: value for knob, value in self.defence.items() if knob != "tuning"}


class HpmBench(Bench):
    """Everything RobustBench's format has no key for. ``notes`` are sentences by topic, such as ``prototypes``."""

    published: Published
    evaluations: Annotated[list[Evaluation], Field(min_length=1)]
    verdicts: list[Verdict]

    def evaluation(self, target: Target, batching: Batching) -> Evaluation | None:
        """The evaluation of a target in a batching, if there is one."""
        return next((e for e in self.evaluations if (e.target, e.batching) == (target, batching)), None)

    @property
    def headline(self) -> Evaluation:
        """HPM SOLO, with AutoAttack; every card has it."""
        solo = self.evaluation("hpm", Batching.SOLO)
        assert solo is not None
        return solo

    def cost(self, evaluation: Evaluation) -> float | None:
        """An evaluation's passes as a multiple of standard AutoAttack's on the base model, if that was evaluated."""
        base = self.evaluation("base", Batching.SOLO)
        return evaluation.passes / base.passes if base and base.passes else None

    @property
    def threat_name(self) -> str:
        """RobustBench's name of the threat model."""
        return self.headline.threat.norm.value

    def verdict(self, batching: Batching) -> Verdict | None:
        """The verdict on a batching, if the base model was evaluated too."""
        return next((v for v in self.verdicts if v.batching is batching), None)

    @model_validator(mode="after")
    def _evaluations_belong_together(self) -> HpmBench:
        first = self.evaluations[0]
        kinds = {(e.target, e.batching) for e in self.evaluations}
        examples = {(e.dataset, e.split, e.fingerprint, e.n) for e in self.evaluations}
        if len(kinds) != len(self.evaluations):
            raise ValueError("two evaluations of one target in one batching")
        if len(examples) != 1 or any(e.threat != first.threat for e in self.evaluations):
            raise ValueError("evaluations of one card share dataset, split, fingerprint, n and threat")
        solo = self.evaluation("hpm", Batching.SOLO)
        if solo is None or solo.autoattack is None:
            raise ValueError("no SOLO evaluation of HPM with AutoAttack, the headline of a card")
        for claim in self.verdicts:
            self._check_claim(claim)
        return self

    def _check_claim(self, claim: Verdict) -> None:
        base, hpm = self.evaluation("base", Batching.SOLO), self.evaluation("hpm", claim.batching)
        if base is None or base.autoattack is None or hpm is None:
            raise ValueError(f"a verdict on {claim.batching.value} without the evaluations that it compares")
        if claim.n != hpm.n or claim.only_hpm - claim.only_base != hpm.robust.count - base.autoattack.count:
            raise ValueError(f"the verdict on {claim.batching.value} does not fit the evaluations that it compares")
