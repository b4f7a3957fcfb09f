"""Downloads by the real clients, from a real server on the loopback."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from hpm_robustbench.errors import DownloadFailed, IntegrityError, StorageProblem, UnsafePickle, UsageProblem
from hpm_robustbench.weights import load_weights, locate
from hpm_robustbench.weights.places import fetched_place
from hpm_robustbench.weights.transfer import Partial, Patient, Unavailable
from hpm_robustbench.weights.web import GoogleDrive, Web
from hpm_robustbench.zoo.catalog import Catalog
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import WeightsRef

WONG = Catalog(robustbench_specs()).find("Wong2020Fast")
LOCATOR = str(WONG.weights)
# Google writes each of these pages as one line, and gdown reads line by line.
QUOTA = (
    b"<html><head><title>Google Drive - Quota exceeded</title></head><body>"
    b'<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>'
)
TOO_LARGE_TO_SCAN = (
    b'<html><body><form id="download-form" action="http://drive.usercontent.google.com/download" method="get">'
    b'<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t"></form></body></html>'
)


class Unsafe:
    """Not a tensor."""


class MakesFolder:
    """Whoever unpickles it gets a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def flipped(content: bytes) -> bytes:
    """One bit of a tensor is another."""
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    return bytes(changed)


def with_member(archive: bytes, name: str) -> bytes:
    """The same archive and one more file in it."""
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as opened:
        opened.writestr(name, b"")
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kept(content: bytes, locator: str = LOCATOR) -> list[str]:
    """What lies below the folder of checkpoints after one download."""
    name = fetched_place(locator, Path()).as_posix()
    return [f"converted/{sha256(content)}.json", f"converted/{sha256(content)}.safetensors", name, f"{name}.json"]


def unread() -> list[str]:
    """What lies there after the download of a pickle that nobody allows."""
    name = fetched_place(LOCATOR, Path()).as_posix()
    return [name, f"{name}.json"]


@pytest.fixture
def plain_drive(server):
    """The real client for Google Drive, sent to the server instead."""
    return GoogleDrive(f"{server.address}/uc?id={{}}", timeout=0.3)


@pytest.fixture
def drive(server, monkeypatch):
    """The real client, which believes it talks to Google: the server is its proxy."""
    monkeypatch.setenv("http_proxy", server.address)
    return GoogleDrive("http://drive.google.com/uc?id={}")


@pytest.fixture
def upstream(server):
    """A model whose weights the server offers."""
    return replace(WONG, weights=WeightsRef("upstream", (f"{server.address}/v1.1/net.pth.tar?download=1",)))


class Failing:
    """Writes half a file, then fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fetch(self, locator: str, partial: Partial) -> None:
        partial.path.write_bytes(b"half of it")
        raise self.error


class OnFullDisk:
    """Writes half a file, then meets the operating system's own error."""

    def fetch(self, locator: str, partial: Partial) -> None:
        partial.path.write_bytes(b"half of it")
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"the rest")


class Nothing:
    """Comes back with empty hands."""

    def fetch(self, locator: str, partial: Partial) -> None:
        pass


def test_a_download_is_made_once_and_its_tensors_are_kept(tmp_path, server, plain_drive, torch_bytes, leftovers):
    server.file(torch_bytes())
    [original] = locate(WONG, tmp_path, plain_drive)
    assert original.path == fetched_place(LOCATOR, tmp_path)
    assert original.path.read_bytes() == torch_bytes()
    assert original.checksum.sha256 == sha256(torch_bytes())
    assert locate(WONG, tmp_path, plain_drive) == (original,)
    assert [asked.path for asked in server.asked] == [f"/uc?id={WONG.weights.locators[0]}"]
    assert leftovers(tmp_path) == kept(torch_bytes())


def test_models_that_share_a_checkpoint_share_the_download(tmp_path, server, plain_drive, torch_bytes):
    by_id: dict[str, list] = {}
    for spec in robustbench_specs():
        by_id.setdefault(str(spec.weights), []).append(spec)
    one, other = next(specs for specs in by_id.values() if len(specs) > 1)[:2]
    server.file(torch_bytes())
    assert locate(one, tmp_path, plain_drive) == locate(other, tmp_path, plain_drive)
    assert one.weights.cache != other.weights.cache
    assert len(server.asked) == 1


@pytest.mark.filterwarnings("ignore:Call to deprecated method findChildren:DeprecationWarning")  # gdown 5.1 on bs4 4.13
def test_google_drives_confirmation_page_is_passed(tmp_path, server, drive, torch_bytes):
    server.page(TOO_LARGE_TO_SCAN)
    server.file(torch_bytes())
    [original] = locate(WONG, tmp_path, drive)
    assert original.path.read_bytes() == torch_bytes()
    confirmed = urlsplit(server.asked[1].path)
    assert (confirmed.hostname, parse_qs(confirmed.query)["confirm"]) == ("drive.usercontent.google.com", ["t"])


