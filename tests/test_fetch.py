"""Downloads by the real clients, from a real server on the loopback."""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from hpm_robustbench.errors import DownloadFailed, IntegrityError, StorageProblem
from hpm_robustbench.weights import GoogleDrive, locate
from hpm_robustbench.zoo.catalog import Catalog
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import WeightsRef

WONG = Catalog(robustbench_specs()).find("Wong2020Fast")
FILE = {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="x.pt"'}
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


def torch_bytes(content: object = None) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.eye(2)} if content is None else content, buffer)
    return buffer.getvalue()


class Server:
    """Answers every request with the next of ``replies``: (headers, body), and remembers what was asked."""

    def __init__(self) -> None:
        self.replies: list[tuple[dict[str, str], bytes]] = []
        self.asked: list[str] = []
        replies, asked = self.replies, self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                headers, body = replies.pop(0)
                self.send_response(200)
                for name, value in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                """Keep the test's output clean."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def plain_drive(server):
    """The real gdown client, sent to the server instead of Google."""
    return GoogleDrive(f"{server.address}/uc?id={{}}")


@pytest.fixture
def drive(server, monkeypatch):
    """The real gdown client, which believes it talks to Google: the server is its proxy."""
    monkeypatch.setenv("http_proxy", server.address)
    return GoogleDrive("http://drive.google.com/uc?id={}")


class Failing:
    """Writes half a file, then fails."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def fetch(self, source_id: str, destination: Path) -> None:
        destination.write_bytes(b"half of it")
        raise self.error


class OnFullDisk:
    """Writes half a file, then meets the operating system's own error."""

    def fetch(self, source_id: str, destination: Path) -> None:
        destination.write_bytes(b"half of it")
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"the rest")


class Nothing:
    """Comes back with empty hands."""

    def fetch(self, source_id: str, destination: Path) -> None:
        pass


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_download_goes_where_robustbench_keeps_it_and_is_made_once(tmp_path, server, plain_drive):
    server.replies.append((FILE, torch_bytes()))
    paths = locate(WONG, tmp_path, plain_drive)
    assert paths == [tmp_path / "cifar10/Linf/Wong2020Fast.pt"]
    assert paths[0].read_bytes() == torch_bytes()
    assert locate(WONG, tmp_path, plain_drive) == paths
    assert server.asked == [f"/uc?id={WONG.weights.locators[0]}"]
    assert leftovers(tmp_path) == ["cifar10/Linf/Wong2020Fast.pt"]


@pytest.mark.filterwarnings("ignore:Call to deprecated method findChildren:DeprecationWarning")  # gdown 5.1 on bs4 4.13
def test_google_drives_confirmation_page_is_passed(tmp_path, server, drive):
    server.replies += [({}, TOO_LARGE_TO_SCAN), (FILE, torch_bytes())]
    [path] = locate(WONG, tmp_path, drive)
    assert path.read_bytes() == torch_bytes()
    confirmed = urlsplit(server.asked[1])
    assert (confirmed.hostname, parse_qs(confirmed.query)["confirm"]) == ("drive.usercontent.google.com", ["t"])


def test_google_drives_quota_is_a_failed_download(tmp_path, server, drive):
    server.replies.append(({}, QUOTA))
    with pytest.raises(DownloadFailed, match="Too many users") as caught:
        locate(WONG, tmp_path, drive)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert f"https://drive.google.com/uc?id={WONG.weights.locators[0]}" in message
    assert str(tmp_path / "cifar10/Linf/Wong2020Fast.pt") in message
    assert leftovers(tmp_path) == []


def test_no_network_is_a_failed_download(tmp_path, server, plain_drive):
    server.close()
    with pytest.raises(DownloadFailed, match=r"put the file at .*Wong2020Fast\.pt"):
        locate(WONG, tmp_path, plain_drive)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"<html>Sign in</html>", "a web page"),
        (torch_bytes()[:-100], "truncated or damaged"),
        (b"something else", "neither a torch archive"),
        (torch_bytes({"run": Unsafe()}), "test_fetch.Unsafe, which could run code"),
        (b"", "an empty file"),
    ],
    ids=["web page", "truncated", "foreign", "unsafe", "empty"],
)
def test_what_is_no_checkpoint_is_not_kept(body, named, tmp_path, server, plain_drive):
    server.replies.append((FILE, body))
    with pytest.raises(IntegrityError, match=named) as caught:
        locate(WONG, tmp_path, plain_drive)
    assert caught.value.exit_code == 4
    assert "Wong2020Fast.pt" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_a_connection_that_ends_early_is_a_failed_download(tmp_path, server, plain_drive):
    server.replies.append(({**FILE, "Content-Length": "9999999"}, torch_bytes()))
    with pytest.raises(DownloadFailed):
        locate(WONG, tmp_path, plain_drive)
    assert leftovers(tmp_path) == []


def test_a_download_with_another_sha256_is_not_kept(tmp_path, server, plain_drive):
    pinned = replace(WONG, weights=replace(WONG.weights, sha256=("0" * 64,)))
    server.replies.append((FILE, torch_bytes()))
    with pytest.raises(IntegrityError, match=hashlib.sha256(torch_bytes()).hexdigest()) as caught:
        locate(pinned, tmp_path, plain_drive)
    assert caught.value.exit_code == 4
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk(tmp_path):
    with pytest.raises(StorageProblem, match=r"No space left.*free some space"):
        locate(WONG, tmp_path, OnFullDisk())
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StorageProblem, match="--model_dir"):
        locate(WONG, tmp_path / "models", Nothing())


@pytest.mark.parametrize(
    ("fetcher", "reason"),
    [(Failing(TimeoutError("too slow")), "TimeoutError: too slow"), (Nothing(), "nothing arrived")],
)
def test_a_fetcher_that_fails_leaves_nothing(fetcher, reason, tmp_path):
    with pytest.raises(DownloadFailed, match=reason):
        locate(WONG, tmp_path, fetcher)
    assert leftovers(tmp_path) == []


def test_upstream_files_lie_where_their_library_looks(tmp_path, server, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = replace(WONG, weights=WeightsRef("upstream", (f"{server.address}/v1.1/net.pth.tar?download=1",)))
    server.replies.append((FILE, torch_bytes()))
    assert locate(spec, tmp_path / "models") == [tmp_path / "hub/checkpoints/net.pth.tar"]
    assert leftovers(tmp_path) == ["hub/checkpoints/net.pth.tar"]


def test_an_upstream_that_says_no_is_a_failed_download(tmp_path, server, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = replace(WONG, weights=WeightsRef("upstream", (f"{server.address}/net.pth",)))
    server.close()
    with pytest.raises(DownloadFailed, match=r"refused.*hub/checkpoints/net\.pth"):
        locate(spec, tmp_path / "models")
    assert leftovers(tmp_path) == []
