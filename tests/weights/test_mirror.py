"""A folder to upload: the same tensors, where they come from, and nobody's rights passed over."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from hpm_robustbench.cli import cli
from hpm_robustbench.errors import IntegrityError, InvalidInput, StorageProblem, UsageProblem
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.weights import mirror as mirrors
from hpm_robustbench.weights.mirror import mirror
from hpm_robustbench.weights.trust import measure
from hpm_robustbench.weights.web import Web
from hpm_robustbench.zoo.builtin import DIGITS_MODEL, builtin_specs
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.licences import check_licences, licences_of
from hpm_robustbench.zoo.spec import ModelSpec, Paper, WeightsRef

STATE = {"weight": torch.eye(2), "bias": torch.ones(2)}
NETS = """
import torch

class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.models = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])


def linear():
    return torch.nn.Linear(2, 2)
"""
PAPER = Paper(title="On | pipes", authors="A. <b>Person</b>", link="https://example.org", license="MIT")


@pytest.fixture
def small(server, monkeypatch, tmp_path, torch_bytes) -> ModelSpec:
    """A model whose weights the server offers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "mirrored_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    server.content = torch_bytes({"state_dict": {f"module.{key}": tensor for key, tensor in STATE.items()}})
    weights = WeightsRef("upstream", (f"{server.address}/net.pth",))
    threat = ThreatModel.parse("Linf", "0.1")
    return ModelSpec("Small", "digits", threat, "python:mirrored_nets:linear", weights, paper=PAPER)


def test_tensors_origin_and_licence_lie_in_one_folder(small, server, tmp_path, leftovers):
    folder = tmp_path / "mirror"
    [path] = mirror(small, folder, tmp_path / "models", fetcher=Web())
    assert leftovers(folder) == ["README.md", "digits/Linf/Small.safetensors", "index.json"]
    assert safetensors.torch.load_file(path)["weight"].equal(STATE["weight"])
    [original] = (tmp_path / "models/fetched").glob("*.pt")
    assert json.loads((folder / "index.json").read_text()) == {
        "digits/Linf/Small.safetensors": {
            "model": "Small",
            "dataset": "digits",
            "threat_model": "Linf",
            "license": "MIT",
            "title": "On | pipes",
            "authors": "A. <b>Person</b>",
            "link": "https://example.org",
            "origin": f"upstream:{server.address}/net.pth",
            "original": {"size": measure(original).size, "sha256": measure(original).sha256},
            "size": measure(path).size,
            "sha256": measure(path).sha256,
        }
    }
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\nlicense: mit\n")
    assert "A. &lt;b&gt;Person&lt;/b&gt;, *On &#124; pipes*" in readme
    assert "--model Small --dataset digits --threat_model Linf \\\n" in readme
    assert "--weights hf:OWNER/NAME@COMMIT:digits/Linf/Small.safetensors" in readme


