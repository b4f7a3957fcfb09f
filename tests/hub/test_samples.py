"""What happened to each image: as it was written down, one row per image, in a dataset that the card leads to."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import DatasetCard, hf_hub_download

from hpm_robustbench.case import Case, prepare
from hpm_robustbench.cli import cli
from hpm_robustbench.errors import InvalidInput, UploadFailed, UsageProblem
from hpm_robustbench.hub.samples import publish_samples, sample_table
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.ledger.plan import BasePlan
from hpm_robustbench.ledger.record import CLEAN, StepResult, Verdict
from hpm_robustbench.pipeline import conclude
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.builtin import DIGITS_MODEL, builtin_specs

pytest.importorskip("pyarrow")
REPO, DATA, FILE = "me/hpm-digits", "me/hpm-digits-samples", f"{DIGITS_MODEL}.parquet"
N = 24
STANDS, WRONG = None, "wrong on the clean image"


class Trial(NamedTuple):
    """A finished trial, and what its journals were told to hold: by evaluation, each image's fate."""

    output: Path
    case: Case
    fates: dict[str, list[str | None]]


def write_down(output: Path, plan: BasePlan, fates: list[str | None]) -> None:
    """A journal in which each image stands, is wrong from the start, or falls to the step that its fate names."""
    journal = Journal(output / "runs", plan).open({})
    names = [step.name for step in plan.steps]
    for index, rows in enumerate(plan.shards()):
        for name in [CLEAN, *names]:
            verdicts = tuple(int(verdict(name, names, fates[row])) for row in rows)
            as_zero, nothing = (0,) * len(rows), (None,) * len(rows)
            journal.write(index, StepResult(name, tuple(rows), verdicts, as_zero, nothing))


def verdict(step: str, names: list[str], fate: str | None) -> Verdict:
    if step == CLEAN:
        return Verdict.CLEAN_WRONG if fate == WRONG else Verdict.STANDING
    if fate == WRONG or (fate is not STANDS and names.index(step) > names.index(fate)):
        return Verdict.SKIPPED
    return Verdict.BROKEN if step == fate else Verdict.STANDING


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    output, chance = tmp_path_factory.mktemp("tried"), random.Random(0)
    [spec] = builtin_specs()
    case = prepare(spec, RunOptions(n_ex=N, batch_size=8, joint_size=8, batchings=tuple(Batching), output=output))
    fates = {}
    for plan, _ in case.trials:
        drawn = [chance.choice([STANDS, WRONG, *(step.name for step in plan.steps)]) for _ in range(N)]
        fates[f"{plan.target}_{plan.batching.value}"] = drawn
        write_down(output, plan, drawn)
    conclude(case)
    return Trial(output, case, fates)


@pytest.fixture
def trial(tried: Trial, tmp_path: Path) -> Trial:
    """The same in a folder that a test may change."""
    return tried._replace(output=Path(shutil.copytree(tried.output, tmp_path / "output")))


@pytest.fixture
def push(trial: Trial) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        given = ["push", "--repo", REPO, "--samples", DATA, "--output", str(trial.output), "--format", "json"]
        return CliRunner().invoke(cli, [*given, *arguments], catch_exceptions=False)

    return run


def card_of(trial: Trial):
    return read_card(trial.output / "model_cards" / "digits" / "Linf" / f"{DIGITS_MODEL}.json")


def test_each_row_tells_the_fate_of_its_image(trial):
    labels = trial.case.test.labels.tolist()
    table = sample_table(card_of(trial), labels, trial.output / "runs")
    assert (table["index"].tolist(), table["label"].tolist()) == (list(range(N)), labels)
    for plan, _ in trial.case.trials:
        prefix, names = f"{plan.target}_{plan.batching.value}", [step.name for step in plan.steps]
        fates = trial.fates[prefix]
        assert table[f"{prefix}.clean"].tolist() == [fate != WRONG for fate in fates]
        broken_by = [None if pd.isna(step) else step for step in table[f"{prefix}.broken_by"]]
        assert broken_by == [None if fate == WRONG else fate for fate in fates]
        for name in names:
            expected = [verdict(name, names, fate).name.lower() for fate in fates]
            assert table[f"{prefix}.{name}"].tolist() == expected
    assert len(table.columns) == 2 + sum(2 + len(plan.steps) for plan, _ in trial.case.trials)


def test_the_card_leads_to_the_dataset_by_revision_and_sha256(hub, push, trial, tmp_path):
    sent = json.loads(push().stdout)
    held = hub.head(REPO)
    link = json.loads(held["hpm_card.json"])["hpm_bench"]["samples"]
    content = hub.head(f"datasets/{DATA}")[FILE]
    sha256 = hashlib.sha256(content).hexdigest()
    assert link == {"repo": DATA, "revision": f"sha256-{sha256[:16]}", "file": FILE, "sha256": sha256, "rows": N}
    page = held["README.md"].decode()
    assert f"datasets/{DATA}/blob/{link['revision']}/{FILE}" in page and sha256 in page
    path = hf_hub_download(DATA, FILE, repo_type="dataset", revision=link["revision"], cache_dir=tmp_path / "other")
    table = pd.read_parquet(path)
    assert table.equals(pd.read_parquet(io.BytesIO(content))) and len(table) == N
    stands = 100 * (table["hpm_solo.clean"] & table["hpm_solo.broken_by"].isna()).mean()
    assert f"{stands:.2f}" == card_of(trial).hpm_bench.headline.robust.text
    about = DatasetCard(hub.head(f"datasets/{DATA}")["README.md"].decode())
    assert about.data.configs == [{"config_name": "default", "data_files": FILE}]
    assert f"mean())  # {stands:.2f}\n" in about.content
    assert sent["samples"]["tag"] == link["revision"]


