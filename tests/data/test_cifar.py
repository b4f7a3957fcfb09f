from __future__ import annotations

import hashlib
import pickle
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from hpm_robustbench.data import holds_clean, open_dataset
from hpm_robustbench.errors import DownloadFailed
from hpm_robustbench.offline import connections
from hpm_robustbench.robustbench_compat import import_torchvision


def write_archive(data_dir: Path, dataset_class, monkeypatch) -> np.ndarray:
    """An archive laid out like the official one, two images a file, whose md5 values torchvision is told to expect."""
    folder = data_dir / dataset_class.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3072), np.uint8)
    labels_key = "labels" if dataset_class.base_folder == "cifar-10-batches-py" else "fine_labels"

    def write(name: str, content: dict) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    lists = {"test_list": [], "train_list": []}
    batches = iter(pixels)
    for which, entries in lists.items():
        for name, _ in getattr(dataset_class, which):
            entries.append([name, write(name, {"data": next(batches), labels_key: [3, 7]})])
        monkeypatch.setattr(dataset_class, which, entries)
    meta = dict(dataset_class.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: [str(i) for i in range(100)]})
    monkeypatch.setattr(dataset_class, "meta", meta)
    return pixels


@pytest.mark.parametrize(("name", "n_train"), [("cifar10", 10), ("cifar100", 2)])
def test_the_official_archive_is_read_from_data_dir(tmp_path, monkeypatch, name, n_train):
    dataset_class = getattr(import_torchvision().datasets, name.upper())
    pixels = write_archive(tmp_path, dataset_class, monkeypatch)
    source = open_dataset(name, data_dir=tmp_path)
    test = source.test()
    assert np.array_equal((test.images * 255).round().numpy(), pixels[0].reshape(2, 3, 32, 32))
    assert test.labels.tolist() == [3, 7]
    assert test.images.is_contiguous()
    assert source.test(1).fingerprint == test.head(1).fingerprint
    assert len(source.train()) == n_train
    assert holds_clean(name, tmp_path)
    assert open_dataset(name, data=tmp_path).test().fingerprint == test.fingerprint


def test_a_missing_archive_without_a_network_says_what_to_put_where(tmp_path, without_network):
    with pytest.raises(DownloadFailed) as caught:
        open_dataset("cifar10", data_dir=tmp_path).test()
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in message
    assert f"put cifar-10-python.tar.gz into {tmp_path}" in message
    assert "--data file.npz" in message


def test_nothing_is_downloaded_where_no_connection_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    with connections(allowed=False), pytest.raises(DownloadFailed, match=r"no leave to connect.*--data file\.npz"):
        open_dataset("cifar10", data_dir=tmp_path).test()


def test_an_archive_with_another_md5_is_never_unpickled(tmp_path, without_network):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    for name in ("test_batch", "batches.meta", *(f"data_batch_{i}" for i in range(1, 6))):
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DownloadFailed, match=r"cifar-10-python\.tar\.gz"):
        open_dataset("cifar10", data_dir=tmp_path).test()


def test_a_foreign_download_is_refused(tmp_path, monkeypatch, login_page):
    monkeypatch.setattr(import_torchvision().datasets.CIFAR100, "url", login_page)
    with pytest.raises(DownloadFailed, match="RuntimeError: File not found or corrupted"):
        open_dataset("cifar100", data_dir=tmp_path).test()


@pytest.fixture
def login_page(monkeypatch):
    """The address of a local server that answers every request with the same few words, as hotel networks do."""

    class Hotel(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"please log in")

        do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hotel) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz"
        server.shutdown()
        thread.join()


@pytest.fixture
def without_network(monkeypatch):
    """Send every request to a local port where nobody listens."""
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    for exception in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(exception, raising=False)