def test_a_second_model_joins_the_first_and_a_second_time_changes_nothing(small, tmp_path):
    folder = tmp_path / "mirror"
    mirror(small, folder, tmp_path / "models", fetcher=Web())
    [digits] = builtin_specs()
    [path] = mirror(replace(digits, paper=replace(digits.paper, license="Apache-2.0")), folder, tmp_path / "models")
    assert path == folder / f"digits/Linf/{DIGITS_MODEL}.safetensors"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert b"license: other" in before[folder / "README.md"]
    assert len(json.loads(before[folder / "index.json"])) == 2
    mirror(small, folder, tmp_path / "models", fetcher=Web())
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_members_of_an_ensemble_lie_side_by_side(small, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        safetensors.torch.save_file(STATE, path)
    weights = WeightsRef("file", tuple(map(str, paths)))
    pair = replace(small, factory="python:mirrored_nets:Pair", weights=weights)
    written = mirror(pair, tmp_path / "mirror", tmp_path / "models")
    assert [path.name for path in written] == ["Small_m0.safetensors", "Small_m1.safetensors"]
    files = "digits/Linf/Small_m0.safetensors,digits/Linf/Small_m1.safetensors"
    assert f"hf:OWNER/NAME@COMMIT:{files}" in (tmp_path / "mirror/README.md").read_text()


def test_weights_of_another_network_do_not_go_in(small, server, tmp_path, torch_bytes, leftovers):
    server.content = torch_bytes({"weight": torch.eye(3)})
    with pytest.raises(IntegrityError, match="weights for Linear"):
        mirror(small, tmp_path / "mirror", tmp_path / "models", fetcher=Web())
    assert leftovers(tmp_path / "mirror") == []


@pytest.mark.parametrize(("content", "kind"), [(None, UsageProblem), ("{", InvalidInput), ('{"a": {}}', InvalidInput)])
def test_a_folder_of_something_else_is_left_alone(content, kind, small, tmp_path, leftovers):
    (tmp_path / "mine").mkdir()
    name = "notes.txt" if content is None else "index.json"
    (tmp_path / "mine" / name).write_text(content or "")
    with pytest.raises(kind):
        mirror(small, tmp_path / "mine", tmp_path / "models", fetcher=Web())
    assert leftovers(tmp_path / "mine") == [name]


def test_a_mirror_that_was_killed_over_its_first_model_is_continued(small, tmp_path, monkeypatch):
    folder, models = tmp_path / "mirror", tmp_path / "models"
    mirror(small, tmp_path / "whole", models, fetcher=Web())
    folder.mkdir()
    (folder / ".index.json.x7d").write_text("{")

    def killed(_source, destination) -> None:
        destination.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "copyfile", killed)
        mirror(small, folder, models)
    mirror(small, folder, models)
    (folder / ".index.json.x7d").unlink()
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    whole = tmp_path / "whole"
    assert found == {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_licences_are_asked_before_anything_is_written(tmp_path):
    specs = [spec for spec in catalog().specs() if spec.name in ("Ding2020MMA", "Wong2020Fast")]
    with pytest.raises(UsageProblem, match=r"Ding2020MMA \(CC-BY-NC-SA-4\.0\).*--allow-license CC-BY-NC-SA-4\.0"):
        check_licences(specs)
    check_licences(specs, ["CC-BY-NC-SA-4.0"])
    unknown = replace(specs[0], paper=Paper())
    for spec in (unknown, replace(unknown, weights=WeightsRef("memory", ()))):
        with pytest.raises(UsageProblem, match="unknown"):
            check_licences([spec])
    arguments = ["weights", "mirror", "--model", DIGITS_MODEL, "--model", "Ding2020MMA"]
    with pytest.raises(UsageProblem, match="anybody may publish"):
        CliRunner().invoke(cli, [*arguments, "--folder", str(tmp_path / "mirror")], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_two_models_share_is_under_both_licences(small, tmp_path):
    """The ensemble Bai2023Improving_trades has a network of Gowal2020's for a member."""
    other = replace(small.paper, license="CC-BY-NC-4.0")
    borrower, lender = replace(small, name="Borrower"), replace(small, name="Lender", paper=other)
    mirror(borrower, tmp_path / "mirror", tmp_path / "models", fetcher=Web(), zoo=(borrower, lender))
    (facts,) = json.loads((tmp_path / "mirror/index.json").read_bytes()).values()
    assert facts["license"] == "CC-BY-NC-4.0, MIT"
    assert "license: other" in (tmp_path / "mirror/README.md").read_text()
    with pytest.raises(UsageProblem, match=r"Borrower \(CC-BY-NC-4\.0\)"):
        check_licences([borrower], zoo=(borrower, lender))
    check_licences([borrower])
    bai = catalog().find("Bai2023Improving_trades", "cifar100")
    licences = [licences_of(bai, locator, catalog().specs()) for locator in bai.weights.full_locators]
    assert ("Apache-2.0", "MIT") in licences


def test_two_that_mirror_into_one_folder_leave_both(small, tmp_path, monkeypatch):
    """Each has looked at the folder before the other has written."""
    both, assembled = threading.Barrier(2), mirrors.assemble

    def together(*given):
        both.wait(timeout=60)
        return assembled(*given)

    monkeypatch.setattr(mirrors, "assemble", together)
    specs = [replace(small, name=name) for name in ("One", "Two")]
    with ThreadPoolExecutor(2) as threads:
        for done in [
            threads.submit(mirror, spec, tmp_path / "mirror", tmp_path / "models", fetcher=Web()) for spec in specs
        ]:
            done.result()
    index = json.loads((tmp_path / "mirror/index.json").read_bytes())
    assert {entry["model"] for entry in index.values()} == {"One", "Two"}
    assert [path.name for path in tmp_path.glob("mirror/*.lock")] == []


def test_a_disk_that_takes_no_more_leaves_no_half_file(small, server, torch_bytes, tmp_path, monkeypatch, leftovers):
    def full(_source, destination):
        destination.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageProblem, match="No space left"):
        mirror(small, tmp_path / "mirror", tmp_path / "models", fetcher=Web())
    assert leftovers(tmp_path / "mirror") == ["index.json"]


def test_a_licence_that_is_allowed_by_name_lets_the_command_line_go_on(tmp_path, monkeypatch):
    own = replace(catalog().find(DIGITS_MODEL), paper=Paper(title="Mine", license="CC-BY-NC-4.0"))
    monkeypatch.setattr("hpm_robustbench.request.models.find_spec", lambda *_: own)
    arguments = ["weights", "mirror", "--model", DIGITS_MODEL, "--folder", str(tmp_path / "mirror")]
    assert CliRunner().invoke(cli, arguments).exception.args[0].endswith("add --allow-license CC-BY-NC-4.0")
    done = CliRunner().invoke(cli, [*arguments, "--allow-license", "CC-BY-NC-4.0"], catch_exceptions=False)
    assert done.exit_code == 0
    (facts,) = json.loads((tmp_path / "mirror/index.json").read_bytes()).values()
    assert facts["license"] == "CC-BY-NC-4.0, MIT", "that of the shipped model, whose file it is, as well"


def test_a_folder_that_cannot_be_made_names_the_option_that_named_it(tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["weights", "mirror", "--model", DIGITS_MODEL, "--folder", str(tmp_path / "file/below")]
    error = CliRunner().invoke(cli, arguments).exception
    assert isinstance(error, StorageProblem)
    assert "name another one with --folder" in str(error)


def test_the_command_line_mirrors_the_embedded_model(tmp_path):
    arguments = ["weights", "mirror", "--model", DIGITS_MODEL, "--folder", str(tmp_path / "mirror")]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'mirror' / 'digits/Linf' / DIGITS_MODEL}.safetensors\n"
