"""Checkpoints as friends, strangers and enemies write them."""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import os
import pickle
import re
import tarfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hpm_robustbench
from hpm_robustbench.errors import IntegrityError, UnsafePickle, UsageProblem
from hpm_robustbench.state_dict import load_into, read_state_dict

MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number that torch.save wrote before 1.6."""


class Net(nn.Module):
    """A layer with a running mean, a head, and constants that the architecture brings along."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, n_classes)
        self.register_buffer("mean", torch.full((1, 2, 1, 1), 0.5))


class Wrapper(nn.Module):
    def __init__(self, attribute: str) -> None:
        super().__init__()
        setattr(self, attribute, Net())


def state_of(module: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else torch.tensor(7)
        for key, tensor in module.state_dict().items()
    }


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def prefixed(state, prefix: str):
    return {prefix + key: tensor for key, tensor in state.items()}


STATE = state_of(Net())
LAYOUTS = {
    "bare": STATE,
    "ordered": OrderedDict(STATE),
    "state_dict": {"state_dict": STATE, "epoch": 3, "best_prec1": torch.tensor(91.7)},
    "model": {"model": STATE, "optimizer": {"lr": 0.1}},
    "last": {"last": STATE, "best": prefixed(STATE, "other.")},
    "net": {"net": STATE, "acc": 95.0},
    "list": [STATE],
    "nested": {"last": {"state_dict": prefixed(STATE, "module.")}},
    "architecture's name under model": {"model": "resnet", "state_dict": STATE},
    "module.": prefixed(STATE, "module."),
    "model.": prefixed(STATE, "model."),
    "module.model.": {"state_dict": prefixed(STATE, "module.model.")},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_known_layout_loads_strictly(layout, zipped, tmp_path):
    path = tmp_path / "net.pt"
    torch.save(LAYOUTS[layout], path, _use_new_zipfile_serialization=zipped)
    net = Net()
    load_into(net, read_state_dict(path), "test")
    assert same(net.state_dict(), STATE)


def test_safetensors(tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(prefixed(STATE, "module."), path)
    assert same(read_state_dict(path), STATE)


@pytest.mark.parametrize("attribute", ["model", "module"])
def test_a_prefix_that_belongs_to_the_architecture_is_put_back(attribute):
    wrapper = Wrapper(attribute)
    load_into(wrapper, STATE, "test")
    assert same(getattr(wrapper, attribute).state_dict(), STATE)


@given(st.lists(st.sampled_from(["module.", "model."]), max_size=3), st.booleans())
def test_prefixes_go_from_all_names_or_from_none(tmp_path_factory, prefixes, one_without):
    path = tmp_path_factory.mktemp("prefixes") / "net.safetensors"
    state = prefixed(STATE, "".join(prefixes))
    if one_without:
        state["alone"] = torch.zeros(1)
    safetensors.torch.save_file(state, path)
    assert read_state_dict(path).keys() == (state.keys() if one_without else STATE.keys())


def test_a_prefix_in_the_middle_of_a_name_stays(tmp_path):
    torch.save({"backbone.module.conv.weight": torch.ones(1)}, tmp_path / "net.pt")
    assert list(read_state_dict(tmp_path / "net.pt")) == ["backbone.module.conv.weight"]


def test_missing_constants_are_the_architectures_own():
    net = Net()
    state = {key: tensor for key, tensor in STATE.items() if key not in ("mean", "norm.num_batches_tracked")}
    load_into(net, state, "test")
    assert same(
        net.state_dict(),
        {
            **STATE,
            "mean": torch.full((1, 2, 1, 1), 0.5),
            "norm.num_batches_tracked": 0 * STATE["norm.num_batches_tracked"],
        },
    )


def test_a_learned_mean_may_not_be_missing():
    net = Net()
    net.mean = None
    del net.mean
    net.mean = nn.Parameter(torch.zeros(2))
    with pytest.raises(IntegrityError, match=r"1 missing \(mean\)"):
        load_into(net, {key: tensor for key, tensor in STATE.items() if key != "mean"}, "test")


def test_a_mean_that_is_a_constant_in_spite_of_its_kind_may_be_missing_where_the_spec_says_so():
    """As in the files of Bai2024MixedNUTS, whose BiT keeps its mean and deviation as parameters."""
    net = Net()
    del net.mean
    net.mean = nn.Parameter(torch.full((2,), 0.5))
    load_into(net, {key: tensor for key, tensor in STATE.items() if key != "mean"}, "test", constants=("mean",))
    assert same(net.state_dict(), {**STATE, "mean": torch.full((2,), 0.5)})
    with pytest.raises(IntegrityError, match=r"1 missing \(fc\.weight\)"):
        load_into(
            net, {key: tensor for key, tensor in STATE.items() if key != "fc.weight"}, "test", constants=("mean",)
        )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: {k: v for k, v in state.items() if not k.startswith("fc")}, r"2 missing \(fc.weight, fc.bias\)"),
        (lambda state: {**state, "extra": torch.zeros(1)}, r"1 unexpected \(extra\)"),
        (lambda state: {**state, "fc.bias": torch.zeros(9)}, r"1 of another shape \(fc.bias \[9\] instead of \[3\]\)"),
        (lambda state: {k: v for k, v in state.items() if "running_mean" not in k}, "norm.running_mean"),
        (lambda state: prefixed(state, "encoder."), "missing .* unexpected .*, ..."),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, problem):
    net = Net()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(IntegrityError, match=problem) as caught:
        load_into(net, change(STATE), "some.pt")
    assert caught.value.exit_code == 4
    assert "some.pt" in str(caught.value)
    assert same(net.state_dict(), before)


