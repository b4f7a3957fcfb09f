"""What a process of its own makes of friendly, strange and hostile pickles, and what is kept of it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hpm_robustbench.errors import IntegrityError, StorageProblem, UnsafePickle, UsageProblem
from hpm_robustbench.state_dict import READING, read_state_dict
from hpm_robustbench.weights import STRICT, Trust
from hpm_robustbench.weights.conversion import Bounds, convert
from hpm_robustbench.weights.converted import read_tensors
from hpm_robustbench.weights.trust import measure

SHARED = torch.arange(12.0).reshape(3, 4)
STATE = {
    "conv.weight": torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)),
    "turned": SHARED.T,
    "again": SHARED,
    "half": torch.ones(3, dtype=torch.bfloat16),
    "counter": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "channels_last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
}


@pytest.fixture
def saved(tmp_path: Path):
    def save(content: object, name: str = "net.pt", **options: bool) -> Path:
        path = tmp_path / "given" / name
        path.parent.mkdir(exist_ok=True)
        torch.save(content, path, **options)
        return path

    return save


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made" / "net.safetensors"


def read(path: Path, model_dir: Path, trust: Trust = STRICT) -> dict[str, torch.Tensor]:
    return read_tensors(path, measure(path), model_dir, trust)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_same_tensors_under_the_same_names(zipped, saved, destination):
    wrapped = {"last": {"state_dict": {f"module.{key}": tensor for key, tensor in STATE.items()}}, "epoch": 3}
    original = saved(wrapped, _use_new_zipfile_serialization=zipped)
    convert(original, destination)
    assert same(read_state_dict(destination), STATE)
    assert same(read_state_dict(destination), read_state_dict(original))


def test_a_conversion_is_made_once_elsewhere_and_recorded(saved, tmp_path, monkeypatch):
    original = saved(STATE)
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: pytest.fail("this process has read a pickle"))
    assert same(read(original, tmp_path), STATE)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert same(read(original, tmp_path), STATE), "it was read again"
    [facts] = (tmp_path / "converted").glob("*.json")
    assert facts.with_suffix(".safetensors").stat().st_mode & 0o044 == 0o044, "others may read it"
    assert json.loads(facts.read_text()) == {
        "sha256": measure(facts.with_suffix(".safetensors")).sha256,
        "reading": READING,
        "original": {"sha256": measure(original).sha256, "size": original.stat().st_size},
        "allowed_globals": [],
    }


def test_a_folder_of_others_with_everything_in_it_need_not_be_writable(converted, tmp_path, monkeypatch):
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("hpm_robustbench.weights.converted.locked", lambda _path: pytest.fail("it was locked"))
    assert same(read(tmp_path / "net.pt", tmp_path), STATE)


def test_another_file_at_the_same_path_is_another_conversion(saved, tmp_path):
    assert same(read(saved(STATE), tmp_path), STATE)
    other = {"weight": torch.zeros(3)}
    assert same(read(saved(other), tmp_path), other)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A folder with a pickle and its conversion."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save(STATE, folder / "net.pt")
    read(folder / "net.pt", folder)
    return folder


@pytest.mark.parametrize("damage", ["flipped", "unrecorded", "no record"])
def test_a_damaged_conversion_is_made_again(damage, converted, tmp_path):
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    [kept] = (tmp_path / "converted").glob("*.safetensors")
    content, facts = kept.read_bytes(), kept.with_suffix(".json")
    if damage == "flipped":
        kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "unrecorded":
        facts.unlink()
    else:
        facts.write_text("[]")
    assert same(read(tmp_path / "net.pt", tmp_path), STATE)
    assert kept.read_bytes() == content
    assert json.loads(facts.read_text())["sha256"] == measure(kept).sha256


def test_a_conversion_by_an_older_reading_is_made_again(converted, tmp_path, caplog):
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    [facts] = (tmp_path / "converted").glob("*.json")
    kept = facts.with_suffix(".safetensors")
    safetensors.torch.save_file({f"module.net.{key}": tensor.contiguous() for key, tensor in STATE.items()}, kept)
    stale = {**json.loads(facts.read_text()), "sha256": measure(kept).sha256, "reading": READING - 1}
    facts.write_text(json.dumps(stale))
    assert same(read(tmp_path / "net.pt", tmp_path), STATE)
    assert json.loads(facts.read_text())["reading"] == READING
    assert "damaged" not in caplog.text


def test_safetensors_are_read_where_they_lie(tmp_path):
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    assert same(read(path, tmp_path / "models"), {"weight": torch.ones(2)})
    assert not (tmp_path / "models").exists()


def test_a_folder_that_cannot_be_written_is_no_hindrance(saved, tmp_path, caplog):
    (tmp_path / "models").write_text("a file")
    with caplog.at_level("INFO"):
        assert same(read(saved(STATE), tmp_path / "models"), STATE)
    assert "converted anew each time" in caplog.text
    assert (tmp_path / "models").read_text() == "a file"


class Runs:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_a_pickle_that_runs_code_is_refused_and_nothing_is_left(saved, tmp_path):
    with pytest.raises(UnsafePickle, match=r"needs posix\.mkdir") as caught:
        read(saved({"weight": torch.ones(1), "x": Runs(tmp_path / "victim")}), tmp_path)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "victim").exists()
    assert not [path for path in (tmp_path / "converted").rglob("*") if path.suffix != ".lock"]


def test_what_is_allowed_by_name_is_read_and_recorded(saved, tmp_path):
    original = saved({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)})
    with pytest.raises(UnsafePickle, match=r"--allow-global argparse\.Namespace"):
        read(original, tmp_path)
    assert same(read(original, tmp_path, Trust(allow_globals=("argparse.Namespace",))), STATE)
    [facts] = (tmp_path / "converted").glob("*.json")
    assert json.loads(facts.read_text())["allowed_globals"] == ["argparse.Namespace"]
    assert same(read(original, tmp_path), STATE), "tensors are harmless, wherever they came from"


@pytest.mark.parametrize("name", ["argparse.Namespaces", "nowhere.Name", "Name"])
def test_what_is_to_be_allowed_must_exist(name, saved, destination):
    with pytest.raises(UsageProblem, match=r"package\.module\.Name") as caught:
        convert(saved(STATE), destination, (name,))
    assert caught.value.exit_code == 2


def test_what_torch_blocks_stays_refused_even_if_allowed(saved, tmp_path, destination):
    original = saved({"x": Runs(tmp_path / "victim")})
    with pytest.raises(UnsafePickle):
        convert(original, destination, ("posix.mkdir",))
    assert not (tmp_path / "victim").exists()


def test_a_tensor_that_would_fill_the_memory_ends_the_process_only(saved, destination):
    huge = torch.zeros(1).expand(1 << 40)
    with pytest.raises(IntegrityError, match=f"{4 << 40} bytes of tensors from a file of") as caught:
        convert(saved({"weight": huge}), destination)
    assert caught.value.exit_code == 4
    assert not destination.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process to its memory")
def test_a_file_that_takes_too_much_memory_is_refused(saved, destination):
    original = saved({"weight": torch.zeros(1 << 25)})
    with pytest.raises(IntegrityError, match=r"can.t allocate memory|mmap|ended the process|MemoryError"):
        convert(original, destination, bounds=Bounds(60, 1 << 22))
    assert not destination.exists()


def test_a_file_that_takes_too_long_is_refused(saved, destination):
    with pytest.raises(IntegrityError, match=r"busy for over 0\.01 s") as caught:
        convert(saved(STATE), destination, bounds=Bounds(0.01, 1 << 30))
    assert caught.value.exit_code == 4


CRASHES = """
import ctypes

