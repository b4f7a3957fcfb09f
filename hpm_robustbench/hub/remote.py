"""A repository on the Hugging Face Hub is made to hold some files, in one commit or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, errors, get_token
from huggingface_hub.hf_api import RepoFile

from hpm_robustbench.errors import HpmBenchError, UploadFailed, UsageProblem
from hpm_robustbench.hub.description import CONFIG, LIBRARY
from hpm_robustbench.weights.hub import LOG_IN, in_one_line
from hpm_robustbench.zoo.hub_file import HubFile

CARD = "hpm_card.json"
_MAIN = "main"


@dataclass(frozen=True)
class Destination:
    """Where a model is published.

    Attributes:
        repo: ``owner/name``; made if it is not there.
        revision: branch; made if it is not there.
        private: only the owner may see the repository; one that everybody sees is refused.
        create_pr: propose the commit instead of making it.
    """

    repo: str
    revision: str = _MAIN
    private: bool = False
    create_pr: bool = False

    def __post_init__(self) -> None:
        HubFile.parse(f"{self.repo}@{self.revision}")
        if self.create_pr and self.revision != _MAIN:
            raise UsageProblem(
                wanted="a proposal for the main branch, the only one that takes some",
                got=f"--create-pr with --revision {self.revision}",
                next_step="leave one of the two out",
            )


class Sent(NamedTuple):
    """What it came to: the commit that holds the files, where to look at it, and whether it was made just now."""

    commit: str
    address: str
    changed: bool


def send(files: Mapping[str, bytes], destination: Destination, message: str) -> Sent:
    """Make a repository hold these files; others in it stay. What it holds already is not sent again.

    Nobody sees a part of it: files come before the one commit that names them. After a failure, the same call
    continues.

    Args:
        files: by path in the repository.
        destination: which repository and branch.
        message: of the commit.

    Raises:
        UploadFailed: nobody is logged in, or the Hub or the way to it said no.
        UsageProblem: the repository holds something else, or is not as private as it should be.
    """
    if get_token() is None:
        raise _failed(destination, "no token", LOG_IN)
    api = HfApi(library_name=LIBRARY, library_version=version(LIBRARY))
    try:
        return _send(api, files, destination, message)
    except HpmBenchError:
        raise
    except Exception as error:  # the client raises its own errors and those of two HTTP libraries
        raise _failed(destination, *_reason(error)) from None  # a chained message could repeat a token


def _send(api: HfApi, files: Mapping[str, bytes], destination: Destination, message: str) -> Sent:
    repo, revision = destination.repo, destination.revision
    api.create_repo(repo, private=destination.private or None, exist_ok=True)
    if revision != _MAIN:
        api.create_branch(repo, branch=revision, exist_ok=True)
    head = api.model_info(repo, revision=revision)
    if destination.private and not head.private:
        raise UsageProblem(
            wanted=f"{repo} as a private repository",
            got="one that everybody sees; nothing was sent",
            next_step="make it private in its settings, name another one, or leave --private out",
        )
    assert head.sha is not None
    held = _held(api, repo, head.sha)
    if CONFIG in held and CARD not in held:
        raise UsageProblem(
            wanted=f"{repo} new, or filled by hpm-bench push",
            got=f"another model's {CONFIG}; nothing was sent",
            next_step="name another repository",
        )
    changed = {path: content for path, content in files.items() if held.get(path) not in _hashes(content)}
    if not changed:
        return Sent(head.sha, f"{api.endpoint}/{repo}/tree/{head.sha}", False)
    made = api.create_commit(
        repo,
        [CommitOperationAdd(path, content) for path, content in changed.items()],
        commit_message=message,
        revision=revision,
        create_pr=destination.create_pr,
        parent_commit=head.sha,
    )
    return Sent(made.oid, made.pr_url or made.commit_url, True)


def _held(api: HfApi, repo: str, commit: str) -> dict[str, str]:
    """Hash of each file at a commit: sha256 of large ones, git's of others."""
    entries = api.list_repo_tree(repo, revision=commit, recursive=True)
    return {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}


def _hashes(content: bytes) -> tuple[str, str]:
    """The two hashes under which a repository may hold a file."""
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False)
    return hashlib.sha256(content).hexdigest(), git.hexdigest()


def _failed(destination: Destination, got: str, next_step: str) -> UploadFailed:
    wanted = f"to publish in {destination.repo} on the Hugging Face Hub"
    return UploadFailed(wanted=wanted, got=got, next_step=next_step)


def _reason(error: Exception) -> tuple[str, str]:
    """What happened, and what to do."""
    again = "repeat the command; what was sent already is not sent again"
    for cause in _causes(error):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "offline mode", "connect, and unset HF_HUB_OFFLINE"
        response = getattr(cause, "response", None)
        if response is None:
            continue
        status, line = response.status_code, in_one_line(cause)
        wait = response.headers.get("Retry-After")
        known = {
            401: (f"a token that is not accepted ({status})", LOG_IN),
            403: (
                f"a token that may not write there ({line})",
                "use one with write access to that owner's repositories",
            ),
            404: (f"no such repository, or a private one ({status})", f"check its name; or {LOG_IN}"),
            409: (f"a conflict with what is there ({line})", again),
            412: ("a commit that somebody else made meanwhile; nothing was overwritten", again),
            413: (f"files that are too large for it ({line})", "leave the backbone out"),
            429: (f"too many requests{f', to be made again in {wait} s' if wait else ''} ({status})", again),
        }
        return known.get(status, (line, f"{again}, later if it is the Hub's fault"))
    *_, deepest = _causes(error)
    return in_one_line(deepest), f"check the connection, and {again}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the deepest answer of the Hub included."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
