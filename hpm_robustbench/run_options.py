"""How a model is put on trial: everything a person may choose, as one frozen value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.coupling import COUPLING
from hpm_robustbench.ledger.matrix import MATRIX
from hpm_robustbench.ledger.plan import QUICK
from hpm_robustbench.threat import Batching, Composition
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.recipe import Tuning, find_recipe
from hpm_robustbench.weights import STRICT, Trust

SCREENS = (QUICK, COUPLING, MATRIX)
_OPTIONAL_PATHS = ("data", "corruptions_data_dir", "finetuned")
_LARGEST_SEED = 2**63 - 1
_MOST_IMAGES = 10**9
"""What a card can hold; see ``ledger.card_block``."""
_KINDS: dict[str, tuple[type, ...]] = {
    "defence": (HPMConfig,),
    "tuning": (Tuning, type(None)),
    "compute": (Compute,),
    "trust": (Trust,),
    "device": (str,),
}
_Choice = TypeVar("_Choice", Batching, Composition)


@dataclass(frozen=True)
class RunOptions:
    """How a model is put on trial.

    Paths, ``batchings`` and ``composition`` may be given as text, ``tuning`` as a recipe's name.

    Attributes:
        n_ex: test images, the first of the split; at most all of them.
        batchings: ways in which the HPM classifier is deployed, each with a trial of its own; SOLO, the headline,
            is always among them.
        batch_size: images an attack works on together; part of what makes a result reproducible.
        joint_size: images answered together under JOINT.
        composition: which images these are.
        seed: of every random choice.
        device: where to compute, as torch names it.
        defence: the definition of HPM.
        tuning: how the wrapped model is fine-tuned before; by default nothing is learned but class means and tau.
        controls: try its controls too, to stand beside it on its card.
        compute: how the machine is used for that.
        finetuned: a folder ``finetuned`` that was brought from another machine, or one of publications, to take from
            instead of training.
        published: where ``finetuned`` was found on the Hub, for the card to tell.
        data: a file or folder that holds the dataset, see ``open_dataset``.
        data_dir: where downloaded datasets lie.
        corruptions_data_dir: where corrupted images lie, see ``open_corrupted``; by default ``data`` or ``data_dir``.
        model_dir: where downloaded checkpoints lie; RobustBench's own folder will do.
        trust: what is believed of checkpoints from elsewhere.
        output: holds ``runs/``, ``prototypes/``, ``finetuned/`` and ``model_cards/``.
        screen: ``quick`` for a few attacks, ``coupling`` for what batch mates can do to each other under JOINT,
            ``matrix`` for what each step of MSA does by itself, or nothing for a trial that ends with a card.
        keep_images: keep the adversarial images beside the results, to be verified later.
        overwrite: replace a card that tells of other images, batches, seeds, budgets or HPM knobs.

    Raises:
        UsageProblem: a value that its option cannot have.
    """

    n_ex: int = 1000
    batchings: tuple[Batching, ...] = (Batching.SOLO, Batching.JOINT)
    batch_size: int = 250
    joint_size: int = 128
    composition: Composition = Composition.IID
    seed: int = 0
    device: str = "cpu"
    defence: HPMConfig = field(default_factory=HPMConfig)
    tuning: Tuning | None = None
    controls: bool = False
    compute: Compute = field(default_factory=Compute)
    finetuned: Path | None = None
    published: str = ""
    data: Path | None = None
    data_dir: Path = Path("data")
    corruptions_data_dir: Path | None = None
    model_dir: Path = Path("models")
    trust: Trust = STRICT
    output: Path = Path()
    screen: str | None = None
    keep_images: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("n_ex", "batch_size", "joint_size"):
            _check_whole(name, getattr(self, name), 1, _MOST_IMAGES)
        _check_whole("seed", self.seed, 0, _LARGEST_SEED)
        for name in ("data", "data_dir", "corruptions_data_dir", "model_dir", "output", "finetuned"):
            if not (name in _OPTIONAL_PATHS and getattr(self, name) is None):
                object.__setattr__(self, name, _path(name, getattr(self, name)))
        several = isinstance(self.batchings, Iterable) and not isinstance(self.batchings, str)
        batchings = self.batchings if several else (self.batchings,)
        object.__setattr__(self, "batchings", tuple(_member(Batching, batching) for batching in batchings))
        object.__setattr__(self, "composition", _member(Composition, self.composition))
        if isinstance(self.tuning, str):
            object.__setattr__(self, "tuning", Tuning(find_recipe(self.tuning), seed=self.seed))
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        for name, kind in _KINDS.items():
            _check_kind(name, getattr(self, name), kind)
        if self.controls and (self.tuning is None or self.tuning.control is not None):
            raise UsageProblem(
                wanted="a recipe beside all its controls",
                got="no recipe" if self.tuning is None else f"the control {self.tuning.name} alone",
                next_step="give --recipe uniform-v1 --controls, or --control without --controls",
            )
        if self.finetuned is not None and self.tuning is None:
            raise UsageProblem(
                wanted="a recipe, which says what to look for among finished fine-tunings",
                got=f"none beside {self.finetuned}",
                next_step="add --recipe uniform-v1, or leave --finetuned out",
            )

    @property
    def defence_facts(self) -> dict[str, Any]:
        """The definition of HPM that stands trial, and how it was fine-tuned.

        ``before`` is what was asked of knobs that a control sets.
        """
        asked = self.defence.to_json()
        if self.tuning is None:
            return asked
        tried = self.tuning.defence(self.defence).to_json()
        before = {knob: value for knob, value in asked.items() if value != tried[knob]}
        return {**tried, "tuning": {**self.tuning.to_json(), **({"before": before} if before else {})}}


def _check_whole(name: str, number: object, least: int, most: int) -> None:
    if type(number) is not int or not least <= number <= most:  # True is an int to isinstance
        raise UsageProblem(
            wanted=f"{name} as a whole number from {least} to {most}",
            got=f"{number!r}, a {type(number).__name__}",
            next_step="give such an int",
        )


def _check_kind(name: str, given: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(given, kinds):
        meant = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise UsageProblem(
            wanted=f"{name} as a {meant}", got=f"{given!r:.80}, a {type(given).__name__}", next_step="give one"
        )


def _path(name: str, place: object) -> Path:
    if not isinstance(place, (str, PathLike)):
        raise UsageProblem(wanted=f"{name} as a path", got=repr(place), next_step="give a str or a pathlib.Path")
    return Path(place)


def _member(kind: type[_Choice], given: object) -> _Choice:
    try:
        return kind(given)
    except ValueError as error:
        raise UnknownName(kind.__name__.lower(), str(given), [choice.value for choice in kind]) from error
