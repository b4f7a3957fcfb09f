"""Safetensors files from the Hugging Face Hub, by its own client and in its own cache.

The client's settings hold: ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``. What is in the cache at a
full commit is taken from there without asking anybody.
"""

from __future__ import annotations

import errno
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from hpm_robustbench.errors import DownloadFailed, HpmBenchError, IntegrityError, StorageProblem
from hpm_robustbench.offline import may_connect
from hpm_robustbench.weights.patience import as_the_hub_asks, pause_asked_for
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import WeightsRef

_HASH = re.compile(r"[0-9a-f]+")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{4,}")


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Hub:
    """A Hub, and where its files are kept; by default those that the client's own settings name."""

    endpoint: str | None = None
    cache: Path | None = None

    def fetch(self, file: HubFile) -> tuple[Path, HubFile]:
        """Bring a file into the cache: its path there, and the same file at the full commit that was found.

        Raises:
            DownloadFailed: it could not be had; says why, and the way out.
            IntegrityError: what arrived is not what the Hub says that it is; it is not kept.
            StorageProblem: the disk is full, or the cache cannot be written.
        """
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - only a download needs it

        try:
            found = as_the_hub_asks(
                lambda: hf_hub_download(
                    file.repo,
                    file.file,
                    revision=file.revision,
                    endpoint=self.endpoint,
                    cache_dir=self.cache,
                    library_name="hpm-robustbench",
                    local_files_only=not may_connect(),
                )
            )
        except Exception as error:  # the client raises its own errors and those of two HTTP libraries
            raise _explained(file, error) from None  # a chained message could repeat a token
        path = Path(found)
        _check_arrived(path, file)
        commit = path.parents[file.file.count("/")].name
        return path, replace(file, revision=commit)


def _check_arrived(path: Path, file: HubFile) -> None:
    """See that a file in the cache has the hash after which the client has named it: sha256, or git's sha1."""
    blob = path.resolve()
    hasher = {64: hashlib.sha256(), 40: hashlib.sha1(usedforsecurity=False)}.get(len(blob.name))
    if hasher is None or not _HASH.fullmatch(blob.name):
        return  # a cache without links, or another host than the Hub
    if len(blob.name) == 40:
        hasher.update(f"blob {blob.stat().st_size}\0".encode())
    with blob.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    if hasher.hexdigest() != blob.name:
        forget(path)
        raise IntegrityError(
            wanted=f"{file.file} of {file.repo} at {file.revision}, which hashes to {blob.name}",
            got=f"a file that hashes to {hasher.hexdigest()}; it was not kept",
            next_step="repeat the command; if it happens again, something on the way changes files",
        )


def forget(path: Path) -> None:
    """Take a file out of the client's cache: its name there, and the content that it leads to."""
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def at_commits(reference: WeightsRef, hub: Hub | None = None) -> WeightsRef:
    """The same weights with each branch or tag replaced by the commit that it stands for now.

    Raises:
        HpmBenchError: see ``Hub.fetch``.
    """
    if reference.source != "hf":
        return reference
    files = [HubFile.parse(locator) for locator in reference.locators]
    pinned = [file if file.is_pinned else (hub or Hub()).fetch(file)[1] for file in files]
    return replace(reference, locators=tuple(map(str, pinned)))


def _explained(file: HubFile, error: Exception) -> HpmBenchError:
    wanted = f"{file.file} of {file.repo} at {file.revision} from the Hugging Face Hub"
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return StorageProblem(
            wanted=wanted, got=str(error.strerror), next_step="free some space, or name another folder with HF_HOME"
        )
    got, next_step = _reason(file, error)
    return DownloadFailed(wanted=wanted, got=got, next_step=next_step)


def _reason(file: HubFile, error: Exception) -> tuple[str, str]:
    """What happened, and what to do: the first that fits, special ones before general ones."""
    from huggingface_hub import errors  # noqa: PLC0415

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the Hub did answer
    if (pause := pause_asked_for(error)) is not None:
        return f"too many requests, to be made again in {pause} s (429)", "repeat the command then"
    known: list[tuple[type[Exception], str, str]] = [
        (
            errors.GatedRepoError,
            "a repository whose terms have to be accepted",
            f"accept them on its page, and {LOG_IN}",
        ),
        (errors.RepositoryNotFoundError, "no such repository, or a private one", f"check its name; or {LOG_IN}"),
        (errors.RevisionNotFoundError, "no such revision", "name a commit, branch or tag of that repository"),
        (
            errors.LocalEntryNotFoundError,
            f"not in the local cache, and the Hub could not be asked ({in_one_line(error.__cause__ or error)})",
            f"connect, unset HF_HUB_OFFLINE, or bring it where you can: hf download {file.repo} {file.file} "
            f"--revision {file.revision}",
        ),
        (errors.EntryNotFoundError, "no such file in it", "name one: hf:owner/name@revision:file.safetensors"),
        (errors.HfHubHTTPError, in_one_line(error), f"try again later; if access is denied, {LOG_IN}"),
    ]
    return next(
        ((got, next_step) for kind, got, next_step in known if isinstance(error, kind)),
        (in_one_line(error), "check the connection, and repeat the command"),
    )


def in_one_line(error: BaseException) -> str:
    """The first line of what an error says, without any token."""
    from huggingface_hub import get_token  # noqa: PLC0415

    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    own = get_token()
    said = lines[0].replace(own, "hf_...") if own else lines[0]
    return f"{type(error).__name__}: {_TOKEN.sub('hf_...', said)[:200]}"
