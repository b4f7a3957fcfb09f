"""Cards: what finished runs amount to, what a file must keep to, and that RobustBench's own files are cards too."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.card_bench import Verdict
from hpm_robustbench.ledger.card_evaluation import DOUBT, Metric, Name
from hpm_robustbench.ledger.model_card import ModelCard, build_card, json_schema, read_card, write_card
from hpm_robustbench.ledger.record import CLEAN
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.zoo.spec import check_name

SCHEMA = Path(__file__).parents[2] / "model_cards" / "schema" / "model_card-1.0.schema.json"
LEDGER = Path(__file__).parents[2] / "hpm_robustbench" / "ledger"

CARMON = {
    "link": "https://arxiv.org/abs/1905.13736",
    "name": "Unlabeled Data Improves Adversarial Robustness",
    "authors": "Yair Carmon, Aditi Raghunathan",
    "additional_data": True,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "NeurIPS 2019",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "89.69",
    "reported": "62.5",
    "autoattack_acc": "59.53",
    "unreliable": False,
}


def edited(card: ModelCard, path: str, value: object) -> dict:
    """The card's JSON with one value replaced; ``path`` is dotted, numbers are list positions."""
    data = card.to_json()
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = data
    for part in parents:
        place = place[part]
    place[last] = value
    return data


# What the runs amount to


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
        assert [step.broken for step in evaluation.steps] == ((table == 2) & right).sum(axis=1).tolist()
        assert [step.attempted for step in evaluation.steps] == ((table != 4) & right).sum(axis=1).tolist()
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


def test_the_verdict_compares_base_under_autoattack_with_hpm_under_everything(card, records):
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
        ({"fab-t@hpm": ["returned every image unchanged"]}, False),
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


# Files


def test_a_written_card_reads_back_equal(card, tmp_path):
    path = write_card(card, tmp_path)
    assert read_card(path) == card
    assert read_card(path).to_text() == path.read_text()


SOLO = "hpm_bench.evaluations.1"
BROKEN_CARDS = [
    ("clean_acc", "99.00", "clean_acc is '99.00', but hpm_bench says '77.75'"),
    ("external", None, "leave the key out instead of writing null"),
    ("external", "12.00", "external is '12.00'"),
    ("autoattack_acc", "64.50 %", "'autoattack_acc'"),
    ("unreliable", False, "unreliable is False"),
    ("eps", "8/255", "eps is '8/255'"),
    ("additional_data", "yes", "'additional_data'"),
    ("hpm_bench.surprise", 1, "'hpm_bench.surprise'"),
    ("hpm_bench.schema_version", "9.9", "'hpm_bench.schema_version'"),
    ("hpm_bench.model_id", "../../etc/passwd", "'hpm_bench.model_id'"),
    ("hpm_bench.model_id", "a..b", "'hpm_bench.model_id'"),
    ("hpm_bench.weights.sha256", ["abc"], "'hpm_bench.weights.sha256.0'"),
    ("hpm_bench.evaluations", [], "'hpm_bench.evaluations'"),
    ("hpm_bench.verdicts.0.verdict", "helps", "does not follow from only_base and only_hpm"),
    ("hpm_bench.verdicts.0.p_value", 0.0001, "does not follow from only_base and only_hpm"),
    ("hpm_bench.verdicts.0.only_hpm", 10**9, "images are more than 400"),
    ("hpm_bench.verdicts.0.batching", "reference", "without the evaluations"),
    (f"{SOLO}.dataset", "a/b", f"'{SOLO}.dataset'"),
    (f"{SOLO}.fingerprint", "other", "share dataset, split, fingerprint, n and threat"),
    (f"{SOLO}.batching", "joint", f"'{SOLO}': Value error, batch_worst and batch_per_class belong to JOINT"),
    (f"{SOLO}.n", 399, "a metric counts other than the 399 images"),
    (f"{SOLO}.clean.count", 401, "count 401 is above n 400"),
    (f"{SOLO}.clean.count", 310, "77.75 (73.42 to 81.55) does not follow from 310 of 400"),
    (f"{SOLO}.clean.value", float("nan"), f"'{SOLO}.clean.value'"),
    (f"{SOLO}.threat.eps", "8/255", "differ"),
    (f"{SOLO}.threat.eps", "1e999999999", f"'{SOLO}.threat.eps'"),
    (f"{SOLO}.threat.eps", "1/0", "is no number"),
    (f"{SOLO}.steps.0.attempted", 3, "broken and 0 invalid of 3 attempted"),
    (f"{SOLO}.steps.6.robust", Metric.from_count(200, 400).model_dump(), "robust is not what stands"),
    (f"{SOLO}.steps.1.robust", Metric.from_count(300, 400).model_dump(), "more images stand after a step"),
    (f"{SOLO}.autoattack", Metric.from_count(5, 400).model_dump(), "a metric lies outside"),
]


