"""What a model card says beyond RobustBench's keys: its ``hpm_bench`` block, which checks itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Final, Literal, cast

from pydantic import Field, JsonValue, model_validator

from hpm_robustbench.ledger.card_block import Block, Count, Images, Name, PercentText, Sha256, Target
from hpm_robustbench.ledger.card_control import CONTROLS, Control, ControlName, check_pairs, written
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.fine_tuning import FineTuning
from hpm_robustbench.ledger.plan import AUTOATTACK
from hpm_robustbench.ledger.statistics import Comparison, Outcome, compare, decisive, mcnemar, outcome
from hpm_robustbench.threat import Batching

SCHEMA_VERSION: Final = "1.0"
RULE = (
    "HPM helps (hurts) if more (fewer) images stand on the HPM classifier than on the base model, each under every "
    "attack: those made for it, and those made for the other; and the exact McNemar test on the same images rejects "
    "equality at 0.05. Otherwise it is undecided."
)
EARLIER_RULES = (
    "HPM helps (hurts) if more (fewer) images stand on the HPM classifier than on the base model, each under every "
    "attack: on the base model AutoAttack and whatever was made for HPM; and the exact McNemar test on the same images "
    "rejects equality at 0.05. Otherwise it is undecided.",
    "HPM helps (hurts) if more (fewer) images stand under every attack on the HPM classifier than under AutoAttack on "
    "the base model, and the exact McNemar test on the same images rejects equality at 0.05; otherwise it is "
    "undecided.",
)
"""By which cards were judged before the base model met more of MSA than AutoAttack, and what is made for HPM."""
FINE_TUNED_RULE = (
    "After fine-tuning, HPM helps only if it does so against the base model and against C1, the FC head alone after "
    "the same fine-tuning; it hurts if it does so against either. Without C1 no gain is credited to HPM."
)


class Verdict(Block):
    """Whether HPM helps, by the written rule, on the same images as the base model.

    ``only_base`` images stand only on the base model, ``only_hpm`` only on HPM, each under every attack on it.
    """

    verdict: Outcome
    batching: Batching
    n: Images
    only_base: Count
    only_hpm: Count
    p_value: Annotated[float, Field(ge=0, le=1)]
    rule: str

    @classmethod
    def of(
        cls,
        base: Sequence[bool],
        hpm: Sequence[bool],
        batching: Batching,
        *,
        fc: Comparison | None = None,
        tuned: bool = False,
    ) -> Verdict:
        """Compare which rows stand, in the same order; after fine-tuning beside C1 (``fc``), if that was run."""
        test = mcnemar(base, hpm)
        return cls(
            verdict=judged(test, fc, tuned=tuned),
            batching=batching,
            n=len(base),
            only_base=test.only_first,
            only_hpm=test.only_second,
            p_value=written(test.p_value),
            rule=rule_in_full(RULE, tuned=tuned),
        )

    @property
    def test(self) -> Comparison:
        """The base model (first) and HPM (second), under every attack on each."""
        return compare(self.only_base, self.only_hpm)

    @model_validator(mode="after")
    def _follows_from_the_counts(self) -> Verdict:
        check_pairs(self.test, self.p_value, self.n)
        return self


def rule_in_full(rule: str, *, tuned: bool) -> str:
    """A rule with what it adds after fine-tuning."""
    return f"{rule} {FINE_TUNED_RULE}" if tuned else rule


def judged(base: Comparison, fc: Comparison | None, *, tuned: bool) -> Outcome:
    """The verdict on HPM by the written rule.

    Args:
        base: the base model and HPM on the same rows.
        fc: the control C1 and HPM, if C1 was run.
        tuned: whether HPM was fine-tuned, so that no gain is credited without C1.
    """
    found = outcome(decisive([base, *([fc] if fc else [])]))
    return "undecided" if found == "helps" and tuned and fc is None else found


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
    def control(self) -> ControlName | None:
        """Which control was fine-tuned in HPM's place, if it was one."""
        return cast("ControlName | None", self.tuning.get("control"))

    @property
    def tuning_options(self) -> list[str]:
        """The command line options that ask for the fine-tuning."""
        options = self.tuning.get("options")
        return [str(option) for option in options] if isinstance(options, list) else []

    @property
    def untuned_id(self) -> str:
        """The model's name before it was fine-tuned."""
        return self.model_id.removesuffix(f"_{self.tuning['name']}") if self.tuning else self.model_id

    @property
    def parent_id(self) -> str:
        """The model in whose place a control was fine-tuned; of any other model its own name."""
        return self.model_id.removesuffix(f"_{self.control}")

    @property
    def knobs(self) -> dict[str, JsonValue]:
        """The definition of HPM, without how it was fine-tuned."""
        return {knob: value for knob, value in self.defence.items() if knob != "tuning"}

    @property
    def asked_knobs(self) -> dict[str, JsonValue]:
        """The definition of HPM as it was asked for, before a control changed it."""
        before = self.tuning.get("before")
        return self.knobs | (before if isinstance(before, dict) else {})

    @model_validator(mode="after")
    def _tuning_has_a_name(self) -> Bench:
        if self.tuning and not isinstance(self.tuning.get("name"), str):
            raise ValueError("a fine-tuning without a name")
        if self.control not in (None, *CONTROLS):
            raise ValueError(f"an unknown control, {self.control!r:.80}")
        return self


