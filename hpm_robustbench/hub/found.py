"""Find a published classifier: in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hub.description import CONFIG, TENSORS, Description, read_description
from hpm_robustbench.weights.hub import Hub
from hpm_robustbench.weights.trust import verify
from hpm_robustbench.zoo.hub_file import HubFile


class Found(NamedTuple):
    """A published classifier: its description, its verified tensors, and where they were found."""

    description: Description
    tensors: Path
    where: str


def find(name: str, revision: str = "main") -> Found:
    """Bring a published classifier to this machine, both files from one commit.

    Args:
        name: a folder, or ``owner/name`` on the Hub.
        revision: a commit, branch or tag on the Hub.

    Raises:
        UsageProblem: it is neither, or there is nothing in the folder.
        DownloadFailed: it cannot be fetched.
        InvalidInput: it holds something else.
        IntegrityError: its tensors are not those it describes, or a file was damaged on its way.
    """
    if Path(name).is_dir():
        return _in_folder(Path(name))
    wanted = "a folder that is there, or a repository on the Hub written as owner/name"
    return on_hub(HubFile.in_repository(name, revision, wanted=wanted), Hub())


def on_hub(repository: HubFile, hub: Hub) -> Found:
    """A classifier in a repository on the Hub; see ``find``."""
    path, config = hub.fetch(replace(repository, file=CONFIG))
    where = f"hf:{config.repo}@{config.revision}"
    description = read_description(path.read_bytes(), where)
    tensors, _ = hub.fetch(replace(config, file=TENSORS))
    verify(tensors, description.checksum)
    return Found(description, tensors, where)


def _in_folder(folder: Path) -> Found:
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise UsageProblem(wanted=f"{name} in {folder}", got="no such file", next_step="check the path")
    description = read_description((folder / CONFIG).read_bytes(), str(folder))
    verify(folder / TENSORS, description.checksum)
    return Found(description, folder / TENSORS, str(folder))
