"""A server on the loopback that behaves as well or as badly as a test wants."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

ATTACHMENT = {"Content-Type": "application/octet-stream", "Content-Disposition": 'attachment; filename="x.pt"'}


@dataclass(frozen=True)
class Reply:
    """One answer; after ``cut`` bytes of its body the line goes dead or, with ``stall``, silent."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: bool = False


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]


class Server:
    """Answers with the next of ``replies``; when there is none left, with ``content``, in parts if asked for parts.

    Where ``route`` is given, it alone decides: from a path to a body, a status and headers.
    """

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.content: bytes | None = None
        self.route: Callable[[str], tuple[bytes, int, dict[str, str]]] | None = None
        self.asked: list[Asked] = []
        self.open = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(Asked(self.path, dict(self.headers)))
                if server.route is not None:
                    self.answer(Reply(*server.route(self.path)))
                else:
                    self.answer(server.replies.pop(0) if server.replies else server.host(dict(self.headers)))

            def do_HEAD(self) -> None:
                self.do_GET()

            def answer(self, reply: Reply) -> None:
                self.send_response(reply.status)
                base = {"Content-Type": "text/html", "Content-Length": str(len(reply.body))}
                for name, value in {**base, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    with suppress(ConnectionError):  # a client may hang up
                        self.wfile.write(reply.body[: reply.cut])
                        self.wfile.flush()
                if reply.stall:
                    server.open.wait(10)
                self.close_connection = True

            def log_message(self, *_args: object) -> None:
                """Keep the test's output clean."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def page(self, body: bytes, status: int = 200, **headers: str) -> None:
        """Answer the next request with a web page; an underscore in a header's name stands for a hyphen."""
        self.replies.append(Reply(body, status, {name.replace("_", "-"): text for name, text in headers.items()}))

    def file(self, body: bytes, *, cut: int | None = None, stall: bool = False, **headers: str) -> None:
        """Answer the next request with a file, or with its beginning."""
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        self.replies.append(Reply(body, 200, {**ATTACHMENT, **given}, cut, stall))

    def host(self, headers: dict[str, str]) -> Reply:
        """Serve ``content`` as a well-behaved server of files does."""
        if self.content is None:
            return Reply(b"nothing here", 404)
        etag = f'"{hashlib.sha256(self.content).hexdigest()}"'
        known = {**ATTACHMENT, "ETag": etag}
        start = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
        if start is None or headers.get("If-Range", etag) != etag:
            return Reply(self.content, headers=known)
        first, size = int(start[1]), len(self.content)
        if first >= size:
            return Reply(status=416, headers={**known, "Content-Range": f"bytes */{size}"})
        span = {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
        return Reply(self.content[first:], 206, {**known, **span})

    def close(self) -> None:
        self.open.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def torch_bytes() -> Callable[..., bytes]:
    """What torch.save writes of something; by default of a small state dict."""

    def written(content: object = None, *, zipped: bool = True) -> bytes:
        buffer = io.BytesIO()
        state = {"weight": torch.arange(80_000.0), "bias": torch.ones(2)} if content is None else content
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        return buffer.getvalue()

    return written


@pytest.fixture
def leftovers() -> Callable[[Path], list[str]]:
    """Names of the files below a folder, without the empty ones that locks leave behind on some systems."""

    def names(folder: Path) -> list[str]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
        return sorted(str(path.relative_to(folder)) for path in files)

    return names


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file of this process and its children grow beyond a megabyte."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
