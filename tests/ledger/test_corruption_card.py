"""Cards of corruption tracks: what they hold, what they refuse, and where the board shows them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import jsonschema
import pytest

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.card_corruptions import mean_accuracy
from hpm_robustbench.ledger.corruption_rows import corruption_tracks
from hpm_robustbench.ledger.leaderboard import build, check
from hpm_robustbench.ledger.model_card import (
    build_corruption_card,
    check_replaceable,
    json_schema,
    read_card,
    write_card,
)
from hpm_robustbench.ledger.repetition import repetition
from hpm_robustbench.report.cards import render_card
from hpm_robustbench.threat import Batching, Corruptions

SOLO = "hpm_bench.evaluations.1"


def edited(card, path: str, value: object) -> dict:
    data = card.to_json()
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = data
    for part in parents:
        place = place[part]
    place[last] = value
    return data


def test_the_top_is_robustbenchs_view_of_hpm_alone(corrupted_card):
    written = corrupted_card.to_json()
    solo = corrupted_card.hpm_bench.headline
    assert (written["clean_acc"], written["corruptions_acc"], written["eps"]) == ("95.00", solo.text, None)
    assert not {"autoattack_acc", "external", "unreliable"} & set(written)


def test_a_written_card_reads_back_equal_from_its_place(corrupted_card, tmp_path):
    path = write_card(corrupted_card, tmp_path)
    assert path == tmp_path / "cifar10" / "corruptions" / "Hendrycks2020AugMix_WRN.json"
    assert read_card(path) == corrupted_card
    assert read_card(path).to_text() == path.read_text()
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(path.read_text()))


def test_accuracies_follow_from_the_counts(corrupted_card):
    solo = corrupted_card.hpm_bench.headline
    assert solo.right["gaussian_noise"][0] == 360
    assert solo.right["jpeg_compression"][4] == 100
    assert (solo.percent("gaussian_noise", 1), solo.percent("jpeg_compression", 5)) == (90.0, 25.0)
    means = [solo.percent(kind) for kind in Corruptions.kinds]
    assert sum(means) / len(means) == pytest.approx(mean_accuracy(solo.right, 400))
    assert solo.corruptions_acc == round(mean_accuracy(solo.right, 400), 2)


def test_published_figures_of_the_base_model_are_kept_apart(corrupted_card):
    published = corrupted_card.hpm_bench.published
    assert (published.clean_acc, published.corruptions_acc, published.reported) == ("95.08", "88.82", None)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("corruptions_acc", "99.00", "corruptions_acc is '99.00', but hpm_bench says"),
        ("eps", "8/255", "eps is '8/255'"),
        ("autoattack_acc", "50.00", "autoattack_acc is '50.00'"),
        ("hpm_bench.surprise", 1, "'hpm_bench.surprise'"),
        ("hpm_bench.model_id", "../../etc/passwd", "'hpm_bench.model_id'"),
        (f"{SOLO}.right.fog", [1, 2, 3, 4], f"'{SOLO}.right.fog'"),
        (f"{SOLO}.right.fog", [1, 2, 3, 4, 401], "other than the 400 images"),
        (f"{SOLO}.right.fog", [1, 2, 3, 4, -1], f"'{SOLO}.right.fog.4'"),
        (f"{SOLO}.right.fogg", [1, 2, 3, 4, 5], "the 15 corruptions"),
        (f"{SOLO}.corruptions_acc", 12.0, "does not follow from right"),
        (f"{SOLO}.batching", "joint", "belongs to JOINT"),
        (f"{SOLO}.fingerprint", "other", "share dataset, split, fingerprint, n and seed"),
        (f"{SOLO}.seed", 1, "share dataset, split, fingerprint, n and seed"),
        (f"{SOLO}.target", "base", "two evaluations of one target"),
    ],
)
def test_a_broken_card_is_refused_by_field_and_problem(corrupted_card, tmp_path, path, value, message):
    file = tmp_path / "card.json"
    file.write_text(json.dumps(edited(corrupted_card, path, value)))
    with pytest.raises(InvalidInput) as refusal:
        read_card(file)
    assert message in str(refusal.value)


def test_the_headline_is_needed(make_corrupted_card, corrupted_card):
    data = corrupted_card.to_json()
    data["hpm_bench"]["evaluations"] = data["hpm_bench"]["evaluations"][:1]
    with pytest.raises(ValueError, match="no SOLO evaluation of HPM"):
        type(corrupted_card).model_validate_json(json.dumps(data))


def test_runs_of_another_model_are_refused(spec):
    with pytest.raises(InvalidInput, match="got no run"):
        build_corruption_card(replace(spec, threat=Corruptions()), [], n_classes=10)


def test_a_card_of_other_images_is_not_replaced_unasked(corrupted_card, tmp_path):
    path = write_card(corrupted_card, tmp_path)
    bench = corrupted_card.hpm_bench
    trials = [evaluation.trial for evaluation in bench.evaluations]
    check_replaceable(path, trials, bench.defence, bench.weights.sha256)
    with pytest.raises(UsageProblem, match="--overwrite"):
        check_replaceable(path, [(*trials[0][:-1], "other"), *trials[1:]], bench.defence, bench.weights.sha256)
    with pytest.raises(UsageProblem, match="other weights"):
        check_replaceable(path, trials, bench.defence, ["0" * 64])


def test_the_command_repeats_the_card(corrupted_card):
    assert repetition(corrupted_card.hpm_bench) == (
        "hpm-bench run --model Hendrycks2020AugMix_WRN \\\n"
        "  --dataset cifar10 --threat_model corruptions \\\n"
        "  --n_ex 400 --batch_size 100 --seed 0 \\\n"
        "  --batching solo --batching joint --joint-size 128 \\\n"
        "  --hpm beta=0.5"
    )


def test_a_terminal_shows_every_corruption_of_every_target(corrupted_card):
    lines = render_card(corrupted_card).splitlines()
    assert lines[0] == "Hendrycks2020AugMix_WRN on 400 cifar10 test images, corruptions"
    for kind in Corruptions.kinds:
        assert sum(line.split()[:1] == [kind] for line in lines) == 3
    assert any(line.split()[:4] == ["hpm", "joint", "B=128", "95.00"] for line in lines)


# The board


def test_rank_follows_the_mean_then_the_name(make_corrupted_card):
    cards = [make_corrupted_card(name, strength=s) for name, s in [("Mid", 0.8), ("B", 0.9), ("A", 0.9), ("Low", 0.5)]]
    other = make_corrupted_card("Else", dataset="cifar100")
    first, second = corruption_tracks([*cards, other])
    assert [(row.rank, row.bench.model_id) for row in first.rows] == [(1, "A"), (2, "B"), (3, "Mid"), (4, "Low")]
    assert [row.bench.model_id for row in second.rows] == ["Else"]


def test_the_board_shows_both_kinds_of_tracks(card, corrupted_card, tmp_path, read_html):
    for each in (card, corrupted_card):
        write_card(each, tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    check(tmp_path / "cards", index.parent)
    page = read_html(index)
    assert {"cifar10-Linf-2-255", "cifar10-corruptions"} <= page.ids
    joint = corrupted_card.hpm_bench.evaluation("hpm", Batching.JOINT)
    assert f"{joint.text}% B = 128, B/C = 12.8 400 MIT" in page.text
    model = read_html(index.parent / "cifar10" / "corruptions" / "Hendrycks2020AugMix_WRN.html")
    assert json.loads(model.script) == corrupted_card.to_json()
    assert all(kind in model.headers for kind in Corruptions.kinds)
    lines = json.loads((index.parent / "corruptions.json").read_text())["rows"]
    assert (lines[0]["robust_accuracy"], lines[0]["gaussian_noise_1"]) == (joint.corruptions_acc, 90.0)
    [row] = csv.DictReader(io.StringIO((index.parent / "corruptions.csv").read_text()))
    assert row["jpeg_compression_5"] == "25.0"


def test_what_belonged_to_a_removed_corruption_card_goes(corrupted_card, tmp_path):
    card = write_card(corrupted_card, tmp_path / "cards")
    build(tmp_path / "cards", tmp_path / "board")
    card.unlink()
    build(tmp_path / "cards", tmp_path / "board")
    check(tmp_path / "cards", tmp_path / "board")
    assert not list((tmp_path / "board").rglob("*orruptions*.*"))