def test_a_second_name_of_a_tensor_is_passed_over_and_nothing_else():
    """As in the files of Andriushchenko2020Understanding, whose ``model_preact_hl1`` lists layers that have names."""
    net, state = Net(), {**STATE, "first_layers.1.weight": STATE["norm.weight"]}
    load_into(net, state, "test")
    assert same(net.state_dict(), STATE)
    for other in (STATE["norm.weight"] + 1e-6, STATE["norm.bias"], torch.ones(1)):
        with pytest.raises(IntegrityError, match=r"1 unexpected \(first_layers\.1\.weight\)"):
            load_into(net, {**STATE, "first_layers.1.weight": other}, "test")


def test_what_training_left_is_passed_over_where_the_spec_says_so():
    net, state = Net(), {**STATE, "fc.scores": torch.zeros_like(STATE["fc.weight"])}
    load_into(net, state, "test", ("scores",))
    assert same(net.state_dict(), STATE)
    with pytest.raises(IntegrityError, match=r"1 unexpected \(fc\.scores\)"):
        load_into(net, state, "test")


def itself() -> dict:
    endless: dict = {}
    endless["model"] = endless
    return endless


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        [STATE, STATE],
        {"state_dict": STATE, "model": STATE},
        {"weights": STATE},
        {"state_dict": {**STATE, "epoch": 3}},
        {**STATE, 3: torch.zeros(1)},
        torch.zeros(3),
        "text",
        itself(),
    ],
    ids=["empty", "no list", "two", "ambiguous", "unknown", "mixed", "numbered", "tensor", "text", "itself"],
)
def test_what_is_not_one_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(IntegrityError, match="wanted one state dict"):
        read_state_dict(tmp_path / "net.pt")


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code_is_refused_by_name_and_not_run(zipped, tmp_path):
    path, victim = tmp_path / "evil.pt", tmp_path / "victim"
    torch.save({**STATE, "x": Evil(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        IntegrityError, match=r"needs posix\.mkdir, which could run code.*convert.*safetensors"
    ) as caught:
        read_state_dict(path)
    assert caught.value.exit_code == 4
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the file was harmless, so the test proved nothing"


@pytest.mark.parametrize(
    ("extra", "named"),
    [(argparse.Namespace(lr=0.1), "argparse.Namespace"), (np.float64(1), "numpy"), (nn.Linear(1, 1), "Linear")],
)
def test_more_than_tensors_is_refused_by_name(extra, named, tmp_path):
    torch.save({"state_dict": STATE, "args": extra}, tmp_path / "net.pt")
    with pytest.raises(IntegrityError, match=named):
        read_state_dict(tmp_path / "net.pt")


def saved(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@given(st.integers(0, len(saved(zipped=True)) - 1), st.integers(0, 7))
def test_no_flipped_bit_changes_a_tensor_unnoticed(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("flipped") / "net.pt"
    damaged = bytearray(saved(zipped=True))
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        state = read_state_dict(path)
    except IntegrityError:
        return
    assert same(state, STATE)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, zipped, tmp_path):
    whole = saved(zipped=zipped)
    (tmp_path / "net.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(IntegrityError) as caught:
        read_state_dict(tmp_path / "net.pt")
    assert caught.value.exit_code == 4


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="safetensors cannot read"):
        read_state_dict(path)


def legacy_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


def tar_that_begins_like_a_checkpoint(victim: Path) -> bytes:
    """A tar whose first member is named by torch's old magic number, and whose others run code."""
    code, buffer = pickle.dumps(Evil(victim)), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in ("x" * len(MAGIC), "sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(member)
            info.size = 0 if member.startswith("x") else len(code)
            archive.addfile(info, io.BytesIO(code))
    raw = bytearray(buffer.getvalue())
    raw[: len(MAGIC)], raw[148:156] = MAGIC, b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


def test_a_tar_that_passes_for_a_checkpoint_is_refused_unread(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / "net.pt").write_bytes(tar_that_begins_like_a_checkpoint(victim))
    with pytest.raises(IntegrityError):
        read_state_dict(tmp_path / "net.pt")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>", "a web page"),
        (b"\n  <html>", "a web page"),
        (b"just some text", "neither a torch archive nor"),
        (b"", "an empty file"),
        (legacy_tar(), "neither a torch archive nor"),
        (b"PK\x03\x04" + bytes(100), "damaged archive"),
    ],
)
def test_foreign_files_are_named(content, named, tmp_path):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(IntegrityError, match=named):
        read_state_dict(tmp_path / "net.pt")


def test_a_script_archive_is_refused(tmp_path):
    with pytest.warns(DeprecationWarning):
        torch.jit.script(nn.Linear(1, 1)).save(tmp_path / "net.pt")
    with pytest.raises(IntegrityError, match="TorchScript"):
        read_state_dict(tmp_path / "net.pt")


def rezipped(path: Path, *, compression: int = zipfile.ZIP_STORED, rename=lambda name: name, extra: str = "") -> Path:
    """The archive of a good checkpoint, written again with something odd."""
    with zipfile.ZipFile(io.BytesIO(saved(zipped=True))) as good, zipfile.ZipFile(path, "w", compression) as odd:
        for name in good.namelist():
            odd.writestr(rename(name), good.read(name))
        if extra:
            odd.writestr(extra, b"")
    return path


def test_an_archive_written_again_as_it_was_is_read(tmp_path):
    assert same(read_state_dict(rezipped(tmp_path / "net.pt")), STATE)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "compressed member"),
        ({"extra": "../../outside"}, r"a member called '\.\./\.\./outside'"),
        ({"extra": "/etc/outside"}, "a member called '/etc/outside'"),
        ({"extra": "archive\\..\\outside"}, "a member called"),
        ({"rename": lambda name: name.replace("data/1", "data/0")}, "two members of one name"),
    ],
    ids=["compressed", "upwards", "absolute", "backslash", "twice"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_tricks_with_the_archive_are_refused(change, named, tmp_path):
    with pytest.raises(IntegrityError, match=f"an archive that torch.save would not write: .*{named}"):
        read_state_dict(rezipped(tmp_path / "net.pt", **change))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("net/data/0", "w") as member:
        for _ in range(1 << 8):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    start = time.process_time()
    with pytest.raises(IntegrityError, match="compressed member"):
        read_state_dict(path)
    assert time.process_time() - start < 0.1


def test_all_that_a_pickle_needs_is_named_at_once(tmp_path):
    torch.save({"state_dict": STATE, "args": argparse.Namespace(acc=np.float64(1))}, tmp_path / "net.pt")
    with pytest.raises(UnsafePickle) as caught:
        read_state_dict(tmp_path / "net.pt")
    assert "--allow-global argparse.Namespace --allow-global numpy" in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "extra", [np.float64(1), np.ones(2, np.float32), argparse.Namespace(acc=np.float32(1))], ids=type
)
def test_who_allows_what_is_offered_gets_there(extra, zipped, tmp_path):
    """Also where a name that is allowed makes things of types that have to be allowed as well."""
    path = tmp_path / "net.pt"
    torch.save({"state_dict": STATE, "best": extra}, path, _use_new_zipfile_serialization=zipped)
    allowed: set[str] = set()
    for _ in range(6):
        with torch.serialization.safe_globals([found(name) for name in allowed]):
            try:
                assert same(read_state_dict(path), STATE)
                return
            except UnsafePickle as error:
                offered = set(re.findall(r"--allow-global ([\w.]+)", str(error)))
        assert offered - allowed
        allowed |= offered
    pytest.fail(f"no end of {allowed}")


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_what_torch_never_allows_is_not_offered(tmp_path):
    torch.save({"x": Evil(tmp_path / "victim")}, tmp_path / "evil.pt")
    with pytest.raises(UnsafePickle) as caught:
        read_state_dict(tmp_path / "evil.pt")
    assert "--allow-global" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors", ""])
