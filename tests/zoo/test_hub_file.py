from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.zoo.from_file import weights_from_text
from hpm_robustbench.zoo.hub_file import HubFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = st.text("abcXYZ019_", min_size=1, max_size=20)


@given(NAME, NAME, st.one_of(st.just(COMMIT), NAME), NAME)
def test_what_is_written_is_read(owner, name, revision, file):
    whole = HubFile(f"{owner}/{name}", revision, f"{file}/{file}.safetensors")
    assert HubFile.parse(str(whole)) == whole
    assert HubFile.parse(f"{owner}/{name}@{revision}") == HubFile(f"{owner}/{name}", revision, "model.safetensors")
    assert whole.is_pinned == (revision == COMMIT)


@pytest.mark.parametrize(
    "text",
    [
        "owner/name",
        "name@main",
        "owner/name@",
        "owner/name/more@main",
        "owner/name@main:",
        "owner/name@main:model.bin",
        "owner/name@main:../../model.safetensors",
        "owner/name@main:/etc/model.safetensors",
        "owner/name@main:a/../model.safetensors",
        "owner/name@main:a\\model.safetensors",
        "owner/name@main:.safetensors",
        "owner/name@main:nul\0.safetensors",
        "owner/name@main:" + "x" * 300 + ".safetensors",
        "owner/name@../../x",
        "../name@main",
        "owner/..@main",
        "owner/na--me@main",
        "owner/" + "x" * 300 + "@main",
        "https://example.org/owner/name@main",
        "owner/name@main\n",
    ],
)
def test_what_leads_elsewhere_is_refused(text):
    with pytest.raises(UsageProblem, match=r"hf:owner/name@revision"):
        weights_from_text(f"hf:{text}")


def test_files_of_several_members_come_from_one_commit():
    written = weights_from_text("hf:owner/name@main:a.safetensors,b/c.safetensors")
    assert written.locators == ("owner/name@main:a.safetensors", "owner/name@main:b/c.safetensors")
    assert weights_from_text(str(written)) == written
    with pytest.raises(UsageProblem):
        weights_from_text("hf:owner/name@main:a.safetensors,../b.safetensors")


def test_weights_as_a_person_names_them():
    assert str(weights_from_text("hf:owner/name@main")) == "hf:owner/name@main:model.safetensors"
    assert weights_from_text("mine.pt") == weights_from_text("file:mine.pt")
    assert str(weights_from_text("C:\\mine.pt")) == "file:C:\\mine.pt"
