"""What a base model lost on one card counts for the verdicts of its other cards, where it makes them less certain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import ModelCard, build_card, write_card
from hpm_robustbench.ledger.rows import Row, tracks
from hpm_robustbench.ledger.same_network import tempered
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe

TUNING = Tuning(find_recipe("uniform-v1"))


@pytest.fixture(scope="module")
def make(spec, make_record):
    """A card with a base model and an HPM that lose about these shares of the images, the hardest to break alike."""

    def card(base: float, hpm: float, tuning: Tuning | None = None, spec=spec, fingerprint="5e" * 32) -> ModelCard:
        tried = spec.tuned(tuning.name) if tuning else spec
        records = [
            make_record(spec, "base", Batching.SOLO, clean=1, strengths=[base] * 4),
            make_record(tried, "hpm", Batching.SOLO, clean=1, strengths=[hpm] * 7),
        ]
        defence = {"beta": 0.5, "tuning": tuning.to_json()} if tuning else {"beta": 0.5}
        changed = [
            replace(
                record,
                plan=replace(
                    record.plan,
                    examples=replace(record.plan.examples, fingerprint=fingerprint),
                    defence=defence if record.plan.target == "hpm" else {},
                ),
            )
            for record in records
        ]
        return build_card(tried, changed, n_classes=10)

    return card


def rows_of(*cards: ModelCard) -> dict[str, Row]:
    return {row.bench.model_id: row for track in tracks(cards) for row in track.rows}


def test_a_verdict_is_not_more_certain_than_all_cards_of_the_network_allow(make, spec):
    """The fine-tuned HPM seems to hurt only because its base model met no attack of its own."""
    untuned, tuned = make(0.35, 0.35), make(0.2, 0.36, TUNING)
    name = tuned.hpm_bench.model_id
    alone, beside = rows_of(tuned)[name], rows_of(untuned, tuned)[name]
    assert (alone.verdict, alone.base_on_all_cards) == (tuned.hpm_bench.verdicts[0], None)
    assert alone.verdict.verdict == "hurts"
    assert beside.verdict.verdict == "undecided"
    assert beside.base_on_all_cards == untuned.hpm_bench.evaluation("base", Batching.SOLO).robust
    assert beside.without_hpm(beside.verdict) == beside.base_on_all_cards
    assert alone.p_holm < 0.05 < beside.p_holm
    assert rows_of(tuned, untuned) == rows_of(untuned, tuned)
    assert rows_of(untuned, tuned)[spec.name].verdict == untuned.hpm_bench.verdicts[0]


def test_hpm_gains_nothing_by_what_only_its_base_model_was_shown(make):
    tuned, untuned = make(0.3, 0.3, TUNING), make(0.5, 0.5)
    row = rows_of(untuned, tuned)[tuned.hpm_bench.model_id]
    assert row.base_on_all_cards.count < row.solo.robust.count - 50
    assert row.verdict.verdict == "undecided"


@pytest.mark.parametrize("other", ["images", "budget", "checkpoint", "control"])
def test_other_networks_images_and_budgets_do_not_count(make, spec, other):
    tuned = make(0.2, 0.35, TUNING)
    weights = replace(spec.weights, sha256=("0e" * 32,))
    strange = {
        "images": lambda: make(0.35, 0.35, fingerprint="5f" * 32),
        "budget": lambda: make(0.35, 0.35, spec=replace(spec, name="wider", threat=ThreatModel.parse("Linf", "8/255"))),
        "checkpoint": lambda: make(0.35, 0.35, spec=replace(spec, name="another", weights=weights)),
        # C1 answers in the place of the base model, which its card does not tell of.
        "control": lambda: make(0.35, 0.35, replace(TUNING, control=Control.FC)),
    }[other]()
    row = rows_of(strange, tuned)[tuned.hpm_bench.model_id]
    assert row.verdict == tuned.hpm_bench.verdicts[0]
    assert row.base_on_all_cards is None


def test_the_page_tells_both_verdicts_and_the_board_both_numbers(make, tmp_path):
    untuned, tuned = make(0.35, 0.35), make(0.2, 0.35, TUNING)
    for card in (untuned, tuned):
        write_card(card, tmp_path / "cards")
    build(tmp_path / "cards", tmp_path / "board")
    page = (tmp_path / f"board/cifar10/Linf/{tuned.hpm_bench.model_id}.html").read_text()
    assert "HPM SOLO: undecided" in page
    assert "By this card alone: hurts" in page
    stands = untuned.hpm_bench.evaluation("base", Batching.SOLO).robust.text
    assert f"on all cards {stands}%" in (tmp_path / "board/index.html").read_text()
    assert "By this card alone" not in (tmp_path / f"board/cifar10/Linf/{untuned.hpm_bench.model_id}.html").read_text()


@pytest.fixture(scope="module")
def bench(make):
    return make(0.25, 0.31).hpm_bench


@given(more=st.frozensets(st.integers(0, 399)))
def test_it_is_never_more_certain_and_never_turns(bench, more):
    [claim] = bench.verdicts
    base = bench.evaluation("base", Batching.SOLO)
    found = tempered(claim, bench, frozenset(base.fallen) | more)
    assert found.p_value >= claim.p_value
    assert found.verdict in ("undecided", claim.verdict)
    assert tempered(claim, bench, None) == claim == tempered(claim, bench, frozenset(base.fallen))


def test_comparisons_that_contradict_each_other_decide_nothing(bench):
    """HPM hurts by its own card, and would help beside all that the base model lost: surer still, and the other way."""
    [claim] = bench.verdicts
    assert claim.verdict == "hurts"
    everything = frozenset(range(claim.n))
    found = tempered(claim, bench, everything)
    assert found.verdict == "undecided"
    assert found.p_value == claim.p_value
