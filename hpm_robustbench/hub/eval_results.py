"""A result for the board of a benchmark on the Hub: ``.eval_results/*.yaml``, as the Hub's own classes write it.

The Hub shows it where the dataset is a registered benchmark whose ``eval.yaml`` has that task, and checks the file when
it arrives. See https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined] # a list that mypy cannot read exports it

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.pages import label
from hpm_robustbench.ledger.words import counted
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.hub_file import HubFile

EVAL_RESULTS = ".eval_results/hpm-robustbench.yaml"
_TASK = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


class Benchmark(NamedTuple):
    """A dataset on the Hub that has a board, and one of its tasks."""

    dataset: str
    task: str

    @classmethod
    def parse(cls, text: str) -> Benchmark:
        """Read ``owner/name:task``.

        Raises:
            UsageProblem: it is not written so.
        """
        dataset, _, task = text.partition(":")
        if not _TASK.fullmatch(task):
            raise UsageProblem(
                wanted="a benchmark written as owner/name:task",
                got=repr(text[:160]),
                next_step="name a task as the dataset's eval.yaml does",
            )
        HubFile.in_repository(dataset)
        return cls(dataset, task)


def eval_results(card: ModelCard, batching: Batching, repo: str, benchmark: Benchmark) -> str:
    """The accuracy of the published classifier under every attack, or under all corruptions, in percent."""
    bench = card.hpm_bench
    assert bench is not None
    evaluation = bench.evaluation("hpm", batching)
    assert evaluation is not None
    if isinstance(evaluation, Evaluation):
        value, protocol = evaluation.robust.value, f"every attack of {evaluation.protocol}"
        under = f"{protocol}, {evaluation.threat.norm.value} {evaluation.threat.eps}"
    else:
        value, under = evaluation.corruptions_acc, "15 common corruptions, mean"
    entry = EvalResultEntry(
        dataset_id=benchmark.dataset,
        task_id=benchmark.task,
        value=value,
        source_url=f"https://huggingface.co/{repo}",
        source_name="Model card of hpm-robustbench",
        notes=f"{label(evaluation)}, {under}; {counted(evaluation.n, 'image')} of {evaluation.dataset} "
        f"{evaluation.split}, seed {evaluation.seed}; clean {evaluation.clean.text}",
    )
    return str(yaml_dump(eval_result_entries_to_yaml([entry])))