def test_no_file(name, tmp_path):
    with pytest.raises(UsageProblem, match="no readable file"):
        read_state_dict(tmp_path / name)


def test_every_torch_load_in_the_package_is_weights_only():
    calls = [
        (path, node)
        for path in Path(hpm_robustbench.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load")
    ]
    assert calls
    for path, call in calls:
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        literal = options.get("weights_only")
        assert isinstance(literal, ast.Constant) and literal.value is True, f"{path}:{call.lineno}"


def test_no_module_unpickles():
    forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    for path in Path(hpm_robustbench.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {name.split(".")[0] for name in names}, path


def test_a_swin_of_an_older_timm_loads_strictly():
    from hpm_robustbench.robustbench_compat import import_robustbench

    import_robustbench()
    from timm.models.swin_transformer import SwinTransformer

    def tiny() -> nn.Module:
        return SwinTransformer(
            img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), num_classes=5
        )

    source, target = tiny(), nn.Sequential()
    target.add_module("model", tiny())  # behind a normalisation, as in RobustBench
    older = {}
    for key, tensor in source.state_dict().items():
        renamed = key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head.")
        older[renamed] = tensor
    older["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    older["layers.0.blocks.0.attn_mask"] = torch.zeros(4, 16, 16)
    load_into(target, older, "older.pt")
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in target.model.state_dict().items())
    del older["layers.0.downsample.norm.weight"]
    with pytest.raises(IntegrityError, match=r"older\.pt"):
        load_into(target, older, "older.pt")
