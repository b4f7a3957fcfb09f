"""A file on the Hugging Face Hub as text: ``owner/name@revision:file``. No torch, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpm_robustbench.errors import UsageProblem

_PART = r"\w(?:[\w.-]{0,94}\w)?"
_FILE = re.compile(r"\w[\w.-]{0,127}(?:/\w[\w.-]{0,127}){0,7}\.safetensors", re.ASCII)
_WRITTEN = re.compile(rf"(?P<repo>{_PART}/{_PART})@(?P<revision>\w[\w./-]{{0,127}})(?::(?P<file>.+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_USUAL = "model.safetensors"


@dataclass(frozen=True)
class HubFile:
    """One safetensors file of a repository, at a revision: a commit, or a branch or tag that stands for one."""

    repo: str
    revision: str
    file: str = _USUAL

    @classmethod
    def parse(cls, text: str) -> HubFile:
        """Read ``owner/name@revision``, or ``owner/name@revision:file``; the file is ``model.safetensors`` by default.

        Raises:
            UsageProblem: it is not written so, names another kind of file, or leads out of the repository.
        """
        written = _WRITTEN.fullmatch(text)
        file = written["file"] or _USUAL if written else ""
        if written is None or ".." in text or "--" in written["repo"] or not _FILE.fullmatch(file):
            raise UsageProblem(
                wanted="weights written as hf:owner/name@revision or hf:owner/name@revision:file.safetensors",
                got=repr(text[:160]),
                next_step="name a commit, branch or tag, and a safetensors file of that repository",
            )
        return cls(written["repo"], written["revision"], file)

    @classmethod
    def in_repository(
        cls, repo: str, revision: str = "main", *, wanted: str = "a repository on the Hub written as owner/name"
    ) -> HubFile:
        """The usual file of a repository at a revision, where no weights were asked for.

        Args:
            repo: ``owner/name``.
            revision: a commit, branch or tag.
            wanted: what a person should have written, for the message.

        Raises:
            UsageProblem: one of them is not written so.
        """
        try:
            return cls.parse(f"{repo}@{revision}")
        except UsageProblem as error:
            raise UsageProblem(
                wanted=wanted,
                got=f"{repo[:160]!r} at the revision {revision[:160]!r}",
                next_step="check how the name is written; a revision is a commit, branch or tag",
            ) from error

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit, which cannot come to mean something else."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}:{self.file}"
