"""What AutoAttack made of the base model is shown to HPM; what falls to it is counted another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_trials import plan_of, record_of

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.aggregates import aggregate
from hpm_robustbench.evaluation.lent import lend, lent_again
from hpm_robustbench.evaluation.runner import run
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import AUTOATTACK, MSA, Plan, Step
from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.ledger.transfers import LENT, with_lent, with_transfers
from hpm_robustbench.load import Wrapped
from hpm_robustbench.shapes import Images
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching

ON_BASE = tuple(Step("base", attack, AUTOATTACK, {"n_iter": 10}) for attack in ("apgd-ce", "apgd-t"))
WEAK = {
    Batching.SOLO: Step("hpm", "noise", MSA, {"tries": 1}),
    Batching.JOINT: Step("hpm", "joint", MSA, {"loss": "ce", "steps": 1}),
}


class Trial:
    """A finished run of the base model that lends, and one of HPM under an attack that leaves much."""

    def __init__(self, wrapped: Wrapped, examples: ExampleSet, batching: Batching, runs: Path) -> None:
        self.examples, self.runs = examples, runs
        self.subject = Subject(wrapped.classifier.with_batching(batching), wrapped.base)
        self.base = plan_of(replace(self.subject, target="base"), examples, ON_BASE, batching=Batching.SOLO)
        self.plan = plan_of(self.subject, examples, (WEAK[batching],))
        run(self.base, replace(self.subject, target="base"), examples, runs, {}, lends=True)
        run(self.plan, self.subject, examples, runs, {})

    def images(self) -> Images:
        """As the base model's run keeps them, read by hand."""
        images = self.examples.images.clone()
        for path in sorted((self.runs / self.base.run_key / "broken").glob("*/*.safetensors")):
            kept = load_file(path)
            images[kept["rows"]] = kept["images"]
        return images

    def lend(self) -> None:
        lend(self.plan, self.subject, self.examples, self.runs, self.base)


@pytest.fixture(params=WEAK, ids=lambda batching: batching.value)
def trial(request, wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet], tmp_path: Path) -> Trial:
    return Trial(wrapped, digits[0].head(40), request.param, tmp_path)


def wrong_in_batches(plan: Plan, subject: Subject, examples: ExampleSet, images: Images) -> set[int]:
    return {
        row
        for rows in plan.batches()
        for row, label in zip(rows, subject.target_logits(images[rows]).argmax(1).tolist(), strict=True)
        if label != examples.labels[row]
    }


def test_hpm_loses_what_images_of_the_base_model_break_and_nothing_else(trial: Trial) -> None:
    before = record_of(trial.plan, trial.runs)
    trial.lend()
    after = with_lent(record_of(trial.plan, trial.runs))
    assert [step.name for step in after.steps] == [*(step.name for step in before.steps), LENT.name]
    standing = {row for row, stands in enumerate(before.standing()) if stands}
    wrong = wrong_in_batches(trial.plan, trial.subject, trial.examples, trial.images())
    fallen = standing & wrong
    assert len(fallen) > 3
    assert {row for row in standing if not after.standing()[row]} == fallen
    lent = after[LENT.name]
    misread = (trial.images() != trial.examples.images).flatten(1).any(1)
    assert all(lent.fooled[row] == misread[row] for row in standing)
    assert max(size for size in lent.distance if size is not None) <= float(trial.plan.threat.eps) + 1e-6
    assert lent.forward == sum(verdict != Verdict.SKIPPED for verdict in lent.verdict)
    assert after.run_key == before.run_key
    assert with_transfers([before]) == [before], "who was shown nothing"


def test_what_was_shown_once_is_not_shown_again(trial: Trial) -> None:
    trial.lend()
    written = (trial.runs / trial.plan.run_key / "lent.json").read_bytes()
    for path in (trial.runs / trial.base.run_key / "broken").glob("*/*.safetensors"):
        path.unlink()
    trial.lend()
    assert (trial.runs / trial.plan.run_key / "lent.json").read_bytes() == written


def test_a_torn_file_is_done_again(trial: Trial) -> None:
    trial.lend()
    path = trial.runs / trial.plan.run_key / "lent.json"
    written = path.read_bytes()
    path.write_bytes(written[: len(written) // 2])
    assert Journal(trial.runs, trial.plan).read_lent() is None
    trial.lend()
    assert path.read_bytes() == written


def test_a_missing_image_is_told_and_made_again_by_the_same_command(trial: Trial) -> None:
    path = next((trial.runs / trial.base.run_key / "broken").glob("*/*.safetensors"))
    image = path.read_bytes()
    path.unlink()
    with pytest.raises(IntegrityError, match="run the same command again"):
        trial.lend()
    assert Journal(trial.runs, trial.plan).read_lent() is None
    run(trial.base, replace(trial.subject, target="base"), trial.examples, trial.runs, {})
    assert not path.exists(), "nobody asked for it"
    run(trial.base, replace(trial.subject, target="base"), trial.examples, trial.runs, {}, lends=True)
    assert path.read_bytes() == image
    trial.lend()


def test_an_unfinished_run_is_shown_nothing(trial: Trial) -> None:
    next((trial.runs / trial.plan.run_key / "shards").glob("*/*.json")).unlink()
    trial.lend()
    assert not (trial.runs / trial.plan.run_key / "lent.json").exists()


def test_it_falls_again_in_another_process(trial: Trial) -> None:
    place = trial.plan, trial.subject, trial.examples, trial.runs, trial.base
    assert lent_again(*place) == 0, "nothing was shown yet"
    trial.lend()
    broken = record_of(trial.plan, trial.runs).lent.verdict.count(Verdict.BROKEN)
    assert lent_again(*place) == broken > 0


def test_an_image_that_breaks_nothing_any_more_is_found_out(trial: Trial) -> None:
    trial.lend()
    path = next((trial.runs / trial.base.run_key / "broken").glob("*/*.safetensors"))
    kept = load_file(path)
    clean = trial.examples.images[kept["rows"]]
    save_file({**kept, "images": clean}, path)
    with pytest.raises(IntegrityError, match=r"rows? .* standing"):
        lent_again(trial.plan, trial.subject, trial.examples, trial.runs, trial.base)


def test_the_composite_shows_them_too(wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet], tmp_path: Path) -> None:
    trial = Trial(wrapped, digits[0].head(40), Batching.JOINT, tmp_path)
    own = trial.examples.images.clone()
    for path in sorted((tmp_path / trial.plan.run_key / "broken").glob("*/*.safetensors")):
        kept = load_file(path)
        own[kept["rows"]] = kept["images"]
    trial.lend()
    whole = with_lent(record_of(trial.plan, tmp_path))
    fell = torch.tensor([step == LENT.name for step in whole.lost_to])
    composite = torch.where(fell[:, None, None, None], trial.images(), own)
    aggregate(trial.plan, trial.subject, trial.examples, tmp_path, trial.base)
    wrong = wrong_in_batches(trial.plan, trial.subject, trial.examples, composite)
    assert Journal(tmp_path, trial.plan).read_aggregates().composite == len(composite) - len(wrong)