class Crash:
    def __setstate__(self, state):
        ctypes.string_at(0)
"""


def test_a_reader_that_dies_is_told_by_its_signal(saved, tmp_path, destination, monkeypatch):
    (tmp_path / "crashes.py").write_text(CRASHES)
    monkeypatch.syspath_prepend(tmp_path)
    import crashes

    broken = crashes.Crash()
    broken.attribute = 1
    with pytest.raises(IntegrityError, match=r"ended the process that reads it \(signal 11\)") as caught:
        convert(saved({"weight": torch.ones(1), "x": broken}), destination, ("crashes.Crash",))
    assert caught.value.exit_code == 4


LOOKS = """
import os, pathlib

class Look:
    def __setstate__(self, state):
        pathlib.Path(state["to"]).write_text(repr(sorted(os.environ)))
"""


def test_the_reader_knows_no_tokens(saved, tmp_path, destination, monkeypatch):
    (tmp_path / "looks.py").write_text(LOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    import looks

    look = looks.Look()
    look.to = str(tmp_path / "seen")
    convert(saved({"state_dict": STATE, "x": look}), destination, ("looks.Look",))
    seen = (tmp_path / "seen").read_text()
    assert "'PATH'" in seen
    assert "TOKEN" not in seen


def test_a_kind_of_tensor_that_safetensors_does_not_know(saved, destination):
    with pytest.raises(IntegrityError, match="sparse or quantized weight"):
        convert(saved({"weight": torch.eye(3).to_sparse()}), destination)


def test_a_disk_that_takes_no_more(saved, destination, request):
    original = saved({"weight": torch.zeros(1 << 20)})
    request.getfixturevalue("small_files")
    with pytest.raises(StorageProblem, match=r"File too large.*free some space"):
        convert(original, destination)
    assert not destination.exists()
