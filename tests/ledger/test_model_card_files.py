"""Card files: what they must keep to, their published schema, and that RobustBench's own files are cards too."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.card_bench import Verdict
from hpm_robustbench.ledger.card_block import Name
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.ledger.model_card import ModelCard, json_schema, read_card, write_card
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.spec import check_name

SCHEMA = Path(__file__).parents[2] / "model_cards" / "schema" / "model_card-1.0.schema.json"

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


def test_a_written_card_reads_back_equal(card, tmp_path):
    path = write_card(card, tmp_path)
    assert read_card(path) == card
    assert read_card(path).to_text() == path.read_text()


SOLO, JOINT = "hpm_bench.evaluations.1", "hpm_bench.evaluations.2"
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
    ("hpm_bench.verdicts.0.verdict", "helps", "does not follow from the counts beside it"),
    ("hpm_bench.verdicts.0.p_value", 0.0001, "p_value 0.0001 does not follow from"),
    ("hpm_bench.verdicts.0.only_hpm", 10**9, "images are more than 400"),
    ("hpm_bench.verdicts.0.batching", "reference", "without the evaluations"),
    ("hpm_bench.verdicts", [], "not one verdict on each HPM"),
    (f"{SOLO}.dataset", "a/b", f"'{SOLO}.dataset'"),
    ("hpm_bench.verdicts.1.rule", "HPM helps.", "names a rule by which no card was ever judged"),
    (f"{SOLO}.fingerprint", "other", "share dataset, split, fingerprint, n, seed and threat"),
    (f"{SOLO}.seed", 1, "share dataset, split, fingerprint, n, seed and threat"),
    (f"{SOLO}.protocol", "standard", "the protocol of hpm is other than that of every card"),
    ("hpm_bench.evaluations.0.protocol", "quick", "the protocol of base is other than that of every card"),
    (f"{SOLO}.shard_size", 150, "shard_size is no whole number of batches"),
    (f"{JOINT}.batch_size", 1, "batch_per_class is not the size of the largest batch over a number of classes"),
    (f"{JOINT}.batch_per_class", 12.7, "batch_per_class is not the size of the largest batch"),
    (f"{JOINT}.batch_per_class", 128.0, "batch_per_class is not the size of the largest batch"),
    (f"{SOLO}.batching", "joint", f"'{SOLO}': Value error, batch_per_class belongs to JOINT"),
    (f"{SOLO}.batch_worst", Metric.from_count(250, 400).model_dump(), "batch_worst belongs to JOINT"),
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
    (f"{SOLO}.autoattack", Metric.from_count(311, 400).model_dump(), "autoattack is not what stands after the steps"),
    (f"{SOLO}.autoattack", None, "autoattack is not what stands after the steps"),
    (f"{SOLO}.steps.3.group", "msa", "AutoAttack is its four attacks on the target itself"),
    (f"{SOLO}.steps.4.group", "autoattack", "AutoAttack is its four attacks on the target itself"),
    (f"{SOLO}.steps.0.view", "soft", "AutoAttack is its four attacks on the target itself"),
    (f"{SOLO}.steps.1.parameters", {"n_iter": 1}, "AutoAttack is its four attacks on the target itself"),
    (f"{JOINT}.steps.0.group", "autoattack", "AutoAttack is its four attacks on the target itself"),
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


@pytest.mark.parametrize("kept", [[0], [1], [0, 1, 1]])
def test_each_hpm_has_one_verdict(card, tmp_path, kept):
    verdicts = [card.to_json()["hpm_bench"]["verdicts"][position] for position in kept]
    file = tmp_path / "card.json"
    file.write_text(json.dumps(edited(card, "hpm_bench.verdicts", verdicts)))
    with pytest.raises(InvalidInput, match="not one verdict on each HPM"):
        read_card(file)


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
