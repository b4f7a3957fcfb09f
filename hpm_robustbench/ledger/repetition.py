"""How to repeat what a card tells of: a command, or a call where a model was only ever an object in Python."""

from __future__ import annotations

import shlex
from typing import Any

from hpm_robustbench.ledger.card_bench import Bench, HpmBench
from hpm_robustbench.ledger.card_corruptions import CorruptionBench, CorruptionEvaluation
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.threat import Composition


def repetition(bench: HpmBench | CorruptionBench) -> str:
    """The command that repeats the evaluations of a card, or the call; options that belong together in one line."""
    if bench.weights.source.startswith("memory:") and not _published(bench):
        return _call(bench)
    solo, own = bench.headline, not _published(bench)  # what was published says itself what it is and how it was made
    lines = [
        ["hpm-bench", "run", *_model_options(bench)],
        _threat_options(bench) if own else [],
        ["--n_ex", str(solo.n), "--batch_size", str(solo.batch_size), "--seed", str(solo.seed)],
        [part for e in bench.evaluations if e.target == "hpm" for part in _batching_options(e)],
        *(_defence_options(bench) if own else []),
    ]
    return " \\\n  ".join(shlex.join(line) for line in lines if line)


def _published(bench: Bench) -> str:
    return bench.notes.get("published", "")


def _threat_options(bench: HpmBench | CorruptionBench) -> list[str]:
    solo = bench.headline
    budget = ["--eps", solo.threat.eps] if isinstance(solo, Evaluation) else []
    return ["--dataset", solo.dataset, "--threat_model", bench.threat_name, *budget]


def _defence_options(bench: HpmBench | CorruptionBench) -> list[list[str]]:
    """How it was fine-tuned, and HPM's knobs."""
    return [
        [*bench.tuning_options, *(["--controls"] if _beside_controls(bench) else [])],
        [part for knob, value in sorted(bench.asked_knobs.items()) for part in ("--hpm", f"{knob}={_knob(value)}")],
    ]


def _beside_controls(bench: HpmBench | CorruptionBench) -> bool:
    return isinstance(bench, HpmBench) and bool(bench.controls)


def _model_options(bench: Bench) -> list[str]:
    source, by_function = bench.weights.source, bench.factory.startswith("python:")
    factory = ["--factory", bench.factory.removeprefix("python:")]
    weights = ["--weights", source.removeprefix("file:")] if source.startswith(("file:", "hf:")) else []
    if _published(bench):
        return ["--model", _published(bench), *([*factory, *weights] if by_function and weights else [])]
    if by_function and weights:
        return [*factory, "--name", bench.untuned_id, *_head_options(bench), *weights]
    return ["--model", bench.base_model, *weights]


def _head_options(bench: Bench) -> list[str]:
    return ["--head", bench.notes["head"]] if "head" in bench.notes else []


def _batching_options(evaluation: Evaluation | CorruptionEvaluation) -> list[str]:
    size = ["--joint-size", str(evaluation.batch_size)] if evaluation.largest_batch else []
    composed = [] if evaluation.composition is Composition.IID else ["--batches", evaluation.composition.value]
    return ["--batching", evaluation.batching.value, *size, *composed]


def _knob(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _call(bench: HpmBench | CorruptionBench) -> str:
    """The same from Python; its images and its model are whatever they were."""
    solo = bench.headline
    hpm = [e for e in bench.evaluations if e.target == "hpm"]
    joint = [e for e in hpm if e.largest_batch]
    budget = {"eps": solo.threat.eps} if isinstance(solo, Evaluation) else {}
    said: dict[str, Any] = {
        "name": bench.untuned_id,
        "dataset": solo.dataset,
        "threat_model": bench.threat_name,
        **budget,
        **({"head": bench.notes["head"]} if "head" in bench.notes else {}),
        "n_ex": solo.n,
        "batch_size": solo.batch_size,
        "seed": solo.seed,
        "batchings": tuple(e.batching.value for e in hpm),
        **({"joint_size": joint[0].batch_size, "composition": joint[0].composition.value} if joint else {}),
        "controls": _beside_controls(bench),
    }
    knobs = ", ".join(f"{knob}={value!r}" for knob, value in sorted(bench.asked_knobs.items()))
    lines = [*(f"{name}={value!r}," for name, value in said.items()), f"defence=HPMConfig({knobs}),"]
    if bench.tuning:
        lines.append(f"tuning=tuning_of({bench.tuning_options!r}, {solo.seed}),")
    images = "model, (x_test, y_test), (x_train, y_train),  # as before; without training images if there were none"
    return "\n".join(["hpm_robustbench.benchmark(", *(f"    {line}" for line in (images, *lines)), ")"])
