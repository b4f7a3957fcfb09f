"""A card as tables: what each evaluation left, what each step took, what was concluded."""

from __future__ import annotations

from typing import Any

from hpm_robustbench.ledger.card_bench import HpmBench, Verdict
from hpm_robustbench.ledger.card_control import CONTROLS
from hpm_robustbench.ledger.card_corruptions import CorruptionBench, CorruptionEvaluation
from hpm_robustbench.ledger.card_evaluation import Evaluation, Metric
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.provenance import fates
from hpm_robustbench.ledger.statistics import COUPLED
from hpm_robustbench.ledger.words import counted
from hpm_robustbench.report.tables import render_table
from hpm_robustbench.threat import Composition, Corruptions


def render_card(card: ModelCard) -> str:
    """A card's numbers as tables."""
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
    measured = any(evaluation.indicators for evaluation in bench.evaluations)
    beside = bench.tuning and not bench.control
    return [
        _summary(bench),
        _steps(bench),
        *([_doubts(bench)] if measured else []),
        *([_beside_controls(bench)] if beside else []),
        "\n".join(_words(bench)),
    ]


def _summary(bench: HpmBench) -> str:
    """One line per evaluation; cost is a multiple of AutoAttack's on the base model."""
    header = ["target", "clean %", "AutoAttack %", "sample-worst %", "95 % interval", "batch-worst %", "composite %"]
    return render_table(
        [*header, "cost"],
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


def _steps(bench: HpmBench) -> str:
    """One line per step of each evaluation."""
    return render_table(
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


def _doubts(bench: HpmBench) -> str:
    """One line per sign of attack failure that was looked for."""
    return render_table(
        ["target", "indicator of attack failure", "measured", "fires"],
        [
            [_target(evaluation), indicator.name, indicator.measured, "yes" if indicator.flag else "no"]
            for evaluation in bench.evaluations
            for indicator in evaluation.indicators
        ],
    )


def _words(bench: HpmBench) -> list[str]:
    """One sentence per verdict, spread over other batches, flag and report of the fine-tuning."""
    verdicts = [
        f"{_judged(bench, v)}: HPM {v.verdict} "
        f"(images that stand only on the base: {v.only_base}, only on HPM: {v.only_hpm}; p = {v.p_value:.3g})"
        for v in bench.verdicts
    ]
    coupled = [COUPLED] if any(e.largest_batch for e in bench.evaluations) else []
    spreads = [
        f"{_target(e)} in other batches, fewest to most: {', '.join(f'{k} {text} %' for k, text in e.spreads.items())}"
        for e in bench.evaluations
        if e.spreads
    ]
    flags = [f"flag: {_target(e)}: {flag}" for e in bench.evaluations for flag in e.all_flags]
    reports = [f"fine-tuning: {report}" for report in (bench.fine_tuning.reports if bench.fine_tuning else [])]
    return [*verdicts, *coupled, *spreads, *flags, *reports]


def _beside_controls(bench: HpmBench) -> str:
    """One line per control beside HPM in each batching; without C1, a sentence that says so."""
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


def card_rows(card: ModelCard) -> list[dict[str, Any]]:
    """Each image that fell in an evaluation, the step that took it, and the class it was then taken for."""
    bench = card.hpm_bench
    return [
        {"target": e.target, "batching": e.batching.value, "seed": e.seed, "row": row, "step": step, "class": taken_for}
        for e in (bench.evaluations if isinstance(bench, HpmBench) else [])
        for row, (step, taken_for) in sorted(fates(e.provenance or {}).items())
    ]


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


def _multiple(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:.2f}x"


def _text(metric: Metric | None) -> str:
    return metric.text if metric else "-"
