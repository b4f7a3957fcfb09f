"""What was made of the base model is shown to HPM; what falls to it is counted another way."""

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
from hpm_robustbench.evaluation.lent import lend
from hpm_robustbench.evaluation.runner import run
from hpm_robustbench.evaluation.verification import verify
from hpm_robustbench.ledger.journal import Journal, overview
from hpm_robustbench.ledger.plan import AUTOATTACK, MSA, Plan, Step, plan_from_json
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
        self.plan = plan_of(self.subject, examples, (WEAK[batching],), lender=self.base.run_key)
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
        lend(self.plan, self.subject, self.examples, self.runs)


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
    with torch.no_grad():
        misread = trial.subject.base(trial.images()).argmax(1) != trial.examples.labels
    assert all(lent.fooled[row] == misread[row] for row in standing)
    assert max(size for size in lent.distance if size is not None) <= float(trial.plan.threat.eps) + 1e-6
    assert lent.forward == 2 * sum(verdict != Verdict.SKIPPED for verdict in lent.verdict), "HPM and its base"
    assert after.run_key == before.run_key
    assert with_transfers([before]) == [before], "who was shown nothing"


def test_a_run_is_finished_once_it_was_shown_what_broke_the_base_model(trial: Trial) -> None:
    state = {row["run"]: row["state"] for row in overview(trial.runs)}
    assert state == {trial.base.run_key: "finished", trial.plan.run_key: "unfinished"}
    trial.lend()
    aggregate(trial.plan, trial.subject, trial.examples, trial.runs)
    assert {row["state"] for row in overview(trial.runs)} == {"finished"}


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


def test_an_hpm_to_whom_nobody_lends_is_shown_nothing(trial: Trial) -> None:
    plan = replace(trial.plan, lender="")
    run(plan, trial.subject, trial.examples, trial.runs, {})
    lend(plan, trial.subject, trial.examples, trial.runs)
    assert record_of(plan, trial.runs).lent is None
    assert "lender" not in plan.to_json()
    assert plan_from_json(trial.plan.to_json()) == trial.plan


def test_another_trial_of_the_base_model_is_another_trial_of_hpm(trial: Trial) -> None:
    """What it lends may differ, so what it once lent is not taken for it."""
    other = replace(trial.base, batch_size=8)
    assert replace(trial.plan, lender=other.run_key).run_key != trial.plan.run_key


def verified(trial: Trial) -> int:
    run(trial.plan, trial.subject, trial.examples, trial.runs, {}, keep_images=True)
    return verify(trial.plan, trial.subject, trial.examples, trial.runs).broken_again


def test_what_fell_to_them_falls_again_in_every_way_to_ask(trial: Trial) -> None:
    own = verified(trial)
    trial.lend()
    after = with_lent(record_of(trial.plan, trial.runs))
    assert verified(trial) == sum(after.clean_correct) - sum(after.standing()) > own


def lent_file(trial: Trial) -> Path:
    """That by whose images most rows of HPM fell."""
    after = with_lent(record_of(trial.plan, trial.runs))
    fallen = torch.tensor([step == LENT.name for step in after.lost_to])
    files = (trial.runs / trial.base.run_key / "broken").glob("*/*.safetensors")
    return max(files, key=lambda path: int(fallen[load_file(path)["rows"]].sum()))


def test_an_image_that_breaks_nothing_any_more_is_found_out(trial: Trial) -> None:
    trial.lend()
    path = lent_file(trial)
    kept = load_file(path)
    save_file({**kept, "images": trial.examples.images[kept["rows"]]}, path)
    with pytest.raises(IntegrityError, match=r"transfer@base: rows? .* as submitted"):
        verified(trial)


def test_verifying_removes_no_evidence_and_says_how_it_is_made_anew(trial: Trial) -> None:
    trial.lend()
    path = lent_file(trial)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=r"remove that file, if it is there, and .*lent\.json"):
        verified(trial)
    assert path.exists()
    path.unlink()
    Journal(trial.runs, trial.plan).lent_path.unlink()
    run(trial.base, replace(trial.subject, target="base"), trial.examples, trial.runs, {}, lends=True)
    trial.lend()
    assert verified(trial) > 0
    assert path.read_bytes() == whole


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
    aggregate(trial.plan, trial.subject, trial.examples, tmp_path)
    wrong = wrong_in_batches(trial.plan, trial.subject, trial.examples, composite)
    assert Journal(tmp_path, trial.plan).read_aggregates().composite == len(composite) - len(wrong)