def test_google_drives_quota_is_a_failed_download_and_not_asked_again(tmp_path, server, drive, leftovers):
    server.page(QUOTA)
    with pytest.raises(DownloadFailed, match="Too many users") as caught:
        locate(WONG, tmp_path, Patient(drive, waits=(0.01,)))
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert f"https://drive.google.com/uc?id={WONG.weights.locators[0]}" in message
    assert str(tmp_path / "cifar10/Linf/Wong2020Fast.pt") in message
    assert len(server.asked) == 1
    assert leftovers(tmp_path) == []


@pytest.mark.filterwarnings("ignore:Call to deprecated method findChildren:DeprecationWarning")
def test_one_page_after_another_is_a_failed_download(tmp_path, server, drive):
    for _ in range(3):
        server.page(TOO_LARGE_TO_SCAN)
    with pytest.raises(DownloadFailed, match="one web page after another"):
        locate(WONG, tmp_path, drive)


def test_no_network_is_a_failed_download_at_once(tmp_path, server, plain_drive, leftovers):
    server.close()
    with pytest.raises(DownloadFailed, match=r"put the file at .*Wong2020Fast\.pt"):
        locate(WONG, tmp_path, Patient(plain_drive, waits=(60,)))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["web page", "truncated", "flipped", "upwards", "foreign", "empty", "no state dict"])
def test_what_is_no_checkpoint_is_not_kept(kind, tmp_path, server, plain_drive, torch_bytes, leftovers):
    body, named = {
        "web page": (b"<html>Sign in</html>", "a web page"),
        "truncated": (torch_bytes()[:-100], "truncated or damaged"),
        "flipped": (flipped(torch_bytes()), "does not match its checksum"),
        "upwards": (with_member(torch_bytes(), "../../outside"), r"a member called '\.\./\.\./outside'"),
        "foreign": (b"something else", "neither a torch archive"),
        "empty": (b"", "an empty file"),
        "no state dict": (torch_bytes({"weights": 1}), "one state dict"),
    }[kind]
    server.file(body)
    with pytest.raises(IntegrityError, match=named) as caught:
        locate(WONG, tmp_path, plain_drive)
    assert caught.value.exit_code == 4
    assert "it was not kept" in str(caught.value)
    assert "Wong2020Fast.pt" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_a_download_that_would_run_code_is_not_run(tmp_path, server, plain_drive, torch_bytes, leftovers):
    victim = tmp_path / "victim"
    server.file(torch_bytes({"weight": torch.ones(1), "run": MakesFolder(victim)}))
    with pytest.raises(UnsafePickle, match=r"posix\.mkdir, which could run code"):
        locate(WONG, tmp_path / "models", plain_drive)
    assert not victim.exists()
    assert leftovers(tmp_path / "models") == unread()


def test_an_unsafe_pickle_is_kept_unread_for_the_one_who_allows_it(
    tmp_path, server, plain_drive, torch_bytes, leftovers
):
    content = torch_bytes({"run": Unsafe()})
    server.file(content)
    with pytest.raises(UnsafePickle, match=r"kept unread at .*\.pt; got .*test_fetch\.Unsafe, which could run code"):
        locate(WONG, tmp_path, plain_drive)
    assert leftovers(tmp_path) == unread()
    [original] = locate(WONG, tmp_path, plain_drive)
    assert original.path.read_bytes() == content
    assert len(server.asked) == 1


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_changed_since_it_was_fetched_is_not_used(zipped, tmp_path, server, plain_drive, torch_bytes):
    """Files of torch before 1.6 have no checksum of their own: with one bit flipped they are as good as before."""
    content = torch_bytes(zipped=zipped)
    server.file(content)
    [original] = locate(WONG, tmp_path, plain_drive)
    original.path.write_bytes(flipped(content))
    with pytest.raises(IntegrityError, match=f"sha256 {sha256(content)}.*remove that file") as caught:
        locate(WONG, tmp_path, plain_drive)
    assert caught.value.exit_code == 4


def test_a_folder_that_no_system_can_have(plain_drive):
    with pytest.raises(UsageProblem, match="NUL"):
        locate(WONG, Path("a\0b"), plain_drive)


def test_a_download_with_another_sha256_is_not_kept(tmp_path, server, plain_drive, torch_bytes, leftovers):
    pinned = replace(WONG, weights=replace(WONG.weights, sha256=("0" * 64,)))
    server.file(torch_bytes())
    with pytest.raises(IntegrityError, match=sha256(torch_bytes())) as caught:
        locate(pinned, tmp_path, plain_drive)
    assert caught.value.exit_code == 4
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk(tmp_path, leftovers):
    with pytest.raises(StorageProblem, match=r"No space left.*free some space"):
        locate(WONG, tmp_path, OnFullDisk())
    assert leftovers(tmp_path) == []


