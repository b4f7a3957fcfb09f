"""What a terminal shows: cards, specs and facts as plain text tables. No torch."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hpm_robustbench.ledger.words import counted
from hpm_robustbench.threat import Composition, Corruptions
from hpm_robustbench.zoo.spec import HeadRule, ModelSpec

if TYPE_CHECKING:
    from hpm_robustbench.ledger.card_bench import HpmBench, Verdict
    from hpm_robustbench.ledger.card_corruptions import CorruptionBench, CorruptionEvaluation
    from hpm_robustbench.ledger.card_evaluation import Evaluation, Metric
    from hpm_robustbench.ledger.card_schema import ModelCard
    from hpm_robustbench.pipeline import Screen

_PACKAGES = ("torch", "torchvision", "robustbench", "pyautoattack", "timm", "numpy", "scipy", "pandas", "pydantic")
_NUMBER = re.compile(r"-|(\d[\d.,/-]*(e[+-]\d+)?[xkM]?)?")
"""A number with its unit, a share, an interval or none of these; no hash, though that may begin with a digit."""


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned text columns, right-aligned where every cell is a number."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [bool(rows) and all(map(_NUMBER.fullmatch, column[1:])) for column in columns]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  ".join(placed).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def render_card(card: ModelCard) -> str:
    """A card's numbers as tables."""
    from hpm_robustbench.ledger.card_corruptions import CorruptionBench

    bench = card.hpm_bench
    if bench is None:
        return f"{card.name}: clean {card.clean_acc} %, AutoAttack {card.autoattack_acc or '-'} %"
    first = bench.headline
    threat = f"{bench.threat_name} {card.eps or ''}".strip()
    images = counted(first.n, f"{first.dataset} {first.split} image")
    title = f"{bench.model_id} on {images}, {threat}"
    if isinstance(bench, CorruptionBench):
        return "\n\n".join([title, *_on_corrupted_images(bench)])
    return "\n\n".join([title, *_under_attack(bench)])


def _under_attack(bench: HpmBench) -> list[str]:
    """One line per evaluation, one per step, and the verdicts; cost is a multiple of AutoAttack's on the base model."""
    from hpm_robustbench.ledger.statistics import COUPLED

    summary = render_table(
        [
            "target",
            "clean %",
            "AutoAttack %",
            "sample-worst %",
            "95 % interval",
            "batch-worst %",
            "composite %",
            "cost",
        ],
        [
            [
                _target(evaluation),
                evaluation.clean.text,
                _text(evaluation.autoattack),
                evaluation.robust.text,
                f"{evaluation.robust.low:.2f}-{evaluation.robust.high:.2f}",
                _text(evaluation.batch_worst),
                _text(evaluation.composite),
                _multiple(bench.cost(evaluation)),
            ]
            for evaluation in bench.evaluations
        ],
    )
    steps = render_table(
        ["target", "step", "fooled", "broken", "standing %", "forward/image", "backward/image"],
        [
            [
                _target(evaluation),
                step.name,
                "-" if step.fooled is None else str(step.fooled),
                str(step.broken),
                step.robust.text,
                f"{step.forward:.0f}",
                f"{step.backward:.0f}",
            ]
            for evaluation in bench.evaluations
            for step in evaluation.steps
        ],
    )
    doubts = render_table(
        ["target", "indicator of attack failure", "measured", "fires"],
        [
            [_target(evaluation), indicator.name, indicator.measured, "yes" if indicator.flag else "no"]
            for evaluation in bench.evaluations
            for indicator in evaluation.indicators
        ],
    )
    verdicts = [
        f"{_judged(bench, v)}: HPM {v.verdict} "
        f"(images that stand only on the base: {v.only_base}, only on HPM: {v.only_hpm}; p = {v.p_value:.3g})"
        for v in bench.verdicts
    ]
    verdicts += [COUPLED] if any(e.largest_batch for e in bench.evaluations) else []
    spreads = [
        f"{_target(e)} in other batches, fewest to most: {', '.join(f'{k} {text} %' for k, text in e.spreads.items())}"
        for e in bench.evaluations
        if e.spreads
    ]
    flags = [f"flag: {_target(e)}: {flag}" for e in bench.evaluations for flag in e.all_flags]
    flags += [f"fine-tuning: {report}" for report in (bench.fine_tuning.reports if bench.fine_tuning else [])]
    measured = any(evaluation.indicators for evaluation in bench.evaluations)
    beside = [_beside_controls(bench)] if bench.tuning and not bench.control else []
    return [summary, steps, *([doubts] if measured else []), *beside, "\n".join([*verdicts, *spreads, *flags])]


