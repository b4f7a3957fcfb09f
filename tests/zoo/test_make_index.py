"""The index of RobustBench's zoo follows from its sources, byte for byte."""

from __future__ import annotations

import csv
import os
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.zoo.from_robustbench import read_index, read_published_only
from hpm_robustbench.zoo.make_index import main, make_index

FILES = ("robustbench.json", "published_only.json")


def committed() -> dict[str, str]:
    return {name: files("hpm_robustbench.zoo").joinpath(name).read_text(encoding="utf-8") for name in FILES}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The table that the committed files were made from, put together again out of them."""
    renamed = {"threat": "threat_model", "name": "model"}
    rows = [{renamed.get(key, key): cell for key, cell in entry.items()} for entry in everything()]
    return write(tmp_path / "published.csv", rows)


def everything() -> list[dict]:
    return [*read_index(), *read_published_only()]


def write(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, sorted({key for row in rows for key in row}))
        table.writeheader()
        table.writerows(rows)
    return path


def edited(published: Path, change) -> Path:
    with published.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return write(published, change(rows))


def test_the_committed_index_follows_from_its_sources(published):
    assert make_index(published) == committed()


def test_the_committed_index_follows_from_robustbenchs_own_figures():
    if "HPM_BENCH_REAL_DATA" not in os.environ:
        pytest.skip("HPM_BENCH_REAL_DATA is not set, so RobustBench's published figures are not at hand")
    assert make_index(Path(os.environ["HPM_BENCH_REAL_DATA"]) / "robustbench_published.csv") == committed()


def test_the_command_writes_both_files(published, tmp_path):
    done = CliRunner().invoke(main, ["--published", str(published), "--output", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in FILES} == committed()


def test_the_command_says_what_is_wrong_and_writes_nothing(tmp_path):
    (tmp_path / "table.csv").write_text("dataset,threat_model,model\n")
    done = CliRunner().invoke(main, ["--published", str(tmp_path / "table.csv"), "--output", str(tmp_path)])
    assert done.exit_code == 1
    assert "and 201 more" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_every_published_entry_is_kept_once():
    keys = [(entry["dataset"], entry["threat"], entry["name"]) for entry in everything()]
    assert (len(read_index()), len(read_published_only()), len(set(keys))) == (206, 30, 236)


def test_what_has_no_weights_is_no_model():
    assert not any({"gdrive", "upstream"} & set(entry) for entry in read_published_only())
    assert all("gdrive" in entry or "upstream" in entry for entry in read_index())


def test_a_figure_is_kept_as_it_was_published(published):
    def rewrite(rows):
        return [{**row, "clean_acc": "89.690"} if row["model"] == "Carmon2019Unlabeled" else row for row in rows]

    assert '"clean_acc":"89.690"' in make_index(edited(published, rewrite))["robustbench.json"]


def test_a_budget_beside_corruptions_is_left_out(published):
    def rewrite(rows):
        return [{**row, "eps": "8/255"} if row["threat_model"] == "corruptions" else row for row in rows]

    assert make_index(edited(published, rewrite)) == committed()


def test_an_entry_that_nobody_published_is_named(published):
    def drop(rows):
        return [row for row in rows if row["model"] != "Carmon2019Unlabeled"]

    with pytest.raises(UsageProblem, match="none for cifar10/Linf/Carmon2019Unlabeled"):
        make_index(edited(published, drop))


@pytest.mark.parametrize("content", ["", "dataset,model\ncifar10,Standard\n", None, b"\xff\xfe"])
def test_a_table_that_is_none(tmp_path, content):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((InvalidInput, UsageProblem), match=r"table\.csv"):
        make_index(path)
