"""Models that can be run: as a table, as a page, or one with all that is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpm_robustbench.ledger.words import counted
from hpm_robustbench.report.tables import render_table
from hpm_robustbench.zoo.spec import HeadRule, ModelSpec

_SPEC_HEADER = (
    "model",
    "dataset",
    "threat",
    "architecture",
    "parameters",
    "clean %",
    "AutoAttack %",
    "corruptions %",
    "licence",
)


def render_specs(specs: Sequence[ModelSpec]) -> str:
    """One line per model."""
    table = render_table(_SPEC_HEADER, [_spec_row(spec) for spec in specs])
    return f"{table}\n\n{counted(len(specs), 'model')}; accuracies are published ones, in percent"


def render_specs_markdown(specs: Sequence[ModelSpec]) -> str:
    """The same table for a page in Markdown."""
    rows = [_SPEC_HEADER, ["---"] * len(_SPEC_HEADER), *(_spec_row(spec) for spec in specs)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _spec_row(spec: ModelSpec) -> list[str]:
    paper = spec.paper
    return [
        spec.name,
        spec.dataset,
        str(spec.threat),
        paper.architecture,
        "-" if spec.n_params is None else _short_count(spec.n_params),
        paper.clean_acc or "-",
        paper.autoattack_acc or "-",
        paper.corruptions_acc or "-",
        paper.license,
    ]


def _short_count(n: int) -> str:
    return f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n / 1e3:.1f}k"


def spec_facts(spec: ModelSpec) -> dict[str, Any]:
    """Everything that is known of a model, flat."""
    paper = {key: value for key, value in vars(spec.paper).items() if value not in (None, "")}
    return {
        "model": spec.name,
        "dataset": spec.dataset,
        "threat_model": spec.threat.name,
        "eps": spec.threat.budget,
        "factory": spec.factory,
        "weights": str(spec.weights),
        "sha256": ", ".join(spec.weights.sha256) or None,
        "cache": spec.weights.cache or None,
        "head": spec.head.path or ", ".join(spec.head.members) or None,
        "preprocessing": spec.preprocessing,
        **_batch_effect(spec.head),
        **({"note": spec.head.note} if spec.head.note else {}),
        "n_params": spec.n_params,
        **paper,
    }


def _batch_effect(head: HeadRule) -> dict[str, str]:
    if head.batch_effect is None:
        return {}
    return {"batch_effect": f"{head.batch_effect:.1e} of the largest logit, in a batch of 8 with random weights"}