def test_a_dry_run_shows_both_and_opens_no_connection(hub, push, monkeypatch):
    with monkeypatch.context() as blocked:
        blocked.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
        shown = json.loads(push("--dry-run").stdout)
    assert hub.asked == []
    push()
    for part, repo in [(shown, REPO), (shown["samples"], f"datasets/{DATA}")]:
        sent = {path: hashlib.sha256(c).hexdigest() for path, c in hub.head(repo).items() if path != ".gitattributes"}
        assert {row["path"]: row["sha256"] for row in part["files"]} == sent


def test_a_folder_takes_both(hub, push, tmp_path):
    shown = json.loads(push("--folder", str(tmp_path)).stdout)
    assert hub.asked == []
    for part, place in [(shown, tmp_path / REPO), (shown["samples"], tmp_path / "datasets" / DATA)]:
        written = {
            path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in place.rglob("*")
            if path.is_file()
        }
        assert {row["path"]: row["sha256"] for row in part["files"]} == written
    told = push("--folder", str(tmp_path), "--format", "human").stdout
    assert f"datasets/{DATA}; upload it first, under the tag {shown['samples']['tag']} that the model" in told


def test_a_second_time_nothing_is_sent_and_other_results_get_another_tag(hub, push, trial):
    push()
    assert not json.loads(push().stdout)["changed"]
    data = hub.repositories[f"datasets/{DATA}"]
    assert (len(data.messages), len(data.tags), len(hub.repositories[REPO].messages)) == (2, 1, 2)
    [(old, commit)] = data.tags.items()
    before = data.commits[commit][FILE].sha256
    for plan, _ in trial.case.trials:
        write_down(trial.output, plan, [STANDS] * N)
    conclude(replace(trial.case, output=trial.output))
    new = json.loads(push().stdout)["samples"]["tag"]
    assert set(data.tags) == {old, new} and data.commits[data.tags[old]][FILE].sha256 == before
    assert json.loads(hub.head(REPO)["hpm_card.json"])["hpm_bench"]["samples"]["revision"] == new


def test_a_break_between_the_two_is_made_good_by_repeating(hub, push, loopback):
    hub.faults = [loopback.Fault("/tag/", 503, times=99)]
    with pytest.raises(UploadFailed, match="503"):
        push()
    assert REPO not in hub.repositories
    hub.faults = []
    assert json.loads(push().stdout)["changed"]
    assert len(hub.repositories[f"datasets/{DATA}"].messages) == 2


def test_a_private_model_has_private_samples(hub, push):
    push("--private")
    assert hub.repositories[REPO].private and hub.repositories[f"datasets/{DATA}"].private


def test_other_peoples_data_and_tags_are_left_alone(hub, push, loopback):
    tag = json.loads(push("--dry-run").stdout)["samples"]["tag"]
    push()
    data = hub.repositories[f"datasets/{DATA}"]
    data.tags[tag] = next(iter(data.commits))
    with pytest.raises(UsageProblem, match="somebody has given to others"):
        push()
    data.commit("main", {"train.csv": loopback.Blob(b"a,b", False)}, "theirs")
    with pytest.raises(UsageProblem, match=r"another dataset's train\.csv; nothing was sent"):
        push()


def test_a_proposal_or_a_place_that_is_none_is_refused_at_once(hub, push):
    with pytest.raises(UsageProblem, match="--samples with --create-pr"):
        push("--create-pr")
    for name in ("data", "../x/y", "me/a--b", "me/x@main"):
        with pytest.raises(UsageProblem):
            push("--samples", name)
    assert hub.asked == []


def test_runs_that_are_gone_or_others_are_refused(trial):
    card, labels, runs = card_of(trial), trial.case.test.labels.tolist(), trial.output / "runs"
    with pytest.raises(InvalidInput, match=f"{N} images, and {N - 1} labels"):
        publish_samples(card, labels[1:], runs, DATA)
    plan = trial.case.trials[0][0]
    write_down(trial.output, plan, [WRONG] * N)
    with pytest.raises(InvalidInput, match="to be the one that the card counts"):
        publish_samples(card, labels, runs, DATA)
    next((runs / plan.run_key / "shards").rglob("*.json")).unlink()
    with pytest.raises(UsageProblem, match="one that is not finished"):
        publish_samples(card, labels, runs, DATA)
    shutil.rmtree(runs)
    with pytest.raises(UsageProblem, match=r"got none\. Next: run the trial again"):
        publish_samples(card, labels, runs, DATA)


def test_without_pyarrow_the_extra_is_named(trial, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageProblem, match=r"pip install 'hpm-robustbench\[samples\]'"):
        publish_samples(card_of(trial), trial.case.test.labels.tolist(), trial.output / "runs", DATA)
