from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.zoo import checksums
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.checksums import Checksum, checksums_json, known_checksums, read_checksums

ONE = Checksum("0" * 63 + "1", 10)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
LOCATORS = st.text(min_size=1, max_size=20)


@given(st.dictionaries(LOCATORS, st.builds(Checksum, HEX, st.integers(1, 1 << 40))))
def test_what_is_written_is_read(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("checksums") / "checksums.json"
    path.write_text(checksums_json(entries), encoding="utf-8")
    assert read_checksums(path) == entries


def test_every_shipped_checksum_is_of_a_known_checkpoint():
    fetched = {locator for spec in catalog().specs() for locator in spec.weights.full_locators}
    assert known_checksums().keys() <= fetched


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"gdrive:a": "' + "0" * 64 + '"}',
        '{"gdrive:a": {"sha256": "' + "0" * 64 + '"}}',
        '{"gdrive:a": {"sha256": "' + "0" * 64 + '", "size": 0}}',
        '{"gdrive:a": {"sha256": "' + "0" * 64 + '", "size": true}}',
        '{"gdrive:a": {"sha256": "' + "0" * 63 + '", "size": 1}}',
        '{"gdrive:a": {"sha256": "' + "G" * 64 + '", "size": 1}}',
        '{"gdrive:a": {"sha256": "' + "0" * 64 + '", "size": 1, "md5": ""}}',
    ],
)
def test_what_is_not_written_as_checksums_is_refused(content, tmp_path):
    (tmp_path / "checksums.json").write_text(content)
    with pytest.raises(InvalidInput, match="hpm-bench weights pin") as caught:
        known_checksums(tmp_path / "checksums.json")
    assert caught.value.exit_code == 5


def test_no_text(tmp_path):
    (tmp_path / "checksums.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InvalidInput, match="no text"):
        read_checksums(tmp_path / "checksums.json")


def test_no_file(tmp_path):
    with pytest.raises(UsageProblem, match=r"a file of checksums at .*absent\.json"):
        known_checksums(tmp_path / "absent.json")


def test_a_file_of_ones_own_adds_and_does_not_overrule(tmp_path, monkeypatch):
    shipped = tmp_path / "package"
    shipped.mkdir()
    (shipped / "checksums.json").write_text(checksums_json({"gdrive:a": ONE}))
    monkeypatch.setattr(checksums, "files", lambda _package: shipped)
    own = tmp_path / "own.json"
    other = Checksum("f" * 64, 10)
    own.write_text(checksums_json({"gdrive:a": ONE, "gdrive:b": other}))
    assert known_checksums(own) == {"gdrive:a": ONE, "gdrive:b": other}
    own.write_text(checksums_json({"gdrive:a": other}))
    with pytest.raises(InvalidInput, match="as this package says"):
        known_checksums(own)


def test_entries_are_sorted_so_that_a_change_reads_well():
    text = checksums_json({"b": ONE, "a": ONE})
    assert list(json.loads(text)) == ["a", "b"]
    assert text.endswith("}\n")
    assert Path(checksums.__file__).with_name("checksums.json").read_text() == checksums_json(known_checksums())