class HpmBench(Bench):
    """Everything RobustBench's format has no key for.

    ``fine_tuning`` tells how a fine-tuning went; ``controls`` stand beside a fine-tuned HPM. The card of a control says
    nothing for or against HPM: it has no ``verdicts``; others have one on each HPM, if the base model was evaluated.
    """

    published: Published
    evaluations: Annotated[list[Evaluation], Field(min_length=1)]
    verdicts: list[Verdict]
    fine_tuning: FineTuning | None = None
    controls: list[Control] = Field(default_factory=list)

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
        unit = base.passes_of(AUTOATTACK) if base else 0
        return evaluation.passes / unit if unit else None

    @property
    def rule(self) -> str:
        """The rule that its verdicts were judged by, or today's where it has none."""
        return self.verdicts[0].rule if self.verdicts else rule_in_full(RULE, tuned=bool(self.tuning))

    @property
    def threat_name(self) -> str:
        """RobustBench's name of the threat model."""
        return self.headline.threat.norm.value

    def verdict(self, batching: Batching) -> Verdict | None:
        """The verdict on a batching, if the base model was evaluated too."""
        return next((v for v in self.verdicts if v.batching is batching), None)

    def beside(self, batching: Batching) -> list[Control]:
        """The controls that stand beside HPM in a batching."""
        return [control for control in self.controls if control.batching is batching]

    def fc(self, batching: Batching) -> Control | None:
        """C1, without which no gain of fine-tuned HPM in a batching is credited."""
        return next((control for control in self.beside(batching) if control.control == "fc"), None)

    def decisive(self, claim: Verdict) -> Comparison:
        """The comparison that a verdict rests on: with the base model, or after fine-tuning with C1."""
        fc = self.fc(claim.batching)
        return decisive([claim.test, *([fc.test] if fc else [])])

    @model_validator(mode="after")
    def _evaluations_belong_together(self) -> HpmBench:
        first = self.evaluations[0]
        kinds = {(e.target, e.batching) for e in self.evaluations}
        examples = {(e.dataset, e.split, e.fingerprint, e.n, e.seed) for e in self.evaluations}
        if len(kinds) != len(self.evaluations):
            raise ValueError("two evaluations of one target in one batching")
        if len(examples) != 1 or any(e.threat != first.threat for e in self.evaluations):
            raise ValueError("evaluations of one card share dataset, split, fingerprint, n, seed and threat")
        solo = self.evaluation("hpm", Batching.SOLO)
        if solo is None or solo.autoattack is None:
            raise ValueError("no SOLO evaluation of HPM with AutoAttack, the headline of a card")
        for claim in self.verdicts:
            self._check_claim(claim)
        if Counter(claim.batching for claim in self.verdicts) != Counter(self._compared):
            raise ValueError("not one verdict on each HPM that can be compared with the base model")
        for control in self.controls:
            self._check_control(control)
        return self

    @model_validator(mode="after")
    def _rules_are_known(self) -> HpmBench:
        known = [rule_in_full(rule, tuned=bool(self.tuning)) for rule in (RULE, *EARLIER_RULES)]
        if any(claim.rule not in known for claim in self.verdicts):
            raise ValueError("a verdict names a rule by which no card was ever judged")
        return self

    @model_validator(mode="after")
    def _classes_exist(self) -> HpmBench:
        joint = self.evaluation("hpm", Batching.JOINT)
        classes = joint.most_classes if joint else None
        if classes is not None and any(e.highest_class >= classes for e in self.evaluations):
            raise ValueError("a row was taken for a class that the dataset does not have")
        return self

    @property
    def _compared(self) -> list[Batching]:
        """Batchings of HPM on which a card that also tells of the base model owes a verdict."""
        base = self.evaluation("base", Batching.SOLO)
        owed = base is not None and base.autoattack is not None and not self.control
        return [e.batching for e in self.evaluations if e.target == "hpm" and owed]

    def _check_claim(self, claim: Verdict) -> None:
        base, hpm = self.evaluation("base", Batching.SOLO), self.evaluation("hpm", claim.batching)
        if base is None or base.autoattack is None or hpm is None or self.control:
            raise ValueError(f"a verdict on {claim.batching.value} without the evaluations that it compares")
        if claim.n != hpm.n or claim.only_hpm - claim.only_base != hpm.robust.count - base.robust.count:
            raise ValueError(f"the verdict on {claim.batching.value} does not fit the evaluations that it compares")
        fc = self.fc(claim.batching)
        if claim.verdict != judged(claim.test, fc.test if fc else None, tuned=bool(self.tuning)):
            raise ValueError(f"the verdict on {claim.batching.value} does not follow from the counts beside it")
        of_base, of_hpm = base.fallen, hpm.fallen
        if of_base is None or of_hpm is None:
            return
        if (claim.only_base, claim.only_hpm) != (len(of_hpm - of_base), len(of_base - of_hpm)):
            raise ValueError(f"the verdict on {claim.batching.value} does not fit the rows that fell")

    def _check_control(self, control: Control) -> None:
        hpm = self.evaluation("hpm", control.batching)
        twice = sum(other.control == control.control for other in self.beside(control.batching)) > 1
        if hpm is None or self.control or not self.tuning or twice:
            raise ValueError(f"the control {control.control} stands beside no HPM that was fine-tuned, or twice")
        gained = control.only_hpm - control.only_control
        if control.robust.n != hpm.n or gained != hpm.robust.count - control.robust.count:
            raise ValueError(f"the control {control.control} does not fit HPM {control.batching.value} beside it")
