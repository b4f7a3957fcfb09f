"""Finished runs as a real trial leaves them: seven attacks alone, four on whole batches, three targets.

A base model meets AutoAttack, as in older cards, or one attack of MSA besides, by how many strengths there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hpm_robustbench.ledger.aggregates import Aggregates, Regrouping
from hpm_robustbench.ledger.diagnostics import AtBudget, AtSteps, Diagnostics
from hpm_robustbench.ledger.fine_tuning import FineTuning, Made, Point
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import ModelCard, Tuned, build_card, build_corruption_card, write_card
from hpm_robustbench.ledger.plan import (
    AUTOATTACK,
    COMPONENTS,
    MSA,
    CorruptionPlan,
    Examples,
    Plan,
    Step,
    corruption_steps,
)
from hpm_robustbench.ledger.record import CLEAN, RunRecord, StepResult, Verdict
from hpm_robustbench.threat import Batching, Corruptions, ThreatModel
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe
from hpm_robustbench.zoo.spec import ModelSpec, Paper, WeightsRef

N = 400
TUNING = Tuning(find_recipe("uniform-v1"))
NOTES = {"prototypes": "class means of all 50,000 training images, in evaluation mode"}


def steps_of(target: str, batching: Batching) -> tuple[Step, ...]:
    alone = tuple(Step(target, name, AUTOATTACK) for name in COMPONENTS)
    if target == "base":
        return *alone, Step("base", "conjunction", MSA, {"restarts": 40})
    if batching.row_independent:
        added = (Step("fc", "apgd-t", MSA), Step("base", "apgd-t", MSA), Step("hpm", "conjunction", MSA))
        return alone + added
    ce, dlr = {"loss": "ce"}, {"loss": "dlr"}
    views = (("hpm", ce), ("soft", ce), ("soft", dlr), ("frozen", dlr))
    return tuple(Step(view, "apgd-joint", MSA, parameters) for view, parameters in views)


def run_steps(plan: Plan, clean: float, strengths: list[float], flags: dict[str, list[str]], seed: int):
    """Give every image a hardness in [0, 1]; a step of strength s breaks the images below s, give or take some luck."""
    rng = np.random.default_rng(seed)
    hardness, right = rng.random(N), rng.random(N) < clean
    alive, rows = right.copy(), tuple(range(N))
    luck = 0.15 if plan.batching is Batching.JOINT else 0.02
    nothing, labels = (None,) * N, tuple(row % 10 for row in range(N))
    first = tuple(int(Verdict.STANDING if ok else Verdict.CLEAN_WRONG) for ok in right)
    yield StepResult(CLEAN, rows, first, labels, nothing, N, 0, tuple(flags.get(CLEAN, ())))
    for step, strength in zip(plan.steps, strengths, strict=True):
        met = np.ones(N, bool) if plan.batching is Batching.JOINT else alive
        broken = met & ~(right & (hardness >= strength + luck * rng.random(N)))
        verdict = np.where(broken, Verdict.BROKEN, np.where(met, Verdict.STANDING, Verdict.SKIPPED))
        forward, backward = 100 * int(met.sum()), 0 if step.attack == "square" else 100 * int(met.sum())
        yield StepResult(
            step.name,
            rows,
            tuple(verdict.tolist()),
            labels,
            nothing,
            forward,
            backward,
            tuple(flags.get(step.name, ())),
        )
        alive &= ~broken


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    def make(spec, target, batching, *, clean, strengths, flags=None, seed=0, composed=None) -> RunRecord:
        steps = steps_of(target, batching)[: len(strengths)]
        plan = Plan(
            model=spec.name,
            target=target,
            batching=batching,
            threat=spec.threat,
            protocol="msa" if any(step.group == MSA for step in steps) else "standard",
            steps=steps,
            examples=Examples(spec.dataset, "test", "5e" * 32, N),
            state_sha256="ab" * 32,
            defence={} if target == "base" else {"beta": 0.5, "tau": "fit", "distance": "squared"},
            software={"torch": "2.13.0", "device": "cpu"},
            seed=0,
            batch_size=128 if batching is Batching.JOINT else 100,
            shard_size=256 if batching is Batching.JOINT else 100,
            **({"composition": composed, "labels": (0,) * N} if composed else {}),
        )
        results = tuple(run_steps(plan, clean, strengths, flags or {}, seed))
        return RunRecord(plan, results, {"python": "3.11", "platform": "Linux x86_64"})

    return make


@pytest.fixture(scope="session")
def by_square() -> Callable[[RunRecord, str], RunRecord]:
    """The run, had its step of that name been Square, which takes no gradient."""

    def instead(record: RunRecord, name: str) -> RunRecord:
        [old] = [step for step in record.plan.steps if step.name == name]
        square = replace(old, attack="square")
        plan = replace(record.plan, steps=tuple(square if step is old else step for step in record.plan.steps))
        steps = [replace(step, name=square.name) if step.name == name else step for step in record.steps]
        return replace(record, plan=plan, steps=tuple(steps))

    return instead


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return ModelSpec(
        name="resnet4b_linf2",
        dataset="cifar10",
        threat=ThreatModel.parse("Linf", "2/255"),
        factory="python:models:resnet4b",
        weights=WeightsRef("file", ("/home/someone/weights/resnet4b.pth",), ("0f" * 32,)),
        paper=Paper(
            title="Efficient neural network robustness certification",
            authors="Ada Lovelace, Émilie du Châtelet",
            venue="NeurIPS 2021",
            link="https://example.org/paper",
            architecture="ResNet-4b",
            license="BSD-3-Clause",
            clean_acc="77.20",
            autoattack_acc="59.53",
            reported="null",
        ),
    )


@pytest.fixture(scope="session")
def sound() -> Diagnostics:
    """What is measured of a target on which attacks work, on 64 images."""
    return Diagnostics(
        n=64,
        dead_cross_entropy=0,
        dead_margin=0,
        misled=0,
        repeated=0,
        reordered=0,
        regrouped=0,
        probabilities=0,
        saturated=6,
        logit_gap=4.25,
        budgets=[AtBudget(multiple=m, standing=n) for m, n in ((0.25, 60), (0.5, 51), (1.0, 40), (2.0, 3), (127.5, 0))],
        iterations=[AtSteps(steps=m, standing=n) for m, n in ((25, 43), (50, 40), (100, 40), (200, 40))],
        noise=2,
        noise_alone=0,
        forward=40000,
        backward=39000,
    )


@pytest.fixture(scope="session")
def aggregates() -> Aggregates:
    """What the images of JOINT do in other submissions: mates that helped to break an image are missed."""
    drawn = [Regrouping(clean=c, composite=r) for c, r in ((297, 250), (303, 244), (300, 251))]
    return Aggregates(composite=236, composite_alone=0, regroupings=drawn)


@pytest.fixture(scope="session")
def records(make_record, spec, sound, aggregates) -> list[RunRecord]:
    """HPM looks better under AutoAttack alone, is broken by MSA, and loses more in joint batches."""
    base = make_record(spec, "base", Batching.SOLO, clean=0.77, strengths=[0.19, 0.21, 0.18, 0.15])
    solo = make_record(
        spec,
        "hpm",
        Batching.SOLO,
        clean=0.77,
        strengths=[0.12, 0.15, 0.12, 0.16, 0.19, 0.17, 0.22],
        flags={"conjunction@hpm": ["returned images outside the threat model; they do not count"]},
    )
    joint = make_record(spec, "hpm", Batching.JOINT, clean=0.75, strengths=[0.18, 0.22, 0.2, 0.21])
    return [replace(base, diagnostics=sound), replace(solo, diagnostics=sound), replace(joint, aggregates=aggregates)]


@pytest.fixture(scope="session")
def card(spec, records) -> ModelCard:
    return build_card(spec, records, n_classes=10, notes=NOTES)


@pytest.fixture(scope="session")
def make_card(make_record) -> Callable[..., ModelCard]:
    """A card of a model that only stands out by its name, budget and strength."""

    def make(name, *, eps="2/255", dataset="cifar10", clean=0.8, base=0.3, hpm=0.3, paper=None) -> ModelCard:
        spec = ModelSpec(
            name=name,
            dataset=dataset,
            threat=ThreatModel.parse("Linf", eps),
            factory=f"robustbench:{dataset}/Linf/{name}",
            weights=WeightsRef("gdrive", ("1a2b3c",)),
            paper=paper or Paper(title=f"The paper of {name}", venue="ICML 2020", architecture="WideResNet-28-10"),
        )
        runs = [
            make_record(spec, "base", Batching.SOLO, clean=clean, strengths=[base, base, base - 0.05, base - 0.05, 0]),
            make_record(spec, "hpm", Batching.SOLO, clean=clean, strengths=[hpm, hpm, *[hpm - 0.05] * 5]),
        ]
        return build_card(spec, runs, n_classes=10, notes=NOTES)

    return make


COURSE = FineTuning(
    curves=[
        Point(epoch=0, clean=0.8, robust=0.4),
        Point(epoch=1, loss=1.25, clean=0.79, robust=0.5),
        Point(epoch=2, loss=1.0, clean=0.77, robust=0.55, unsupported=[3]),
    ],
    reports=["On held-out training images clean accuracy fell from 80.00% to 77.00%, by more than 2.00%."],
    made=Made(
        split="train",
        fingerprint="7e" * 32,
        trained_on=900,
        held_out=100,
        precision="float32",
        device="cpu",
        at_once=256,
        compiled=False,
        folded=True,
        threads=1,
        versions={"python": "3.11", "torch": "2.13.0"},
    ),
)


@pytest.fixture(scope="session")
def make_tuned_card(make_record) -> Callable[..., ModelCard]:
    """A fine-tuned card, or that of a control: ``base``, ``hpm`` and ``controls`` are by strength of the attacks."""

    def make(model, tuning, *, base=0.4, hpm=0.2, controls=None) -> ModelCard:
        runs = {name: tuned_runs(model, replace(tuning, control=Control(name)), s) for name, s in controls.items()}
        own = [base_run(model, base), *tuned_runs(model, tuning, hpm)[1:]]
        return build_card(model.tuned(tuning.name), own, n_classes=10, notes=NOTES, tuned=Tuned(COURSE, runs))

    def base_run(named, strength) -> RunRecord:
        return make_record(named, "base", Batching.SOLO, clean=0.8, strengths=[strength] * 4)

    def tuned_runs(model, tuning, strength) -> list[RunRecord]:
        """What answers without HPM, then HPM alone and in batches."""
        named = model.tuned(tuning.name)
        defence = {"beta": 0.5, "tuning": tuning.to_json()}
        alone = make_record(named, "hpm", Batching.SOLO, clean=0.78, strengths=[strength] * 7)
        joint = make_record(named, "hpm", Batching.JOINT, clean=0.78, strengths=[strength] * 4)
        hpm = [replace(run, plan=replace(run.plan, defence=defence)) for run in (alone, joint)]
        return [base_run(named, strength), *hpm]

    return make


@pytest.fixture(scope="session")
def make_corrupted_card() -> Callable[..., ModelCard]:
    """A card of a corruption track: ``strength`` of the images stand the mildest corruption, a quarter the worst."""

    def make(name, *, dataset="cifar10", strength=0.9, paper=None, joint=False) -> ModelCard:
        spec = ModelSpec(
            name=name,
            dataset=dataset,
            threat=Corruptions(),
            factory=f"robustbench:{dataset}/corruptions/{name}",
            weights=WeightsRef("gdrive", ("1a2b3c",)),
            paper=paper or Paper(title=f"The paper of {name}", venue="ICLR 2020", architecture="ResNet-18"),
        )
        batchings = [("base", Batching.SOLO), ("hpm", Batching.SOLO), *([("hpm", Batching.JOINT)] if joint else [])]
        runs = [corrupted_record(spec, target, batching, strength) for target, batching in batchings]
        return build_corruption_card(spec, runs, n_classes=10, notes=NOTES)

    return make


def corrupted_record(spec: ModelSpec, target: str, batching: Batching, strength: float) -> RunRecord:
    plan = CorruptionPlan(
        model=spec.name,
        target=target,
        batching=batching,
        threat=spec.threat,
        protocol="corruptions",
        steps=corruption_steps(target),
        examples=Examples(spec.dataset, "test", "6f" * 32, N),
        state_sha256="ab" * 32,
        defence={} if target == "base" else {"beta": 0.5},
        software={"torch": "2.13.0", "device": "cpu"},
        batch_size=128 if batching is Batching.JOINT else 100,
        shard_size=896 if batching is Batching.JOINT else 1000,
    )
    rows, nothing = tuple(range(N)), (None,) * N
    results = [StepResult(CLEAN, rows, (1,) * 380 + (0,) * 20, nothing, nothing, N)]
    for position, step in enumerate(plan.steps):
        right = round(N * (strength + (0.25 - strength) * position / (len(plan.steps) - 1)))
        results.append(StepResult(step.name, rows, (1,) * right + (2,) * (N - right), nothing, nothing, N))
    return RunRecord(plan, tuple(results), {"python": "3.11"})


@pytest.fixture(scope="session")
def corrupted_card(make_corrupted_card) -> ModelCard:
    paper = Paper(
        title="AugMix",
        authors="Dan Hendrycks",
        venue="ICLR 2020",
        link="https://arxiv.org/abs/1912.02781",
        architecture="WideResNet-40-2",
        license="MIT",
        clean_acc="95.08",
        corruptions_acc="88.82",
    )
    return make_corrupted_card("Hendrycks2020AugMix_WRN", paper=paper, joint=True)


@pytest.fixture(scope="session")
def golden_cards(card, spec, make_card, make_tuned_card, corrupted_card) -> list[ModelCard]:
    paper = Paper(
        title="Unlabeled Data Improves Adversarial Robustness",
        authors="Yair Carmon, Aditi Raghunathan",
        venue="NeurIPS 2019",
        link="https://arxiv.org/abs/1905.13736",
        architecture="WideResNet-28-10",
        license="MIT",
        additional_data=True,
        clean_acc="89.69",
        autoattack_acc="59.53",
        reported="62.5",
    )
    helped = make_card("Carmon2019Unlabeled", eps="8/255", base=0.3, hpm=0.2, paper=paper)
    tuned = make_tuned_card(spec, TUNING, controls={"fc": 0.3, "static": 0.25, "shuffled": 0.35, "leave-one-out": 0.2})
    hurt = make_card("Rice2020Overfitting", eps="8/255", base=0.25, hpm=0.35)
    return [card, helped, hurt, tuned, corrupted_card]


@pytest.fixture(scope="session")
def golden(golden_cards) -> Path:
    """The committed cards and board; HPM_BENCH_UPDATE_GOLDEN=1 writes them anew after a wanted change."""
    folder = Path(__file__).parent / "golden"
    if os.environ.get("HPM_BENCH_UPDATE_GOLDEN"):
        for each in golden_cards:
            write_card(each, folder / "model_cards")
        build(folder / "model_cards", folder / "leaderboard")
        (folder / "leaderboard" / "published.html").unlink()  # the project's own board holds it
    return folder


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes, visible text, header cells, the data block."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headers: list[str] = []
        self.script = ""
        self._words: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "th":
            self.headers.append("")

    def handle_data(self, data) -> None:
        tag = self.tags[-1][0] if self.tags else ""
        if tag == "script":
            self.script += data
        elif data.strip():
            self._words.append(data.strip())
            if tag == "th":
                self.headers[-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    @property
    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]


@pytest.fixture(scope="session")
def read_html() -> Callable[[Path], Page]:
    def read(path: Path) -> Page:
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        return page

    return read
