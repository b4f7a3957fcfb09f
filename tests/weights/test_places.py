"""Names on the disk are safe whatever was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import UnknownName
from hpm_robustbench.weights.places import fetched_place, places
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import WeightsRef

HOSTILE = ["../../x", "a/b", "/etc/passwd", "C:\\x", "nul\0", "x" * 300, "..", ".", "", "-rf", "A", "a", "\n", "é"]
ROOT = Path("models")


@given(st.one_of(st.sampled_from(HOSTILE), st.text()))
def test_a_download_stays_in_its_folder_under_a_plain_name(locator):
    path = fetched_place(f"gdrive:{locator}", ROOT)
    assert path.parent == ROOT / "fetched"
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", path.name)
    assert ".." not in path.name


def test_different_locators_lie_apart_even_where_case_makes_no_difference():
    names = {fetched_place(f"gdrive:{locator}", ROOT).name.casefold() for locator in HOSTILE}
    assert len(names) == len(HOSTILE)


@pytest.mark.parametrize(("exactly", "invited"), [(False, "Wong.safetensors"), (True, "Wong.pt")])
def test_only_what_would_be_used_is_asked_for(exactly, invited, tmp_path):
    [place] = places(WeightsRef("gdrive", ("abc",), cache="cifar10/Linf/Wong.pt"), tmp_path)
    assert place.by_hand(exactly=exactly).endswith(invited)
    (tmp_path / "cifar10/Linf").mkdir(parents=True)
    (tmp_path / "cifar10/Linf" / invited).write_bytes(b"")
    assert place.find(exactly=exactly) == tmp_path / "cifar10/Linf" / invited


def test_robustbenchs_folder_serves_every_model_that_shares_a_file(tmp_path):
    """Of the 17 shared files, some are a model of their own here and a member of a mixture there."""
    specs = {(spec.dataset, spec.threat.name, spec.name): spec for spec in robustbench_specs()}
    alone = specs["cifar10", "Linf", "Wang2023Better_WRN-70-16"]
    there = tmp_path / "cifar10/Linf/Bai2023Improving_edm.pt_m1.pt"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"the same")
    [place] = places(alone.weights, tmp_path)
    assert place.find(exactly=True) == there
    corrupted = tmp_path / "cifar10/corruptions/Standard.pt"
    corrupted.parent.mkdir()
    corrupted.write_bytes(b"")
    for norm in ("Linf", "L2"):
        [place] = places(specs["cifar10", norm, "Standard"].weights, tmp_path)
        assert place.find(exactly=False) == corrupted
    weights = [spec.weights for spec in specs.values() if spec.weights.source == "gdrive"]
    pairs = [pair for each in weights for pair in zip(each.locators, each.shared, strict=True)]
    shared = {locator for locator, others in pairs if others}
    assert len(shared) == 17


def test_an_unknown_source():
    with pytest.raises(UnknownName, match="source of weights"):
        places(WeightsRef("ftp", ("x",)), ROOT)
