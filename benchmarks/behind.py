"""Images that stood in the trial behind a card, for benchmarks that look for what MSA left."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real_models import MODELS, open_images, weights_path
from hpm_robustbench.case import Case, prepare
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.ledger.card_bench import HpmBench
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.ledger.plan import AUTOATTACK, Plan
from hpm_robustbench.ledger.provenance import fates
from hpm_robustbench.ledger.record import CLEAN
from hpm_robustbench.request.again import as_tried
from hpm_robustbench.request.models import own_spec, spec_to_run
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.spec import ModelSpec

log = logging.getLogger(__name__)

EMBEDDED = Path("model_cards/digits/Linf/Digits2026ResNet-Linf.json")


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial of HPM: its plan, who stood it, and the step that each fallen row fell to, ``clean`` among them.

    Under SOLO the card tells of what was made for JOINT, too.
    """

    plan: Plan
    subject: Subject
    fallen: Mapping[int, str]

    @property
    def right(self) -> Tensor:
        """Rows that are right without any attack: [N], a mask."""
        return self.mask(row for row in range(self.plan.examples.n) if self.fallen.get(row) != CLEAN)

    @property
    def standing(self) -> Tensor:
        """Rows that no step has taken: [N], a mask."""
        return self.mask(row for row in range(self.plan.examples.n) if row not in self.fallen)

    def mask(self, rows: Iterable[int]) -> Tensor:
        """Of these rows: [N]."""
        chosen = torch.zeros(self.plan.examples.n, dtype=torch.bool)
        chosen[list(rows)] = True
        return chosen


@dataclass(frozen=True, eq=False)
class Tried:
    """A model ready for trial, and what its card says of the trials that it has had."""

    case: Case
    bench: HpmBench
    batchings: tuple[Batching, ...]

    @property
    def images(self) -> Tensor:
        return self.case.test.images

    @property
    def labels(self) -> Tensor:
        return self.case.test.labels

    @property
    def autoattack_passes(self) -> float:
        """Of standard AutoAttack on the base model, for all images."""
        base = self.bench.evaluation("base", Batching.SOLO)
        assert base is not None
        return base.passes_of(AUTOATTACK) * base.n

    def trials(self) -> Iterator[Trial]:
        """Those of HPM.

        Raises:
            UsageProblem: the card tells of other images, batches, seeds or budgets, or not of rows.
        """
        for plan, subject in self.case.trials:
            if not isinstance(plan, Plan) or plan.target != "hpm" or plan.batching not in self.batchings:
                continue
            evaluation = self._told(plan)
            if evaluation.state_sha256 != plan.state_sha256:
                log.warning("%s: other last bits than the card's; prototypes were summed on another CPU", plan.model)
            assert evaluation.provenance is not None
            yield Trial(plan, subject, {row: step for row, (step, _) in fates(evaluation.provenance).items()})

    def _told(self, plan: Plan) -> Evaluation:
        found = self.bench.evaluation("hpm", plan.batching)
        if found is None or found.provenance is None or found.trial != plan.trial:
            raise UsageProblem(
                wanted=f"a card that tells which rows fell in the trial {plan.trial}",
                got="none" if found is None else f"one of {found.trial}",
                next_step="give --card the card of this very trial",
            )
        return found


def tried(description: str | None, *batchings: Batching) -> Tried:
    """The model of the card that the command line names, ready for the trials that the card tells of.

    Nobody is attacked. What is fine-tuned is trained anew where neither ``--finetuned`` nor ``--output`` holds it.

    Args:
        description: of the benchmark.
        batchings: the ones that it knows; all unless the command line names one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=Path, default=EMBEDDED)
    parser.add_argument("--batching", choices=[batching.value for batching in batchings])
    parser.add_argument("--data", type=Path, help="Holds weights and images, as for benchmarks.real_models.")
    parser.add_argument("--finetuned", type=Path, help="Holds what was fine-tuned, as for `hpm-bench run`.")
    parser.add_argument("--output", type=Path, required=True, help="Takes prototypes, images and what is fine-tuned.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = read_card(given.card).hpm_bench
    assert isinstance(bench, HpmBench)
    asked = batchings if given.batching is None else (Batching(given.batching),)
    case = _prepared(bench, given)
    return Tried(case, bench, asked)


def _prepared(bench: HpmBench, given: argparse.Namespace) -> Case:
    headline = bench.headline
    given.output.mkdir(parents=True, exist_ok=True)
    images = None if given.data is None else open_images(headline.dataset, given.data, given.output)
    options = as_tried(bench, RunOptions(data=images, output=given.output))
    if options.tuning is not None:
        options = replace(options, finetuned=given.finetuned)
    return prepare(_spec(bench.base_model, given.data, headline), options)


def _spec(name: str, data: Path | None, headline: Evaluation) -> ModelSpec:
    threat = headline.threat
    if name not in MODELS:
        return spec_to_run(name, headline.dataset, threat.norm.value, threat.eps)
    if data is None:
        raise UsageProblem(wanted=f"--data, with {name}'s weights and images", got="none", next_step="add it")
    real = MODELS[name]
    return own_spec(
        real.factory,
        str(weights_path(real, data)),
        name=name,
        head=None,
        about=None,
        dataset=real.dataset,
        threat_model=threat.norm.value,
        eps=threat.eps,
    )
