"""A repository on the Hugging Face Hub is made to hold some files, in one commit or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, NamedTuple, TypeAlias

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, get_token
from huggingface_hub.hf_api import RepoFile

from hpm_robustbench.errors import HpmBenchError, UploadFailed, UsageProblem
from hpm_robustbench.hub.description import CONFIG, LIBRARY
from hpm_robustbench.hub.eval_results import EVAL_RESULTS
from hpm_robustbench.hub.signature import SIGNATURE, SUMS
from hpm_robustbench.training.header import RECORD
from hpm_robustbench.weights.hub import LOG_IN, in_one_line
from hpm_robustbench.weights.patience import SILENCE, as_the_hub_asks, causes, pause_asked_for
from hpm_robustbench.zoo.hub_file import HubFile

CARD = "hpm_card.json"
_PAGE = "README.md"
_MAIN = "main"
_OPTIONAL = (SUMS, SIGNATURE, EVAL_RESULTS, RECORD)
"""What ``hpm-bench push`` does not always add; made for the files beside it, and wrong beside others."""
_Operation: TypeAlias = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Destination:
    """Where a model, or a dataset that belongs to one, is published.

    Attributes:
        repo: ``owner/name``; made if it is not there.
        revision: branch; made if it is not there.
        private: only the owner may see the repository; one that everybody sees is refused.
        create_pr: propose the commit instead of making it.
        kind: of the repository.
        tag: a name that the commit gets, and that no other commit may have.
    """

    repo: str
    revision: str = _MAIN
    private: bool = False
    create_pr: bool = False
    kind: Literal["model", "dataset"] = "model"
    tag: str | None = None

    def __post_init__(self) -> None:
        HubFile.in_repository(self.repo, self.revision)
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
    """Make a repository hold these files; others in it stay, but for what an earlier push added and this one does not.

    What it holds already is not sent again. Nobody sees a part of it: files come before the one commit that names them.
    After a failure, the same call continues.

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
        return as_the_hub_asks(lambda: _send(api, files, destination, message))
    except HpmBenchError:
        raise
    except Exception as error:  # the client raises its own errors and those of two HTTP libraries
        raise _failed(destination, *_reason(error)) from None  # a chained message could repeat a token


def _send(api: HfApi, files: Mapping[str, bytes], destination: Destination, message: str) -> Sent:
    repo, revision, kind = destination.repo, destination.revision, destination.kind
    api.create_repo(repo, private=destination.private or None, exist_ok=True, repo_type=kind)
    if revision != _MAIN:
        api.create_branch(repo, branch=revision, exist_ok=True, repo_type=kind)
    head = api.repo_info(repo, revision=revision, timeout=SILENCE, repo_type=kind)
    if destination.private and not head.private:
        raise UsageProblem(
            wanted=f"{repo} as a private repository",
            got="one that everybody sees; nothing was sent",
            next_step="make it private in its settings, name another one, or leave --private out",
        )
    assert head.sha is not None
    held = _held(api, destination, head.sha)
    _check_ours(held, files, destination)
    sent = _commit(api, _operations(held, files), destination, message, head.sha)
    if destination.tag is not None:
        _tag(api, files, destination, sent.commit)
    return sent


def _operations(held: Mapping[str, str], files: Mapping[str, bytes]) -> list[_Operation]:
    """What makes a repository hold these files; of an earlier push, known by its card, nothing tells of other ones."""
    changed = [CommitOperationAdd(path, text) for path, text in files.items() if held.get(path) not in _hashes(text)]
    stale = [path for path in _OPTIONAL if CARD in held and path in held and path not in files]
    return [*changed, *(CommitOperationDelete(path) for path in stale)]


def _commit(api: HfApi, operations: list[_Operation], destination: Destination, message: str, head: str) -> Sent:
    if not operations:
        folder = "datasets/" if destination.kind == "dataset" else ""
        return Sent(head, f"{api.endpoint}/{folder}{destination.repo}/tree/{head}", False)
    made = api.create_commit(
        destination.repo,
        operations,
        commit_message=message,
        revision=destination.revision,
        create_pr=destination.create_pr,
        parent_commit=head,
        repo_type=destination.kind,
    )
    return Sent(made.oid, made.pr_url or made.commit_url, True)


def _tag(api: HfApi, files: Mapping[str, bytes], destination: Destination, commit: str) -> None:
    """Name the commit, or see that the one with that name holds the same data; its page may be an older one."""
    repo, kind, tag = destination.repo, destination.kind, destination.tag
    assert tag is not None
    if tag not in {ref.name for ref in api.list_repo_refs(repo, repo_type=kind).tags}:
        api.create_tag(repo, tag=tag, revision=commit, repo_type=kind, exist_ok=True)
        return
    held = _held(api, destination, tag)
    if any(held.get(path) not in _hashes(content) for path, content in files.items() if path != _PAGE):
        raise UsageProblem(
            wanted=f"the tag {tag} of {repo} to name these very files",
            got="one that somebody has given to others",
            next_step="delete that tag, or name another repository",
        )


def _check_ours(held: Mapping[str, str], files: Mapping[str, bytes], destination: Destination) -> None:
    """See that nobody's model or data are mixed with these."""
    if destination.kind == "model":
        strange = [CONFIG] if CONFIG in held and CARD not in held else []
    else:
        strange = sorted(held.keys() - files.keys() - {".gitattributes", _PAGE})
    if strange:
        raise UsageProblem(
            wanted=f"{destination.repo} new, or filled by hpm-bench push",
            got=f"another {destination.kind}'s {strange[0]}; nothing was sent",
            next_step="name another repository",
        )


def _held(api: HfApi, destination: Destination, revision: str) -> dict[str, str]:
    """Hash of each file at a revision: sha256 of large ones, git's of others."""
    entries = api.list_repo_tree(destination.repo, revision=revision, recursive=True, repo_type=destination.kind)
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
    for cause in causes(error):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "offline mode", "connect, and unset HF_HUB_OFFLINE"
        response = getattr(cause, "response", None)
        if response is None:
            continue
        status, line = response.status_code, in_one_line(cause)
        wait = pause_asked_for(cause)
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
    *_, deepest = causes(error)
    if all(part in str(deepest) for part in ("xet-write-token", "404")):
        return (
            "no Xet storage there, which the client takes unless told otherwise",
            "set HF_HUB_DISABLE_XET=1, and again",
        )
    return in_one_line(deepest), f"check the connection, and {again}"
