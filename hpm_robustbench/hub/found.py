"""Find a published classifier: in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hub.description import CONFIG, Description, read_description
from hpm_robustbench.training.header import RECORD, TENSORS
from hpm_robustbench.weights.hub import Hub
from hpm_robustbench.weights.trust import verify
from hpm_robustbench.zoo.hub_file import HubFile


class Found(NamedTuple):
    """A published classifier: its description, the folder of its verified files, and where they were found."""

    description: Description
    folder: Path
    where: str

    @property
    def tensors(self) -> Path:
        """The file that holds them."""
        return self.folder / TENSORS

    @property
    def training(self) -> bytes | None:
        """The record of its fine-tuning, if it was fine-tuned."""
        return None if self.description.training is None else (self.folder / RECORD).read_bytes()


def find(name: str, revision: str = "main") -> Found:
    """Bring a published classifier to this machine, all files from one commit.

    Args:
        name: a folder, or ``owner/name`` on the Hub.
        revision: a commit, branch or tag on the Hub.

    Raises:
        UsageProblem: it is neither, or there is nothing in the folder.
        DownloadFailed: it cannot be fetched.
        InvalidInput: it holds something else.
        IntegrityError: a file is not the one it describes, or was damaged on its way.
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
    for name, checksum in description.checksums.items():
        verify(hub.fetch(replace(config, file=name))[0], checksum)
    return Found(description, path.parent, where)


def _in_folder(folder: Path) -> Found:
    description = read_description(_there(folder, CONFIG).read_bytes(), str(folder))
    for name, checksum in description.checksums.items():
        verify(_there(folder, name), checksum)
    return Found(description, folder, str(folder))


def _there(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UsageProblem(
            wanted=f"{name} in {folder}", got="no such file", next_step="check the path, and bring the whole folder"
        )
    return folder / name