@pytest.mark.parametrize(("path", "value", "message"), BROKEN_CARDS)
def test_a_broken_card_is_refused_by_field_and_problem(card, tmp_path, path, value, message):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(edited(card, path, value)))
    with pytest.raises(InvalidInput) as refusal:
        read_card(file)
    assert message in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert refusal.value.exit_code == 5


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"link": "\\ud800"}'])
def test_a_file_that_is_no_card_is_refused(tmp_path, content):
    file = tmp_path / "card.json"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"card\.json as a model card"):
        read_card(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="No such file"):
        read_card(tmp_path / "none.json")


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_metric_belongs_to_one_count_only(case):
    count, n = case
    metric = Metric.from_count(count, n)
    assert metric.low <= metric.value <= metric.high
    with pytest.raises(ValidationError):
        Metric.model_validate({**metric.model_dump(), "count": count - 1 if count else 1})


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_verdict_agrees_with_itself_whatever_the_rows(pairs):
    base, hpm = zip(*pairs, strict=True)
    verdict = Verdict.of(base, hpm, Batching.SOLO)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    if verdict.verdict != "undecided":
        assert (sum(hpm) > sum(base)) == (verdict.verdict == "helps")


@given(st.text("aZ0._-/ é", max_size=6) | st.just("a" * 128) | st.just("a" * 129))
def test_cards_accept_the_names_that_specs_accept(name):
    def accepted(check) -> bool:
        try:
            check(name)
        except (ValidationError, UsageProblem):
            return False
        return True

    assert accepted(TypeAdapter(Name).validate_python) == accepted(lambda text: check_name("model", text))


# The published schema


def test_the_published_schema_is_the_generated_one():
    assert json.loads(SCHEMA.read_text()) == json_schema()


def test_the_schema_accepts_the_card_and_refuses_null_in_external(card):
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(card.to_json())
    validator.validate(CARMON)
    assert not validator.is_valid({**CARMON, "external": None})
    assert not validator.is_valid(edited(card, "hpm_bench.surprise", 1))


# RobustBench's own files


@pytest.mark.parametrize(
    "entry",
    [
        CARMON,
        {**CARMON, "eps": None, "autoattack_acc": "59.53", "corruptions_acc": "71.5", "corruptions_mce": "54.8"},
        {key: value for key, value in CARMON.items() if key != "unreliable"} | {"eps": "0.031", "reported": "null"},
    ],
)
def test_robustbench_entries_are_cards(tmp_path, entry):
    file = tmp_path / "Carmon2019Unlabeled.json"
    file.write_text(json.dumps(entry))
    assert read_card(file).to_json() == entry


def test_every_published_entry_of_robustbench_is_a_card():
    if "HPM_BENCH_REAL_DATA" not in os.environ:
        pytest.skip("HPM_BENCH_REAL_DATA is not set, so RobustBench's published figures are not at hand")
    table = Path(os.environ["HPM_BENCH_REAL_DATA"]) / "robustbench_published.csv"
    with table.open(newline="") as stream:
        entries = [model_info(row) for row in csv.DictReader(stream)]
    assert len(entries) == 236
    for entry in entries:
        assert ModelCard.model_validate_json(json.dumps(entry)).to_json() == entry


def model_info(row: dict[str, str]) -> dict:
    """One line of the table in the shape of RobustBench's file."""
    entry = {key: value for key, value in row.items() if value and key not in ("threat_model", "model", "title")}
    for key in ("additional_data", "unreliable"):
        if key in entry:
            entry[key] = entry[key] == "True"
    defaults = {"name": row["title"], "eps": None, "reported": "", "authors": "", "venue": "", "link": ""}
    return {**defaults, **entry, "number_forward_passes": int(row["number_forward_passes"])}


# The wall around the ledger


def test_the_ledger_never_reaches_torch():
    modules = sorted(path.stem for path in LEDGER.glob("[!_]*.py"))
    imports = ", ".join(f"hpm_robustbench.ledger.{module}" for module in modules)
    code = f"import sys, {imports}; print(*(m for m in ('torch', 'robustbench', 'timm') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
