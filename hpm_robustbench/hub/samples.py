"""What happened to each image of a trial, as a table of one row per image, and as a dataset repository on the Hub."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.hub.publication import Publication
from hpm_robustbench.hub.readme import render_samples_page
from hpm_robustbench.ledger.card_bench import Samples
from hpm_robustbench.ledger.card_corruptions import CorruptionEvaluation
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.journal import Journal, load_plan
from hpm_robustbench.ledger.record import CLEAN, RunRecord, Verdict
from hpm_robustbench.ledger.transfers import with_transfers


def publish_samples(card: ModelCard, labels: Sequence[int], runs: Path, repo: str) -> tuple[Publication, ModelCard]:
    """The dataset of a trial, and the card that leads to it.

    Args:
        card: of the trial.
        labels: of its images, in their order.
        runs: folder of all runs.
        repo: where the dataset goes.

    Raises:
        UsageProblem: there is nothing to write Parquet with, or the runs are not there.
        InvalidInput: the card does not tell of the runs that are there.
    """
    _check_pyarrow()
    bench = card.hpm_bench
    assert bench is not None
    table, file = sample_table(card, labels, runs), f"{bench.model_id}.parquet"
    content = _parquet(table)
    sha256 = hashlib.sha256(content).hexdigest()
    samples = Samples(repo=repo, revision=f"sha256-{sha256[:16]}", file=file, sha256=sha256, rows=len(table))
    linked = card.model_copy(update={"hpm_bench": bench.model_copy(update={"samples": samples})})
    page = render_samples_page(linked, samples)
    return Publication(repo, {file: content, "README.md": page}, tag=samples.revision), linked


def sample_table(card: ModelCard, labels: Sequence[int], runs: Path) -> pd.DataFrame:
    """The trial as a table of one row per image; see ``publish_samples``.

    Its columns are index and label, and for each evaluation: whether it is right on the clean image, which step broke
    that first, if any did, and the verdict after each step.
    """
    bench = card.hpm_bench
    assert bench is not None
    columns: dict[str, Any] = {"index": range(len(labels)), "label": labels}
    evaluations: Sequence[Evaluation | CorruptionEvaluation] = bench.evaluations
    records = with_transfers([_record(runs, evaluation) for evaluation in evaluations])
    for evaluation, record in zip(evaluations, records, strict=True):
        _check_counts(evaluation, record)
        if record.n != len(labels):
            raise _other(evaluation, f"{record.n} images, and {len(labels)} labels")
        columns.update(_columns(f"{evaluation.target}_{evaluation.batching.value}", record))
    return pd.DataFrame(columns)


def _columns(prefix: str, record: RunRecord) -> Iterator[tuple[str, list[Any]]]:
    yield f"{prefix}.clean", record.clean_correct
    yield f"{prefix}.broken_by", [None if step == CLEAN else step for step in record.lost_to]
    for step in record.steps:
        if step.name != CLEAN:
            yield f"{prefix}.{step.name}", [Verdict(verdict).name.lower() for verdict in step.verdict]


def _record(runs: Path, evaluation: Evaluation | CorruptionEvaluation) -> RunRecord:
    """The run that an evaluation counts."""
    folder = runs / evaluation.run_key
    record = Journal(runs, load_plan(folder)).record() if folder.is_dir() else None
    if record is None:
        raise UsageProblem(
            wanted=f"the finished run {folder}, which holds what happened to each image",
            got="none" if not folder.is_dir() else "one that is not finished",
            next_step="run the trial again with the same --output, or leave --samples out",
        )
    return record


def _check_counts(evaluation: Evaluation | CorruptionEvaluation, record: RunRecord) -> None:
    """See that a card and a run count the same."""
    counts = [(sum(record.clean_correct), evaluation.clean.count)]
    if isinstance(evaluation, Evaluation):
        counts.append((sum(record.standing()), evaluation.robust.count))
    if any(found != told for found, told in counts):
        raise _other(evaluation, f"{counts}, found and told")


def _other(evaluation: Evaluation | CorruptionEvaluation, got: str) -> InvalidInput:
    return InvalidInput(
        wanted=f"the run {evaluation.run_key} to be the one that the card counts",
        got=got,
        next_step="run the trial again, so that card and runs are of one piece",
    )


def _check_pyarrow() -> None:
    try:
        import_module("pyarrow")
    except ImportError as error:
        raise UsageProblem(
            wanted="pyarrow, which writes Parquet for --samples",
            got="an environment without it",
            next_step="pip install 'hpm-robustbench[samples]'",
        ) from error


def _parquet(table: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    table.to_parquet(file, engine="pyarrow", index=False, compression="zstd")
    return file.getvalue()
