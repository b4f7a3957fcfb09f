"""What would be published, completely, before anything is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hpm_robustbench.case import Case
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.hpm.classifier import HPMClassifier as Defence
from hpm_robustbench.hub.contents import contents
from hpm_robustbench.hub.description import CONFIG, read_description
from hpm_robustbench.hub.eval_results import EVAL_RESULTS, Benchmark, eval_results
from hpm_robustbench.hub.origin import Origin
from hpm_robustbench.hub.readme import render_pages
from hpm_robustbench.hub.remote import CARD
from hpm_robustbench.hub.restore import Means
from hpm_robustbench.hub.signature import sign
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.report.tables import render_table
from hpm_robustbench.threat import Batching
from hpm_robustbench.training.published import record
from hpm_robustbench.zoo.hub_file import HubFile


@dataclass(frozen=True)
class Wish:
    """What a person wants published.

    Attributes:
        repo: where it goes.
        batching: how the classifier is to answer.
        include_backbone: store the whole model, as is always done where fine-tuning has changed its backbone.
        licences: further ones under which the caller may publish.
        samples: dataset repository for what happened to each image.
        benchmark: of the Hub, whose board is to show the result.
        sign: SSH key to sign all files with.
    """

    repo: str
    batching: Batching = Batching.SOLO
    include_backbone: bool = False
    licences: tuple[str, ...] = ()
    samples: str | None = None
    benchmark: Benchmark | None = None
    sign: Path | None = None

    def __post_init__(self) -> None:
        if self.samples is not None:
            HubFile.in_repository(self.samples)


@dataclass(frozen=True)
class Publication:
    """All files of a repository, by their path in it; and of the dataset that goes with it, which is sent first.

    ``tag`` is a name that its commit gets.
    """

    repo: str
    files: Mapping[str, bytes]
    tag: str | None = None
    samples: Publication | None = None

    def rows(self) -> list[dict[str, object]]:
        """Path, size and sha256 of each file."""
        return [
            {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in sorted(self.files.items())
        ]

    @property
    def readme(self) -> str:
        """The page that people and the Hub read; its head is what the Hub's search reads."""
        return self.files["README.md"].decode()

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        facts = {"repo": self.repo, "tag": self.tag, "files": self.rows(), "readme": self.readme}
        return {**facts, "samples": self.samples.to_json() if self.samples else None}

    def in_words(self) -> str:
        """The files as a table, then the page; the dataset first."""
        before = f"{self.samples.in_words()}\n\n" if self.samples else ""
        table = render_table(["path", "size", "sha256"], [[str(v) for v in row.values()] for row in self.rows()])
        return f"{before}{self.repo}{f' at {self.tag}' if self.tag else ''}\n\n{table}\n\n{self.readme}"


def compose(case: Case, card: ModelCard, wish: Wish, means: Means) -> Publication:
    """Put together what is published of a model that was tried.

    Args:
        case: the model as it is tried, see ``case.prepare``.
        card: the result of its trial.
        wish: what is to become of it.
        means: see ``contents``.

    Raises:
        InvalidInput: the card tells of another model; or see ``contents``.
        UsageProblem: it cannot be signed.
    """
    classifier = _tried(case, card, wish.batching)
    weights = replace(case.spec.weights, sha256=case.weights_sha256)
    base = replace(case.spec, name=case.spec.untuned_name, tuning=None, weights=weights)
    assert card.hpm_bench is not None
    tuned_by = tuple(card.hpm_bench.tuning_options)
    training = None if case.kept is None else record(case.kept.folder)
    origin = Origin(base, case.test.dataset, case.wrapped.prototypes_from, tuned_by, training)
    return gather(classifier, origin, card, wish, means)


def gather(classifier: Defence, origin: Origin, card: ModelCard, wish: Wish, means: Means | None) -> Publication:
    """The files of a classifier whose card is known to be its own; see ``compose``."""
    files = contents(classifier, origin, include_backbone=wish.include_backbone, means=means)
    description = read_description(files[CONFIG], wish.repo)
    pages = render_pages(card, description, wish.repo, signed=wish.sign is not None)
    files |= {CARD: card.to_text().encode(), **pages}
    if wish.benchmark is not None:
        files[EVAL_RESULTS] = eval_results(card, description.batching, wish.repo, wish.benchmark).encode()
    if wish.sign is not None:
        files |= sign(files, wish.sign)
    return Publication(wish.repo, files)


def _tried(case: Case, card: ModelCard, batching: Batching) -> Defence:
    """The classifier that the card tells of, to the last bit."""
    bench = card.hpm_bench
    told = bench.evaluation("hpm", batching) if bench is not None else None
    made = next((trial for trial in case.trials if (trial[0].target, trial[0].batching) == ("hpm", batching)), None)
    if told is None or made is None or told.state_sha256 != made[0].state_sha256:
        raise InvalidInput(
            wanted=f"the model that the card of {case.spec.name} tells of, answering in {batching.name}",
            got="one with other weights, images, knobs or answers" if told else "a card that tells of no such trial",
            next_step="try it first on this machine, with hpm-bench run and the same options",
        )
    return made[1].classifier
