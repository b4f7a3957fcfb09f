"""A Hugging Face Hub on the loopback: repositories with commits and branches over HTTP, and faults when wanted.

It speaks what ``huggingface_hub`` asks for to create, upload, list and download, as the Hub's API and git-lfs's batch
protocol document it. Files of at least ``LARGE`` bytes, and all safetensors and Parquet files, go through large file
storage. Datasets lie beside models, under ``datasets/``. It offers no Xet storage.

    python loopback_hub.py STATE TOKEN OWNER [PORT STOP_AT]

serves in a process of its own, which says its address, then each request; it forgets nothing that it has answered, and
stops in the middle of the first request that ``STOP_AT`` matches, until it is killed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether it lies in large file storage."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_sha1(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.large else self.content
        return hashlib.sha1(f"blob {len(stored)}\0".encode() + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_sha1


@dataclass
class Repository:
    """Commits by their hash, each with all of its files, and the branches and tags that name some."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        told = json.dumps([self.branches.get(branch), message, {p: b.git_sha1 for p, b in sorted(files.items())}])
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose method and path match.

    ``status`` 0 hangs up without an answer; ``cut`` ends the body early; ``flip`` changes its last byte; ``delay`` is
    waited first, unless the Hub closes; ``after`` does what was asked and then hangs up.
    """

    match: str
    status: int | None = None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    flip: bool = False
    after: bool = False
    delay: float = 0.0


class Refusal(Exception):
    """The Hub says no."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.body = status, json.dumps({"error": message, **more}).encode()
        self.headers = {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Error-Message": message} if message else {}


@dataclass
class Asked:
    """One request: method, path, headers and body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class LoopbackHub:
    """The Hub. ``tokens`` maps those that are accepted to the names that they may write to; empty reads only.

    ``state`` is a file that outlives it. ``arriving`` is called with a request whose body is still to be read.
    """

    def __init__(self, tokens: dict[str, set[str]], port: int = 0, state: Path | None = None) -> None:
        self.tokens, self.state, self.closing = tokens, state, threading.Event()
        self.repositories: dict[str, Repository] = {}
        self.storage: dict[str, bytes] = {}
        if state is not None and state.exists():
            self.repositories, self.storage = pickle.loads(state.read_bytes())
        self.arriving: Callable[[BaseHTTPRequestHandler], object] = lambda _handler: None
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.failing, self.chance = 0.0, random.Random(0)
        self.lock = threading.RLock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                hub.arriving(self)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b"".join(self._chunks())
                hub.serve(self, Asked(self.command, self.path, dict(self.headers), body))

            def _chunks(self) -> Iterator[bytes]:
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - as http.server names them

            def log_message(self, *_args: object) -> None:
                """Keep the test's output clean."""

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def head(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository as anybody sees them."""
        repository = self.repositories[repo]
        return {path: blob.content for path, blob in repository.commits[repository.branches[revision]].items()}

    def serve(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        """Answer one request, as a fault or as the Hub does."""
        with self.lock:
            self.asked.append(asked)
            fault = self._fault(asked)
        if fault is not None:
            self.closing.wait(fault.delay)
            if fault.status == 0:
                handler.close_connection = True
                return
            if fault.status is not None:
                self._send(handler, fault.status, b"", fault.headers)
                return
        try:
            with self.lock:
                status, body, headers = self._route(asked)
                self._remember(asked)
        except Refusal as refusal:
            status, body, headers = refusal.status, refusal.body, refusal.headers
        if fault is not None and fault.after:
            handler.close_connection = True
            return
        self._send(handler, status, body, headers, fault)

    def _remember(self, asked: Asked) -> None:
        """Put down all that there is, whole or not at all, before anybody is told of it."""
        if self.state is not None and asked.method in ("POST", "PUT"):
            new = self.state.with_suffix(".new")
            new.write_bytes(pickle.dumps((self.repositories, self.storage)))
            new.replace(self.state)

    def _fault(self, asked: Asked) -> Fault | None:
        if self.failing and self.chance.random() < self.failing:
            kinds = [Fault("", 503), Fault("", 0), Fault("", 429, headers={"Retry-After": "1"}), Fault("", after=True)]
            return self.chance.choice([*kinds, Fault("", cut=True)])
        line = f"{asked.method} {unquote(asked.path)}"
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, line):
                fault.times -= 1
                return fault
        return None

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if fault is not None and fault.flip and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault is not None and fault.cut:
            body = body[: len(body) // 2]
            handler.close_connection = True
        if handler.command != "HEAD":
            with suppress(ConnectionError):  # a client may hang up
                handler.wfile.write(body)

    def _route(self, asked: Asked) -> tuple[int, bytes, dict[str, str]]:
        url = urlsplit(asked.path.replace("/api/models/", "/api/", 1))
        for pattern, answer in self._routes.items():
            method, _, path = pattern.partition(" ")
            found = re.fullmatch(path, url.path)
            if found and asked.method in method.split("|"):
                parts = [unquote(part) for part in found.groups()]
                made = answer(self, asked, parse_qs(url.query), *parts)
                if isinstance(made, tuple):
                    return made
                return 200, json.dumps(made).encode(), {"Content-Type": "application/json"}
        raise Refusal(404, message=f"nothing answers {asked.method} {url.path}")

    def _names(self, asked: Asked) -> set[str] | None:
        """Names that the asker may write to; None for nobody in particular."""
        token = asked.headers.get("Authorization", asked.headers.get("authorization", "")).removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.tokens:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return self.tokens[token]

    def _writer(self, asked: Asked, owner: str) -> None:
        names = self._names(asked)
        if names is None:
            raise Refusal(401, message="Invalid username or password.")
        if owner not in names:
            raise Refusal(403, message=f"You don't have the rights to write under the namespace {owner}")

    def _repository(self, asked: Asked, repo: str) -> Repository:
        names, found = self._names(asked), self.repositories.get(repo)
        hidden = found is None or (found.private and repo.split("/")[-2] not in (names or ()))
        if hidden:
            raise Refusal(404 if names is not None else 401, "RepoNotFound", "Repository not found")
        assert found is not None
        if found.gated and names is None:
            raise Refusal(403, "GatedRepo", f"Access to model {repo} is restricted")
        return found

    def _files(self, asked: Asked, repo: str, revision: str) -> tuple[str, dict[str, Blob]]:
        repository = self._repository(asked, repo)
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def _whoami(self, asked: Asked, _query: object) -> object:
        names = self._names(asked)
        if names is None:
            raise Refusal(401, message="Invalid username or password.")
        return {"type": "user", "name": min(names, default="reader"), "orgs": []}

    def _create(self, asked: Asked, _query: object) -> object:
        wanted = json.loads(asked.body)
        owner = wanted.get("organization") or min(self._names(asked) or {"nobody"})
        self._writer(asked, owner)
        kind = wanted.get("type") or "model"
        repo = f"{'datasets/' if kind == 'dataset' else ''}{owner}/{wanted['name']}"
        if repo in self.repositories:
            raise Refusal(409, message=f"You already created this {kind} repo", url=f"{self.address}/{repo}")
        made = Repository(private=wanted.get("private", wanted.get("visibility") == "private"))
        made.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self.repositories[repo] = made
        return {"url": f"{self.address}/{repo}", "name": repo}

    def _branch(self, asked: Asked, _query: object, repo: str, branch: str) -> object:
        self._writer(asked, repo.split("/")[-2])
        repository = self._repository(asked, repo)
        if branch in repository.branches:
            raise Refusal(409, message="Reference already exists")
        start = json.loads(asked.body or b"{}").get("startingPoint", "main")
        commit, _ = self._files(asked, repo, start)
        repository.branches[branch] = commit
        return {}

    def _tag(self, asked: Asked, _query: object, repo: str, revision: str) -> object:
        self._writer(asked, repo.split("/")[-2])
        commit, _ = self._files(asked, repo, revision)
        tag, tags = json.loads(asked.body)["tag"], self.repositories[repo].tags
        if tag in tags:
            raise Refusal(409, message="Tag reference exists already")
        tags[tag] = commit
        return {}

    def _yaml(self, asked: Asked, _query: object) -> object:
        content = json.loads(asked.body)["content"]
        good = content.startswith("---\n") and "\n---\n" in content[4:]
        errors = [] if good else [{"message": "no metadata"}]
        return (200 if good else 400), json.dumps({"errors": errors, "warnings": []}).encode(), {}

    def _preupload(self, asked: Asked, _query: object, repo: str, revision: str) -> object:
        self._writer(asked, repo.split("/")[-2])
        _, held = self._files(asked, repo, revision)
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if self._is_large(file) else "regular",
                    "shouldIgnore": False,
                    "oid": held[file["path"]].etag if file["path"] in held else None,
                }
                for file in json.loads(asked.body)["files"]
            ]
        }

    @staticmethod
    def _is_large(file: dict[str, object]) -> bool:
        return str(file["path"]).endswith((".safetensors", ".parquet")) or int(str(file["size"])) >= LARGE

    def _lfs_batch(self, asked: Asked, _query: object, repo: str) -> object:
        self._writer(asked, repo.split("/")[-2])
        wanted = json.loads(asked.body)
        assert (wanted["operation"], wanted["hash_algo"]) == ("upload", "sha256")
        objects = []
        for one in wanted["objects"]:
            upload = {"href": f"{self.address}/storage/{one['oid']}", "header": {}}
            verify = {"href": f"{self.address}/storage/{one['oid']}/verify", "header": {}}
            actions = {} if one["oid"] in self.storage else {"actions": {"upload": upload, "verify": verify}}
            objects.append({**one, **actions})
        return {"transfer": "basic", "objects": objects}

    def _store(self, asked: Asked, _query: object, oid: str) -> object:
        if hashlib.sha256(asked.body).hexdigest() != oid:
            raise Refusal(400, message="the content does not match its hash")
        self.storage[oid] = asked.body
        return 200, b"", {}

    def _verify(self, asked: Asked, _query: object, oid: str) -> object:
        if len(self.storage.get(oid, b"")) != json.loads(asked.body)["size"]:
            raise Refusal(404, message="no such object")
        return {}

    def _commit(self, asked: Asked, query: dict[str, list[str]], repo: str, revision: str) -> object:
        self._writer(asked, repo.split("/")[-2])
        repository = self._repository(asked, repo)
        base, held = self._files(asked, repo, revision)
        lines = [json.loads(line) for line in asked.body.splitlines() if line.strip()]
        assert lines[0]["key"] == "header"
        header, files = lines[0]["value"], dict(held)
        if header.get("parentCommit", base) != base:
            raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        branch = f"refs/pr/{len(repository.branches)}" if query.get("create_pr") else revision
        sha = repository.commit(branch, files, header["summary"])
        made = {"success": True, "commitOid": sha, "commitUrl": f"{self.address}/{repo}/commit/{sha}"}
        number = branch.rpartition("/")[2]
        return {**made, "pullRequestUrl": f"{self.address}/{repo}/discussions/{number}"} if "pr/" in branch else made

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, str]) -> None:
        if key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in self.storage:
                raise Refusal(400, message="LFS object was not uploaded")
            files[value["path"]] = Blob(self.storage[value["oid"]], True)
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise Refusal(400, message=f"unknown operation {key}")

    def _info(self, asked: Asked, _query: object, repo: str, revision: str = "main") -> object:
        commit, files = self._files(asked, repo, revision)
        about, name = self.repositories[repo], repo.removeprefix("datasets/")
        siblings = [{"rfilename": path} for path in sorted(files)]
        facts = {"id": name, "modelId": name, "sha": commit, "private": about.private, "gated": about.gated}
        return {**facts, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}

    def _tree(self, asked: Asked, _query: object, repo: str, revision: str) -> object:
        _, files = self._files(asked, repo, revision)
        return [
            {
                "type": "file",
                "path": path,
                "size": len(blob.content),
                "oid": blob.git_sha1,
                **({"lfs": self._large(blob)} if blob.large else {}),
            }
            for path, blob in sorted(files.items())
        ]

    @staticmethod
    def _large(blob: Blob) -> dict[str, object]:
        return {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 127}

    def _refs(self, asked: Asked, _query: object, repo: str) -> object:
        found = self._repository(asked, repo)

        def told(folder: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in names.items()]

        return {"branches": told("heads", found.branches), "tags": told("tags", found.tags), "converts": []}

    def _resolve(self, asked: Asked, _query: object, repo: str, revision: str, path: str) -> object:
        commit, files = self._files(asked, repo, revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        blob = files[path]
        large = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))} if blob.large else {}
        known = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", **large}
        asked_from = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("Range", asked.headers.get("range", "")))
        if asked_from is None or int(asked_from[1]) == 0:
            return 200, blob.content, known
        start, size = int(asked_from[1]), len(blob.content)
        return 206, blob.content[start:], {**known, "Content-Range": f"bytes {start}-{size - 1}/{size}"}

    _repo, _rev = r"((?:datasets/)?[\w.-]+/[\w.-]+)", r"([^/]+)"
    _routes = {  # noqa: RUF012 - never changed
        "GET /api/whoami-v2": _whoami,
        "POST /api/repos/create": _create,
        "POST /api/validate-yaml": _yaml,
        f"POST /api/{_repo}/branch/{_rev}": _branch,
        f"POST /api/{_repo}/tag/{_rev}": _tag,
        f"POST /api/{_repo}/preupload/{_rev}": _preupload,
        f"POST /api/{_repo}/commit/{_rev}": _commit,
        rf"POST /{_repo}\.git/info/lfs/objects/batch": _lfs_batch,
        "PUT /storage/([0-9a-f]{64})": _store,
        "POST /storage/([0-9a-f]{64})/verify": _verify,
        f"GET /api/{_repo}": _info,
        f"GET /api/{_repo}/revision/{_rev}": _info,
        f"GET /api/{_repo}/tree/{_rev}": _tree,
        f"GET /api/{_repo}/refs": _refs,
        f"GET|HEAD /{_repo}/resolve/{_rev}/(.+)": _resolve,
    }


def _tell(stop_at: str, handler: BaseHTTPRequestHandler) -> None:
    line = f"{handler.command} {unquote(handler.path)}"
    print(line, flush=True)
    if stop_at and re.search(stop_at, line):
        handler.rfile.read(int(handler.headers.get("Content-Length") or 2) // 2)
        print("stopped", flush=True)
        threading.Event().wait()


def main(state: str, token: str, owner: str, port: str = "0", stop_at: str = "") -> None:
    """Serve until killed; see the top of this file."""
    hub = LoopbackHub({token: {owner}}, int(port), Path(state))
    print(hub.address, flush=True)
    hub.arriving = partial(_tell, stop_at)


if __name__ == "__main__":
    import loopback_hub  # under its own name, so that others can read its state

    loopback_hub.main(*sys.argv[1:])