def _beside_controls(bench: HpmBench) -> str:
    """One line per control beside HPM in each batching; without C1, a sentence that says so."""
    from hpm_robustbench.ledger.card_control import CONTROLS

    table = render_table(
        ["control", "beside", "clean %", "AutoAttack %", "sample-worst %", "only control", "only HPM", "p"],
        [
            [
                CONTROLS[control.control],
                f"hpm {control.batching.value}",
                control.clean.text,
                _text(control.autoattack),
                control.robust.text,
                str(control.only_control),
                str(control.only_hpm),
                f"{control.p_value:.3g}",
            ]
            for control in bench.controls
        ],
    )
    credited = any(control.control == "fc" for control in bench.controls)
    missing = "C1 is not on this card, so no gain can be credited to HPM; --controls puts it there."
    return "\n\n".join([*([table] if bench.controls else []), *([] if credited else [missing])])


def card_rows(card: ModelCard) -> list[dict[str, Any]]:
    """Each image that fell in an evaluation, the step that took it, and the class it was then taken for."""
    from hpm_robustbench.ledger.card_bench import HpmBench
    from hpm_robustbench.ledger.provenance import fates

    bench = card.hpm_bench
    return [
        {"target": e.target, "batching": e.batching.value, "seed": e.seed, "row": row, "step": step, "class": taken_for}
        for e in (bench.evaluations if isinstance(bench, HpmBench) else [])
        for row, (step, taken_for) in sorted(fates(e.provenance or {}).items())
    ]


def _on_corrupted_images(bench: CorruptionBench) -> list[str]:
    """One line per evaluation, then for each of them one per corruption with its severities."""
    summary = render_table(
        ["target", "clean %", "corruptions %", "images"],
        [[_target(e), e.clean.text, e.text, str(e.n)] for e in bench.evaluations],
    )
    details = [
        render_table(
            [_target(e), *(f"severity {s} %" for s in Corruptions.severities), "mean %"],
            [[kind, *(f"{e.percent(kind, s):.2f}" for s in (*Corruptions.severities, None))] for kind in e.right],
        )
        for e in bench.evaluations
    ]
    flags = [f"flag: {_target(e)}: {flag}" for e in bench.evaluations for flag in e.all_flags]
    return [summary, *details, *flags]


def _target(evaluation: Evaluation | CorruptionEvaluation) -> str:
    if evaluation.target == "base":
        return "base"
    size = f" B={evaluation.largest_batch}" if evaluation.largest_batch else ""
    composed = "" if evaluation.composition is Composition.IID else f" {evaluation.composition.value}"
    return f"hpm {evaluation.batching.value}{size}{composed}"


def _judged(bench: HpmBench, verdict: Verdict) -> str:
    """What a verdict is about, without the model."""
    evaluation = bench.evaluation("hpm", verdict.batching)
    return "" if evaluation is None else _target(evaluation).removeprefix("hpm ")


def screen_rows(screen: Screen) -> list[dict[str, Any]]:
    """What stood after a screen, one row per trial; of a matrix, one for each step of a trial."""
    from hpm_robustbench.ledger.coupling import standing
    from hpm_robustbench.ledger.matrix import matrix_rows

    if screen.is_matrix:
        return matrix_rows(screen.records, screen.in_turn)
    return [
        {
            "protocol": record.plan.protocol,
            "model": record.plan.model,
            "target": record.plan.target,
            "batching": record.plan.batching.value,
            "batch_size": min(record.plan.batch_size, record.n),
            "batches": record.plan.composition.value,
            "n": record.n,
            "clean": round(100 * sum(record.clean_correct) / record.n, 2),
            "at_most": round(100 * sum(standing(record, screen.records)) / record.n, 2),
            "passes_per_image": round(record.passes / record.n),
        }
        for record in screen.records
    ]


_FEW = "A screen, not a result: few attacks, upper bounds in percent, no card."
_BY_ITSELF = """\
A screen, not a result: counts of images, each attack by itself on all that are right without any. fooled: the attacked
surrogate was wrong; broken: the target was; only: by no other attack; beyond: broken, though it stood in the end of
the whole trial, if that is finished (the same command without --screen)."""


def render_screen(screen: Screen) -> str:
    """The same as a table that says what it is not."""
    rows = [{key.replace("_", " "): value for key, value in row.items()} for row in screen_rows(screen)]
    return f"{render_rows(rows, empty='')}\n\n{_BY_ITSELF if screen.is_matrix else _FEW}"


def _multiple(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:.2f}x"


def _text(metric: Metric | None) -> str:
    return metric.text if metric else "-"


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


def render_facts(facts: Mapping[str, Any]) -> str:
    """One ``name  value`` line per fact."""
    width = max(len(name) for name in facts)
    return "\n".join(f"{name.ljust(width)}  {'-' if value is None else value}" for name, value in facts.items())


def render_rows(rows: Sequence[Mapping[str, Any]], *, empty: str) -> str:
    """A table of equal-keyed rows, or ``empty``."""
    if not rows:
        return empty
    return render_table(
        list(rows[0]), [["-" if value is None else str(value) for value in row.values()] for row in rows]
    )


def software() -> dict[str, Any]:
    """Versions and devices, and what is missing; no secrets, no paths."""
    facts: dict[str, Any] = {"hpm-robustbench": version("hpm-robustbench"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing: pip install hpm-robustbench installs it"
    facts["device"] = _device() if find_spec("torch") else "unknown without torch"
    return facts


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
