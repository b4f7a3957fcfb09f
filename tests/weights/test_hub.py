"""Weights from the Hugging Face Hub, by its real client, from a server on the loopback that speaks as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hpm_robustbench.errors import DownloadFailed, IntegrityError, StorageProblem
from hpm_robustbench.request.models import spec_to_run
from hpm_robustbench.weights import Trust, locate
from hpm_robustbench.weights.hub import Hub, at_commits
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import WeightsRef

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = safetensors.torch.save({"weight": torch.arange(1000.0)[None]})
FILE = HubFile("owner/name", "main")


def hub_says(path: str) -> tuple[bytes, int, dict[str, str]]:
    """The Hub with one repository, one gated and one private, each with one commit."""
    _, *repo, verb, revision, file = path.split("/", 5)
    status, code = {
        "owner/name": (200, ""),
        "owner/gated": (403, "GatedRepo"),
        "owner/private": (401, ""),
        "owner/absent": (404, "RepoNotFound"),
        "owner/denied": (403, ""),
        "owner/busy": (503, ""),
    }["/".join(repo)]
    if status == 200 and revision not in (COMMIT, "main"):
        status, code = 404, "RevisionNotFound"
    elif status == 200 and file != "model.safetensors":
        status, code = 404, "EntryNotFound"
    assert verb == "resolve"
    known = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(CONTENT).hexdigest()}"'}
    return (CONTENT, 200, known) if status == 200 else (b"", status, {"X-Error-Code": code} if code else {})


@pytest.fixture
def hub(server, tmp_path, monkeypatch) -> Hub:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # the client asks again by itself, with growing pauses
    server.route = hub_says
    return Hub(server.address, tmp_path / "cache")


def test_a_branch_is_replaced_by_its_commit(hub):
    path, found = hub.fetch(FILE)
    assert path.read_bytes() == CONTENT
    assert found == HubFile("owner/name", COMMIT)
    assert at_commits(WeightsRef("hf", ("owner/name@main:model.safetensors",)), hub) == WeightsRef("hf", (str(found),))


def test_a_commit_in_the_cache_is_taken_without_asking(hub, server):
    first, _ = hub.fetch(HubFile("owner/name", COMMIT))
    asked = len(server.asked)
    server.close()
    assert hub.fetch(HubFile("owner/name", COMMIT)) == (first, HubFile("owner/name", COMMIT))
    assert len(server.asked) == asked


def test_other_weights_are_left_as_they_are(hub, server):
    reference = WeightsRef("gdrive", ("abc",))
    assert at_commits(reference, hub) == reference
    pinned = WeightsRef("hf", (f"owner/name@{COMMIT}:model.safetensors",))
    assert at_commits(pinned, hub) == pinned
    assert server.asked == []


@pytest.mark.parametrize(
    ("file", "got", "way_out"),
    [
        (HubFile("owner/gated", "main"), "terms have to be accepted", "accept them on its page"),
        (HubFile("owner/private", "main"), "401", "HF_TOKEN"),
        (HubFile("owner/absent", "main"), "no such repository, or a private one", "check its name"),
        (HubFile("owner/denied", "main"), "403", "HF_TOKEN"),
        (HubFile("owner/busy", "main"), "503", "try again later"),
        (HubFile("owner/name", "absent"), "no such revision", "commit, branch or tag"),
        (HubFile("owner/name", "main", "absent.safetensors"), "no such file", "name one"),
    ],
    ids=["gated", "private", "absent", "denied", "busy", "revision", "file"],
)
def test_a_no_says_the_way_out(file, got, way_out, hub):
    with pytest.raises(DownloadFailed, match=got) as caught:
        hub.fetch(file)
    assert way_out in str(caught.value)
    assert caught.value.exit_code == 3
    assert not list(Path(hub.cache).rglob("*.safetensors"))


def test_nobody_answers(hub, server):
    server.close()
    with pytest.raises(DownloadFailed, match=r"not in the local cache, .*hf download owner/name model\.safetensors"):
        hub.fetch(FILE)


def test_a_disk_that_takes_no_more(hub, server, request):
    large = safetensors.torch.save({"weight": torch.zeros(1 << 20)})
    mark = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(large).hexdigest()}"'}
    server.route = lambda _path: (large, 200, mark)
    request.getfixturevalue("small_files")
    with pytest.raises(StorageProblem, match=r"File too large.*HF_HOME") as caught:
        hub.fetch(FILE)
    assert caught.value.exit_code == 1
    assert not list(Path(hub.cache).rglob("*.safetensors"))


def test_a_token_is_not_repeated(hub, server):
    def echo(_path: str) -> tuple[bytes, int, dict[str, str]]:
        return b"", 400, {"X-Error-Message": "bad token hf_abcdefghijklmnop"}

    server.route = echo
    with pytest.raises(DownloadFailed) as caught:
        hub.fetch(FILE)
    assert "hf_abcdefgh" not in str(caught.value)


def test_a_known_model_takes_weights_from_the_hub():
    written = f"hf:owner/name@{COMMIT}:wong.safetensors"
    spec = spec_to_run("Wong2020Fast", None, None, "4/255", weights=written)
    assert (str(spec.weights), spec.name) == (written, "Wong2020Fast_eps4-255")
    assert spec.factory == "robustbench:cifar10/Linf/Wong2020Fast"


def test_a_file_that_is_not_the_pinned_one_does_not_stay_in_the_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("hpm_robustbench.weights.places.Hub", lambda: hub)
    spec = spec_to_run("Wong2020Fast", None, None, None, weights=f"hf:owner/name@{COMMIT}:model.safetensors")
    checksums = tmp_path / "checksums.json"
    checksums.write_text(json.dumps({str(spec.weights): {"sha256": "0" * 64, "size": len(CONTENT)}}))
    with pytest.raises(IntegrityError, match=r"sha256 0000.*; it was not kept") as caught:
        locate(spec, tmp_path / "models", trust=Trust(checksums))
    assert caught.value.exit_code == 4
    assert not [path for path in Path(hub.cache).rglob("*") if path.is_file() and path.read_bytes() == CONTENT]


LOAD = """
from pathlib import Path
from hpm_robustbench.request.models import own_spec
from hpm_robustbench.weights import load_weights
from hpm_robustbench.weights.pin import pin

track = {"dataset": "digits", "threat_model": "Linf", "eps": "0.1"}
spec = own_spec("nets:net", "hf:owner/name@main", name=None, head=None, about=None, **track)
loaded = load_weights(spec, Path("models"))
[(locator, pinned)] = pin(spec, Path("models")).items()
assert (locator, pinned.sha256) == (str(spec.weights), *loaded.sha256)
print(spec.weights, *loaded.sha256, loaded.model.weight.sum().item())
"""


def test_a_model_with_weights_on_the_hub_loads_and_loads_again_offline(server, tmp_path):
    """In a process of its own: the client reads its settings when it is imported."""
    server.route = hub_says
    (tmp_path / "nets.py").write_text("import torch\ndef net(): return torch.nn.Linear(1000, 1, bias=False)\n")
    (tmp_path / "load.py").write_text(LOAD)
    settings = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    def load(**more: str) -> str:
        command = [sys.executable, str(tmp_path / "load.py")]
        environment = {**os.environ, **path, **settings, **more}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    online = load()
    server.close()
    expected = f"hf:owner/name@{COMMIT}:model.safetensors {hashlib.sha256(CONTENT).hexdigest()} 499500.0\n"
    assert online == expected
    assert load(HF_HUB_OFFLINE="1") == expected
    assert not (tmp_path / "models").exists()
