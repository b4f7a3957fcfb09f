"""A card tells all that its own trial was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.card_bench import HpmBench
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.request.again import as_tried
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, Composition

CARDS = Path(__file__).parents[2] / "model_cards"


def bench_of(card: str) -> HpmBench:
    bench = read_card(CARDS / f"{card}.json").hpm_bench
    assert isinstance(bench, HpmBench)
    return bench


@pytest.mark.parametrize("path", sorted(CARDS.glob("*/*/*.json")), ids=lambda path: path.stem)
def test_every_card_of_the_board_is_asked_for_as_it_was(path: Path) -> None:
    bench = bench_of(str(path.relative_to(CARDS).with_suffix("")))
    options = as_tried(bench, RunOptions(output=Path("elsewhere"), device="meta"))
    assert options.defence_facts == bench.defence
    assert (options.n_ex, options.batch_size) == (bench.headline.n, bench.headline.batch_size)
    assert list(options.batchings) == [e.batching for e in bench.evaluations if e.target == "hpm"]
    assert (options.output, options.device, options.overwrite) == (Path("elsewhere"), "meta", True)


def test_batches_of_another_size_and_composition_are_asked_for() -> None:
    bench = bench_of("digits/Linf/Digits2026ResNet-Linf")
    evaluations = [
        e.model_copy(update={"batch_size": 48, "composition": Composition.SORTED})
        if e.batching is Batching.JOINT
        else e
        for e in bench.evaluations
    ]
    options = as_tried(bench.model_copy(update={"evaluations": evaluations}), RunOptions())
    assert (options.joint_size, options.composition) == (48, Composition.SORTED)


def test_words_that_nobody_could_have_said_are_refused() -> None:
    bench = bench_of("digits/Linf/Digits2026ResNet-Linf_uniform-v1")
    tuning = {**bench.tuning, "options": ["--recipe", "head", "--output", "/"]}
    with pytest.raises(UsageProblem, match="the options of a fine-tuning"):
        as_tried(bench.model_copy(update={"defence": {**bench.defence, "tuning": tuning}}), RunOptions())
    with pytest.raises(InvalidInput, match="gamma"):
        as_tried(bench.model_copy(update={"defence": {**bench.defence, "gamma": 1}}), RunOptions())
