"""What a page says will repeat a card is understood by the command line, and asks for the trial of that card."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from hpm_robustbench.commands.options import OF_A_MODEL
from hpm_robustbench.commands.run import run
from hpm_robustbench.ledger.card_bench import HpmBench, Weights
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.ledger.repetition import repetition
from hpm_robustbench.request.models import chosen_spec
from hpm_robustbench.request.options import run_options
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.zoo.spec import ModelSpec

CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/*/*.json"))


def understood(command: str) -> dict[str, Any]:
    """The options of ``hpm-bench run`` that a command gives."""
    program, name, *given = shlex.split(command.replace("\\\n", ""))
    assert (program, name) == ("hpm-bench", "run")
    return run.make_context("run", given, obj=given).params


def asked_for(command: str) -> tuple[ModelSpec, RunOptions]:
    asked = understood(command)
    for way in ("form", "workers", "verify"):
        asked.pop(way)
    of_the_model = {key: asked.pop(key) for key in OF_A_MODEL}
    return chosen_spec(asked.pop("model"), **of_the_model), run_options(**asked)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_card_of_the_board_can_be_asked_for_again(path: Path) -> None:
    bench = read_card(path).hpm_bench
    assert isinstance(bench, HpmBench)
    spec, options = asked_for(repetition(bench))
    solo = bench.headline
    tried = spec if options.tuning is None else spec.tuned(options.tuning.name)
    assert (tried.name, spec.dataset, spec.factory) == (bench.model_id, solo.dataset, bench.factory)
    assert (str(spec.threat.eps), spec.threat.norm) == (solo.threat.eps, solo.threat.norm)
    assert (options.n_ex, options.batch_size, options.seed) == (solo.n, solo.batch_size, solo.seed)
    assert options.defence_facts == bench.defence
    assert options.controls == bool(bench.controls)
    assert {b.value for b in options.batchings} == {e.batching.value for e in bench.evaluations if e.target == "hpm"}


@pytest.fixture
def tuned() -> HpmBench:
    bench = read_card(next(path for path in CARDS if path.stem == "CrownCnnA-Adversarial_uniform-v1")).hpm_bench
    assert isinstance(bench, HpmBench)
    return bench


def test_a_published_model_says_itself_what_it_is(tuned: HpmBench) -> None:
    where = f"hf:me/tuned@{'0' * 40}"
    published = tuned.model_copy(update={"notes": {**tuned.notes, "published": where}})
    given = understood(repetition(published))
    assert given["model"] == where
    assert (given["factory"], given["weights"]) == ("benchmarks.real_networks:cnn_a", "cifar_cnn_a_adv.model")
    refused = ("name", "head", "about", "dataset", "threat_model", "eps", "knobs", "recipe", "tune", "control")
    assert not any(given[option] for option in refused)
    known = published.model_copy(update={"factory": "robustbench:x", "weights": Weights(source="gdrive:x", sha256=[])})
    assert understood(repetition(known))["factory"] is None


def test_a_head_that_was_named_is_named_again(tuned: HpmBench) -> None:
    headed = tuned.model_copy(update={"notes": {**tuned.notes, "head": "last"}})
    assert understood(repetition(headed))["head"] == "last"


def test_what_was_an_object_in_python_is_called_again(tuned: HpmBench) -> None:
    bench = tuned.model_copy(update={"weights": Weights(source="memory:", sha256=["0" * 64])})
    called: dict[str, Any] = {}
    names = {
        "hpm_robustbench": type("face", (), {"benchmark": staticmethod(lambda *_, **options: called.update(options))}),
        **dict.fromkeys(("model", "x_test", "y_test", "x_train", "y_train")),
    }
    exec("from hpm_robustbench.hpm.config import HPMConfig", names)
    exec("from hpm_robustbench.request.options import tuning_of", names)
    exec(repetition(bench), names)
    said = {key: called.pop(key) for key in ("name", "dataset", "threat_model", "eps")}
    assert said == {"name": "CrownCnnA-Adversarial", "dataset": "cifar10", "threat_model": "Linf", "eps": "2/255"}
    options = RunOptions(**called)
    assert options.defence_facts == bench.defence
    assert (options.n_ex, options.controls) == (1000, True)