def test_a_disk_that_takes_no_more(tmp_path, server, plain_drive, torch_bytes, leftovers, request):
    server.content = torch_bytes({"weight": torch.zeros(1 << 20)})
    request.getfixturevalue("small_files")
    with pytest.raises(StorageProblem, match=r"File too large.*--model_dir") as caught:
        locate(WONG, tmp_path, plain_drive)
    assert caught.value.exit_code == 1
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StorageProblem, match="--model_dir"):
        locate(WONG, tmp_path / "models", Nothing())


@pytest.mark.parametrize(
    ("fetcher", "reason"), [(Failing(Unavailable("too slow")), "too slow"), (Nothing(), "nothing arrived")]
)
def test_a_fetcher_that_fails_leaves_nothing(fetcher, reason, tmp_path, leftovers):
    with pytest.raises(DownloadFailed, match=reason):
        locate(WONG, tmp_path, fetcher)
    assert leftovers(tmp_path) == []


def test_what_an_architectures_library_has_fetched_is_used(tmp_path, upstream, monkeypatch, torch_bytes):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    there = tmp_path / "hub/checkpoints/net.pth.tar"
    there.parent.mkdir(parents=True)
    there.write_bytes(torch_bytes())
    [original] = locate(upstream, tmp_path / "models")
    assert original.path == there


def test_an_upstream_that_says_no_is_a_failed_download(tmp_path, server, upstream, monkeypatch, leftovers):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    server.close()
    with pytest.raises(DownloadFailed, match=r"refused.*hub/checkpoints/net\.pth\.tar"):
        locate(upstream, tmp_path / "models")
    assert leftovers(tmp_path) == []


def test_what_has_arrived_outlives_the_process(tmp_path, server, upstream, torch_bytes, leftovers):
    server.content = torch_bytes()
    server.file(torch_bytes(), cut=200_000, ETag=f'"{sha256(torch_bytes())}"')
    with pytest.raises(DownloadFailed, match="IncompleteRead"):
        locate(upstream, tmp_path, Web())
    name = fetched_place(str(upstream.weights), Path()).as_posix()
    assert leftovers(tmp_path) == [f"{name}.partial", f"{name}.partial.mark"]
    [original] = locate(upstream, tmp_path, Web())
    assert original.path.read_bytes() == torch_bytes()
    assert server.asked[1].headers["Range"] == "bytes=196608-"
    assert leftovers(tmp_path) == kept(torch_bytes(), str(upstream.weights))


FETCH = """
import sys
from dataclasses import replace
from pathlib import Path
from hpm_robustbench.weights import locate
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.spec import WeightsRef

spec = replace(catalog().find("Wong2020Fast"), weights=WeightsRef("upstream", (sys.argv[1],)))
[original] = locate(spec, Path(sys.argv[2]))
print(original.checksum.sha256)
"""


def test_two_processes_fetch_one_file_once(tmp_path, server, torch_bytes, leftovers):
    server.content = torch_bytes()
    server.file(torch_bytes(), cut=200_000, stall=True, ETag=f'"{sha256(torch_bytes())}"')
    url = f"{server.address}/net.pth"
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "torch")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, url, str(tmp_path / "models")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    while not server.asked:
        time.sleep(0.01)
    time.sleep(1)  # the other one has time to come as well
    assert len(server.asked) == 1
    server.open.set()
    ended = [process.communicate(timeout=300) for process in processes]
    assert [out.strip() for out, _ in ended] == 2 * [sha256(torch_bytes())], ended
    assert [asked.headers.get("Range") for asked in server.asked] == [None, "bytes=196608-"]
    assert leftovers(tmp_path / "models") == kept(torch_bytes(), f"upstream:{url}")


def test_a_checkpoint_of_another_architecture_says_how_to_have_it_fetched_again(
    upstream, server, torch_bytes, tmp_path
):
    """It is a whole checkpoint, so it is kept; nobody asks for another one before it is gone."""
    right = torch.nn.Linear(2, 2)

    def load():
        return load_weights(upstream, tmp_path, Web(), network=torch.nn.Linear(2, 2)).model.state_dict()

    server.content = torch_bytes({"elsewhere": torch.ones(2)})
    with pytest.raises(IntegrityError, match="to have it fetched again, remove ") as caught:
        load()
    (named,) = re.findall(r"remove (\S+) and repeat", str(caught.value))
    server.content, asked = torch_bytes(right.state_dict()), len(server.asked)
    with pytest.raises(IntegrityError):
        load()
    assert len(server.asked) == asked
    Path(named).unlink()
    assert torch.equal(load()["weight"], right.weight)
