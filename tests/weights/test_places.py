"""Names on the disk are safe whatever was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import UnknownName
from hpm_robustbench.weights.places import fetched_place, places
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


def test_an_unknown_source():
    with pytest.raises(UnknownName, match="source of weights"):
        places(WeightsRef("ftp", ("x",)), ROOT)
