"""The board: what it shows, in which order, that it repeats byte for byte, and that drift is found."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from hpm_robustbench.errors import Drift, InvalidInput, StorageProblem, UsageProblem
from hpm_robustbench.ledger.card_bench import Weights
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.ledger.leaderboard import build, check
from hpm_robustbench.ledger.model_card import write_card
from hpm_robustbench.ledger.pages import p_value, render_index
from hpm_robustbench.ledger.repetition import repetition
from hpm_robustbench.ledger.rows import tracks
from hpm_robustbench.training.recipe import Tuning, find_recipe
from hpm_robustbench.zoo.spec import Paper

ROBUSTBENCH_COLUMNS = [
    "Rank",
    "Method",
    "Standard accuracy",
    "AutoAttack robust accuracy",
    "Best known robust accuracy",
    "AA eval. potentially unreliable",
    "Extra data",
    "Architecture",
    "Venue",
]


@pytest.fixture
def cards_dir(tmp_path, card, make_card):
    folder = tmp_path / "model_cards"
    for each in (card, make_card("Better", hpm=0.2), make_card("Worse", hpm=0.4), make_card("Wide", eps="8/255")):
        write_card(each, folder)
    return folder


@pytest.fixture
def board(tmp_path, cards_dir):
    return build(cards_dir, tmp_path / "leaderboard").parent


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What it shows


def test_the_committed_board_follows_from_the_committed_cards(golden, tmp_path):
    build(golden / "model_cards", tmp_path)
    (tmp_path / "published.html").unlink()  # the committed board holds it, and so is checked for it
    assert contents(tmp_path) == contents(golden / "leaderboard")


def test_a_place_without_a_folder_of_cards_is_not_made_a_board(tmp_path):
    with pytest.raises(UsageProblem, match=r"a folder .*model_cards of model cards; got none.*--output"):
        build(tmp_path / "model_cards", tmp_path / "leaderboard")
    assert not list(tmp_path.iterdir())


def test_a_board_without_cards_says_so_and_what_to_do(tmp_path, caplog):
    (tmp_path / "model_cards").mkdir()
    page = build(tmp_path / "model_cards", tmp_path / "leaderboard")
    assert page.exists()
    assert f"no model cards in {tmp_path / 'model_cards'}" in caplog.text
    assert "hpm-bench run" in caplog.text


def test_every_file_of_the_board(board):
    models = ["Better", "Wide", "Worse", "resnet4b_linf2"]
    pages = [f"cifar10/Linf/{model}.html" for model in models]
    fixed = ["index.html", "leaderboard.csv", "leaderboard.json", "published.html", "style.css"]
    assert sorted(contents(board)) == sorted([*pages, *fixed])


def test_robustbenchs_columns_come_first_in_its_order(board, read_html):
    header = [cell for cell in read_html(board / "index.html").headers if cell]
    start = header.index("Rank")
    assert header[start : start + 9] == ROBUSTBENCH_COLUMNS
    assert header[start + 9 : start + 18] == [
        "HPM verdict (SOLO)",
        "Base clean",
        "Base AutoAttack",
        "Base, every attack",
        "C1 AutoAttack",
        "C1, every attack",
        "HPM JOINT MSA, sample-worst",
        "n",
        "Licence",
    ]


def test_the_index_shows_counts_intervals_and_batch_sizes(board, card, read_html):
    text = read_html(board / "index.html").text
    joint = card.hpm_bench.evaluations[2].robust
    assert f"{joint.text}% {joint.low:.1f}–{joint.high:.1f} B = 128, B/C = 12.8 400 BSD-3-Clause" in text


@pytest.mark.parametrize(
    ("hpm", "sentence"),
    [
        (0.1, "HPM SOLO: it helps here. Under every attack"),
        (0.45, "HPM SOLO: it does not help here, it hurts. Under every attack"),
        (0.3, "HPM SOLO: undecided, as far as 400 images can tell. Under every attack"),
    ],
)
def test_the_model_page_opens_with_the_verdict_in_words(make_card, tmp_path, read_html, hpm, sentence):
    write_card(make_card("Model", base=0.3, hpm=hpm), tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    text = read_html(index.parent / "cifar10/Linf/Model.html").text
    assert sentence in text
    assert text.index(sentence) < text.index("Evaluations")


def test_the_model_page_holds_the_card_itself(board, card, read_html):
    assert json.loads(read_html(board / "cifar10/Linf/resnet4b_linf2.html").script) == card.to_json()


def test_every_step_of_every_evaluation_is_on_the_page(board, card, read_html):
    text = read_html(board / "cifar10/Linf/resnet4b_linf2.html").text
    steps = [step.name for evaluation in card.hpm_bench.evaluations for step in evaluation.steps]
    assert len(steps) == 15
    assert all(name in text for name in steps)


def test_flags_of_a_run_stand_below_its_steps_and_not_beside_its_clean_images(board, card, read_html):
    page = read_html(board / "cifar10/Linf/resnet4b_linf2.html")
    flagged = [evaluation for evaluation in card.hpm_bench.evaluations if evaluation.flags]
    assert flagged
    assert [tag for tag, _ in page.tags].count("tfoot") == len(flagged)
    for evaluation in flagged:
        flags = "; ".join(evaluation.flags)
        assert f"The whole run {flags}" in page.text
        clean = evaluation.clean
        assert f"clean images {clean.text}% {clean.low:.1f}–{clean.high:.1f} {evaluation.steps[0].name}" in page.text


def test_the_command_repeats_the_card(card, make_card):
    assert repetition(make_card("Wide", eps="8/255").hpm_bench) == (
        "hpm-bench run --model Wide \\\n"
        "  --dataset cifar10 --threat_model Linf --eps 8/255 \\\n"
        "  --n_ex 400 --batch_size 100 --seed 0 \\\n"
        "  --batching solo \\\n"
        "  --hpm beta=0.5 --hpm distance=squared --hpm tau=fit"
    )
    own = repetition(card.hpm_bench)
    assert "--factory models:resnet4b --name resnet4b_linf2 --weights resnet4b.pth" in own
    assert "--batching solo --batching joint --joint-size 128" in own


def test_the_command_repeats_weights_from_the_hub(card, make_card):
    from_hub = Weights(source=f"hf:owner/name@{'0' * 40}:model.safetensors", sha256=["1" * 64])
    own = card.hpm_bench.model_copy(update={"weights": from_hub})
    assert f"--factory models:resnet4b --name resnet4b_linf2 --weights {from_hub.source}" in repetition(own)
    known = make_card("Wide", eps="8/255").hpm_bench.model_copy(update={"weights": from_hub})
    assert repetition(known).startswith(f"hpm-bench run --model Wide --weights {from_hub.source} ")


def test_small_p_values_are_not_called_zero():
    assert (p_value(0.25), p_value(0.0004), p_value(0.0)) == ("p = 0.250", "p < 0.001", "p < 0.001")


def test_no_cards_give_a_friendly_page(tmp_path, read_html):
    index = build(tmp_path, tmp_path / "board")
    assert "There is no model card to show" in read_html(index).text
    assert json.loads((tmp_path / "board" / "leaderboard.json").read_text()) == {"rows": []}


# Order


def test_rank_follows_best_known_then_standard_accuracy_then_name(make_card):
    cards = [
        make_card("TieB", hpm=0.3),
        make_card("Weak", hpm=0.5),
        make_card("TieA", hpm=0.3),
        make_card("Strong", hpm=0.1),
    ]
    (track,) = tracks(cards)
    assert [row.bench.model_id for row in track.rows] == ["Strong", "TieA", "TieB", "Weak"]
    assert [row.rank for row in track.rows] == [1, 2, 3, 4]


def test_equal_robustness_is_ranked_by_standard_accuracy(make_card):
    cards = [make_card("A", clean=0.7, hpm=1.5), make_card("B", clean=0.9, hpm=1.5)]
    (track,) = tracks(cards)
    assert [row.solo.robust.count for row in track.rows] == [0, 0]
    assert [row.bench.model_id for row in track.rows] == ["B", "A"]


def test_tracks_are_ordered_by_the_number_that_eps_is(make_card):
    cards = [make_card(f"M{i}", eps=eps) for i, eps in enumerate(["16/255", "8/255", "0.5", "2/255"])]
    assert [track.eps for track in tracks(cards)] == ["2/255", "8/255", "16/255", "0.5"]


def test_one_budget_in_two_spellings_is_one_track(make_card):
    (track,) = tracks([make_card("A", eps="0.5"), make_card("B", eps="1/2")])
    assert len(track.rows) == 2


# Machine-readable


def test_csv_and_json_say_the_same(board):
    lines = list(csv.DictReader(io.StringIO((board / "leaderboard.csv").read_text())))
    rows = json.loads((board / "leaderboard.json").read_text())["rows"]
    assert len(rows) == 4
    for line, row in zip(lines, rows, strict=True):
        assert line == {column: "" if value is None else str(value) for column, value in row.items()}


def test_the_numbers_that_a_verdict_compares_are_in_every_table(spec, make_tuned_card, tmp_path, read_html):
    """Those under every attack, where they are other ones than those under AutoAttack."""
    card = make_tuned_card(spec, Tuning(find_recipe("uniform-v1")), controls={"fc": 0.3})
    base, c1 = Metric.from_count(77, 400), Metric.from_count(111, 400)
    first, *others = card.hpm_bench.evaluations
    fc, *rest = card.hpm_bench.controls
    told = {
        "evaluations": [first.model_copy(update={"robust": base}), *others],
        "controls": [fc.model_copy(update={"robust": c1}), *rest],
    }
    [track] = tracks([card.model_copy(update={"hpm_bench": card.hpm_bench.model_copy(update=told)})])
    line = track.rows[0].flat()
    for name, metric in (("base_best_known", base), ("c1_best_known", c1)):
        assert [line[f"{name}{end}"] for end in ("", "_low", "_high")] == [metric.value, metric.low, metric.high]
    (tmp_path / "index.html").write_text(render_index([track], []), encoding="utf-8")
    of_base, of_c1 = (f"{m.text}% {m.low:.1f}–{m.high:.1f}" for m in (base, c1))
    between = f"{fc.autoattack.text}% {fc.autoattack.low:.1f}–{fc.autoattack.high:.1f}"
    assert f"{of_base} {between} {of_c1}" in read_html(tmp_path / "index.html").text


def test_a_spreadsheet_finds_no_formula(make_card, tmp_path):
    paper = Paper(title="=HYPERLINK(1)", authors="+1", venue="-1", architecture="@SUM(A1)", license="\t=1", link=" =2")
    write_card(make_card("Model", paper=paper), tmp_path / "cards")
    build(tmp_path / "cards", tmp_path / "board")
    with (tmp_path / "board" / "leaderboard.csv").open(newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert line["method"] == "'=HYPERLINK(1)"
    assert not [cell for cell in line.values() if cell.lstrip()[:1] in set("=+-@") and cell.strip()]


# Drift


def test_the_same_cards_give_the_same_bytes(board, cards_dir, tmp_path):
    build(cards_dir, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(board)
    check(cards_dir, board)


@pytest.mark.parametrize("name", ["index.html", "style.css", "leaderboard.csv", "cifar10/Linf/Better.html"])
def test_one_changed_byte_is_drift(board, cards_dir, name):
    content = bytearray((board / name).read_bytes())
    content[-2] ^= 1
    (board / name).write_bytes(content)
    with pytest.raises(Drift, match=f"got differing: {name}. Next") as drift:
        check(cards_dir, board)
    assert drift.value.exit_code == 1


def test_missing_and_extra_files_are_drift(board, cards_dir):
    (board / "style.css").rename(board / "old.css")
    with pytest.raises(Drift, match=r"got missing: style\.css; extra: old\.css"):
        check(cards_dir, board)


def test_hidden_files_are_not_of_the_board(board, cards_dir):
    (board / ".git").mkdir()
    (board / ".git" / "config").write_text("")
    (board / ".nojekyll").write_text("")
    check(cards_dir, board)


def test_a_board_that_was_never_built_is_drift(cards_dir, tmp_path):
    with pytest.raises(Drift, match=r"missing: cifar10/Linf/Better\.html"):
        check(cards_dir, tmp_path / "nowhere")


def test_pages_of_vanished_models_go_and_other_files_stay(board, cards_dir):
    foreign = board / "cifar10" / "Linf" / "notes.html"
    foreign.write_text("<p>mine</p>")
    (cards_dir / "cifar10" / "Linf" / "Better.json").unlink()
    build(cards_dir, board)
    assert not (board / "cifar10" / "Linf" / "Better.html").exists()
    assert foreign.read_text() == "<p>mine</p>"


# Bad input


def test_a_bad_card_is_named_and_nothing_is_written(board, cards_dir):
    before = contents(board)
    shutil.copy(cards_dir / "cifar10/Linf/Better.json", cards_dir / "cifar10/Linf/Copy.json")
    (cards_dir / "cifar10/Linf/Worse.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"Worse\.json as a model card"):
        build(cards_dir, board)
    assert contents(board) == before


def test_a_card_in_another_models_place_is_refused(board, cards_dir):
    shutil.copy(cards_dir / "cifar10/Linf/Better.json", cards_dir / "cifar10/Linf/Copy.json")
    with pytest.raises(InvalidInput, match=r"Copy\.json to hold .* got cifar10/Linf/Better\.json"):
        build(cards_dir, board)


def test_a_plain_robustbench_entry_is_refused(cards_dir, tmp_path):
    path = cards_dir / "cifar10/Linf/Better.json"
    entry = json.loads(path.read_text())
    del entry["hpm_bench"]
    path.write_text(json.dumps(entry))
    with pytest.raises(InvalidInput, match=r"Better\.json .* a plain RobustBench entry"):
        build(cards_dir, tmp_path / "board")


def test_an_unwritable_place_is_a_storage_problem(cards_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageProblem):
        build(cards_dir, tmp_path / "file")
