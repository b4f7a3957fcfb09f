"""A result for a benchmark's board: what the Hub's own parser reads, with no field that its documentation lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hub.eval_results import Benchmark, eval_results
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.threat import Batching

CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/*/*.json"))
DOCUMENTED = {"dataset", "value", "verifyToken", "date", "source", "notes"}
"""https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml"""


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_card_gives_one_entry_that_the_hub_reads(path):
    card = read_card(path)
    for evaluation in card.hpm_bench.evaluations:
        if evaluation.target == "hpm":
            text = eval_results(card, evaluation.batching, "me/model", Benchmark("bench/robust", "cifar10-linf"))
            [written] = yaml.safe_load(text)
            assert set(written) <= DOCUMENTED
            assert written["dataset"] == {"id": "bench/robust", "task_id": "cifar10-linf"}
            assert set(written["source"]) <= {"url", "name", "user", "org"} and "url" in written["source"]
            [entry] = parse_eval_result_entries([written])
            assert entry.value == evaluation.robust.value
            assert (
                f"HPM {evaluation.batching.name}, every attack" in entry.notes
                and f"{evaluation.n} images" in entry.notes
            )


def test_a_hostile_card_stays_one_value():
    card = read_card(CARDS[0])
    bench = card.hpm_bench.model_copy(
        update={"evaluations": [e.model_copy(update={"split": "a\n- dataset: x"}) for e in card.hpm_bench.evaluations]}
    )
    text = eval_results(card.model_copy(update={"hpm_bench": bench}), Batching.SOLO, "me/model", Benchmark("a/b", "c"))
    assert len(yaml.safe_load(text)) == 1


@pytest.mark.parametrize("text", ["robust", "a/b", "a/b:", "a/b:c d", "../b:c", "a/b:c\n", "a/b/c:d"])
def test_what_is_no_benchmark_is_refused(text):
    with pytest.raises(UsageProblem):
        Benchmark.parse(text)
    assert Benchmark.parse("a/b:c_1.d") == ("a/b", "c_1.d")
