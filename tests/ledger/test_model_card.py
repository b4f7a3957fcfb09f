"""Cards: what finished runs amount to, and which runs make no card."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.card_block import DOUBT
from hpm_robustbench.ledger.model_card import build_card, write_card
from hpm_robustbench.ledger.record import CLEAN
from hpm_robustbench.threat import Batching, ThreatModel

LEDGER = Path(__file__).parents[2] / "hpm_robustbench" / "ledger"


def test_the_cards_of_the_fixture_runs_are_the_committed_ones(golden, golden_cards, tmp_path):
    written = [write_card(card, tmp_path).relative_to(tmp_path) for card in golden_cards]
    assert written[0] == Path("cifar10/Linf/resnet4b_linf2.json")
    for path in written:
        assert (tmp_path / path).read_bytes() == (golden / "model_cards" / path).read_bytes()


def test_the_order_of_the_runs_does_not_matter(card, spec, records):
    again = build_card(spec, records[::-1], n_classes=10, notes=card.hpm_bench.notes)
    assert again.to_text() == card.to_text()


def test_counts_equal_an_independent_recount(card, records):
    for evaluation, record in zip(card.hpm_bench.evaluations, records, strict=True):
        table = np.array([step.verdict for step in record.steps[1:]])
        right = np.array(record.steps[0].verdict) == 1
        standing = right & np.logical_and.accumulate(table != 2, axis=0)
        assert evaluation.clean.count == right.sum()
        assert [step.robust.count for step in evaluation.steps] == standing.sum(axis=1).tolist()
        before = np.vstack([right, standing[:-1]])  # what fell earlier is nobody's success, though it is judged again
        assert [step.broken for step in evaluation.steps] == ((table == 2) & before).sum(axis=1).tolist()
        assert [step.attempted for step in evaluation.steps] == ((table != 4) & before).sum(axis=1).tolist()
        assert evaluation.robust.count == standing[-1].sum()


def test_the_top_is_robustbenchs_view_of_hpm_alone(card):
    base, solo, joint = card.hpm_bench.evaluations
    assert (card.clean_acc, card.autoattack_acc) == (f"{solo.clean.value:.2f}", f"{solo.autoattack.value:.2f}")
    assert card.external == f"{solo.robust.value:.2f}"
    assert float(card.external) < float(card.autoattack_acc)
    assert (card.eps, card.dataset, card.reported, card.unreliable) == ("2/255", "cifar10", "", True)
    assert (base.target, solo.batching, joint.batching) == ("base", Batching.SOLO, Batching.JOINT)


def test_joint_reports_both_aggregations_and_how_many_batch_mates_share_a_class(card):
    joint = card.hpm_bench.evaluation("hpm", Batching.JOINT)
    assert joint.batch_per_class == 12.8
    assert joint.robust.count < joint.batch_worst.count < joint.clean.count
    assert joint.autoattack is None


def test_the_verdict_compares_base_and_hpm_each_under_everything(card, records):
    base, solo, _ = records
    pairs = list(zip(base.standing(), solo.standing(), strict=True))
    verdict = card.hpm_bench.verdict(Batching.SOLO)
    assert verdict.only_base == sum(a and not b for a, b in pairs)
    assert verdict.only_hpm == sum(b and not a for a, b in pairs)
    assert verdict.verdict == "undecided"
    assert card.hpm_bench.verdict(Batching.JOINT).verdict == "hurts"


def test_no_verdict_without_the_base_model(spec, records):
    alone = build_card(spec, records[1:2], n_classes=10)
    assert alone.hpm_bench.verdicts == []
    assert alone.hpm_bench.verdict(Batching.SOLO) is None


def test_reference_batching_is_an_evaluation_of_its_own(spec, records, make_record):
    reference = make_record(spec, "hpm", Batching.REFERENCE, clean=0.77, strengths=[0.2] * 7)
    bench = build_card(spec, [reference, *records], n_classes=10).hpm_bench
    assert [(e.target, e.batching.value) for e in bench.evaluations] == [
        ("base", "solo"),
        ("hpm", "solo"),
        ("hpm", "reference"),
        ("hpm", "joint"),
    ]
    assert bench.evaluation("hpm", Batching.REFERENCE).batch_worst is None
    assert [v.batching.value for v in bench.verdicts] == ["solo", "reference", "joint"]


def test_a_base_model_under_another_budget_keeps_its_own_name(spec, make_record):
    wider = replace(spec, name="resnet4b_linf2_eps8-255", threat=ThreatModel.parse("Linf", "8/255"))
    record = make_record(wider, "hpm", Batching.SOLO, clean=0.77, strengths=[0.5] * 7)
    bench = build_card(wider, [record], n_classes=10).hpm_bench
    assert (bench.model_id, bench.base_model) == ("resnet4b_linf2_eps8-255", "resnet4b_linf2")


def test_external_is_absent_unless_msa_beats_autoattack(make_card, tmp_path):
    card = make_card("Steady", hpm=0.25)
    solo = card.hpm_bench.evaluation("hpm", Batching.SOLO)
    assert solo.robust == solo.autoattack
    assert "external" not in json.loads(write_card(card, tmp_path).read_text())


@pytest.mark.parametrize(
    ("flags", "unreliable"),
    [
        ({}, False),
        ({CLEAN: [f"{DOUBT}: the outputs look like probabilities"]}, True),
        ({"apgd-ce@hpm": [f"{DOUBT}: zero gradients"]}, True),
        ({"apgd-t@fc": [f"{DOUBT}: not a step of AutoAttack"]}, False),
        ({"fab-t@hpm": ["found nothing in a shard: returned its images unchanged"]}, False),
    ],
)
def test_unreliable_means_a_doubt_about_autoattack(spec, make_record, flags, unreliable):
    record = make_record(spec, "hpm", Batching.SOLO, clean=0.8, strengths=[0.3, 0.3, *[0.2] * 5], flags=flags)
    assert build_card(spec, [record], n_classes=10).unreliable is unreliable


def test_square_beating_the_gradient_attacks_is_a_doubt(spec, make_record):
    record = make_record(spec, "hpm", Batching.SOLO, clean=0.8, strengths=[0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2])
    card = build_card(spec, [record], n_classes=10)
    square = card.hpm_bench.evaluations[0].steps[3]
    assert square.broken > 1
    assert square.flags == [f"{DOUBT}: Square broke {square.broken} images that the gradient attacks had left standing"]
    assert card.unreliable


def test_local_folders_stay_private_and_hashes_are_kept(card, spec, records):
    assert card.hpm_bench.weights.source == "file:resnet4b.pth"
    assert "/home/someone" not in card.to_text()
    unhashed = replace(spec, weights=replace(spec.weights, sha256=()))
    hashed = build_card(unhashed, records, n_classes=10, weights_sha256=["1c" * 32])
    assert hashed.hpm_bench.weights.sha256 == ["1c" * 32]


def test_published_figures_of_the_base_model_are_kept_apart(card):
    published = card.hpm_bench.published
    assert (published.clean_acc, published.autoattack_acc) == ("77.20", "59.53")
    assert (published.reported, published.external) == (None, None)


# Runs that make no card


def test_runs_of_another_model_are_refused(spec, records):
    with pytest.raises(InvalidInput, match="finished runs of Other on cifar10"):
        build_card(replace(spec, name="Other"), records, n_classes=10)


def test_no_runs_are_refused(spec):
    with pytest.raises(InvalidInput, match="got no run"):
        build_card(spec, [], n_classes=10)


def test_runs_under_different_budgets_are_refused(spec, records, make_record):
    wider = replace(spec, threat=ThreatModel.parse("Linf", "8/255"))
    other = make_record(wider, "hpm", Batching.SOLO, clean=0.7, strengths=[0.5] * 7)
    with pytest.raises(InvalidInput, match="one threat model"):
        build_card(spec, [records[0], other], n_classes=10)


def test_two_configurations_are_refused(spec, records):
    _, solo, joint = records
    other = replace(joint, plan=replace(joint.plan, defence={"beta": 0.1}))
    with pytest.raises(InvalidInput, match="one configuration"):
        build_card(spec, [solo, other], n_classes=10)


def test_a_missing_headline_says_how_to_get_it(spec, records):
    with pytest.raises(InvalidInput, match="--batching solo"):
        build_card(spec, [records[0], records[2]], n_classes=10)


def test_the_same_run_twice_is_refused(spec, records):
    with pytest.raises(InvalidInput, match="two evaluations of one target"):
        build_card(spec, [records[1], records[1]], n_classes=10)


# The wall around the ledger


def test_the_ledger_never_reaches_torch():
    modules = sorted(path.stem for path in LEDGER.glob("[!_]*.py"))
    imports = ", ".join(f"hpm_robustbench.ledger.{module}" for module in modules)
    code = f"import sys, {imports}; print(*(m for m in ('torch', 'robustbench', 'timm') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
