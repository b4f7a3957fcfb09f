"""A model as pure data: what it is, where its weights lie, which layer is its head, who made it. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Literal, TypeAlias

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.threat import Threat

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if it is safe as a file name everywhere (letters, digits, ``._-``, at most 128).

    Raises:
        UsageProblem: it is not; raised before any path is built from it.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise UsageProblem(
            wanted=f"a {kind} name of letters, digits, '.', '_' and '-', at most 128 characters, without '..'",
            got=repr(name[:160]),
            next_step="choose such a name",
        )
    return name


Part: TypeAlias = str | tuple[tuple[str, str], ...]
"""A submodule by its path, or several by the names under which a file holds them."""


@dataclass(frozen=True)
class WeightsRef:
    """Where a checkpoint is: a source scheme, locators within it, and the sha256 each must have if known.

    ``source`` is ``package`` (shipped with this package), ``file`` (a local path), ``gdrive`` (Google Drive ids),
    ``upstream`` (addresses from which the architecture's own library fetches) or ``hf`` (files on the Hugging Face
    Hub, see ``HubFile``).

    ``cache`` is where RobustBench keeps a Google Drive file below its model folder, such as
    ``cifar10/Linf/Carmon2019Unlabeled.pt``; ``shared`` says for each file where it keeps the same one for other models.
    ``parts`` says for each file which part of the network it holds, where that is not an ensemble's member;
    ``leftover`` names tensors, by the last part of their names, that training left in a file and no network reads.
    ``constants`` names parameters in the same way that the architecture sets itself and a file may lack, although
    nothing but their maker's word tells them from learned ones.
    """

    source: str
    locators: tuple[str, ...]
    sha256: tuple[str, ...] = ()
    cache: str = ""
    shared: tuple[tuple[str, ...], ...] = ()
    parts: tuple[Part, ...] = ()
    leftover: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.source}:{','.join(self.locators)}"

    @property
    def public(self) -> str:
        """The same for others: a local path is nobody else's business and differs between machines."""
        names = [PurePath(text).name if self.source == "file" else text for text in self.locators]
        return f"{self.source}:{','.join(names)}"

    def read_like(self, own: WeightsRef) -> WeightsRef:
        """These files, read as the network's own ones are: that does not depend on where they lie."""
        return replace(self, parts=own.parts, leftover=own.leftover, constants=own.constants)

    @property
    def full_locators(self) -> tuple[str, ...]:
        """Each locator with its source, such as ``gdrive:15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ``."""
        return tuple(f"{self.source}:{locator}" for locator in self.locators)


@dataclass(frozen=True)
class HeadRule:
    """How a model is taken apart into features and logits.

    Attributes:
        path: the layer that is the classifier; None means find the only provable one.
        members: for an ensemble or a mixture, the layers whose inputs are the features, side by side.
        output: what a model with ``members`` returns: logits (or log-probabilities), or the mean of its members'
            probabilities.
        renormalised: the model normalises the weights of ``path`` on every forward pass; they are kept as one pass
            leaves them.
        one_by_one: the network's answer for an image depends on the others, so it sees one at a time.
        batch_effect: how far a logit moves in a batch of 8, as a share of the largest logit; measured with random
            weights, where ``one_by_one`` is set.
        note: what a reader of a number should know, such as where gradients end.
    """

    path: str | None = None
    members: tuple[str, ...] = ()
    output: Literal["logits", "probabilities"] = "logits"
    renormalised: bool = False
    one_by_one: bool = False
    batch_effect: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """Facts about a model's origin, under RobustBench's column names; published accuracies and errors in percent."""

    title: str = ""
    authors: str = ""
    venue: str = ""
    link: str = ""
    architecture: str = ""
    license: str = "unknown"
    additional_data: bool = False
    number_forward_passes: int = 1
    clean_acc: str | None = None
    autoattack_acc: str | None = None
    reported: str | None = None
    external: str | None = None
    corruptions_acc: str | None = None
    corruptions_mce: str | None = None
    corruptions_acc_3d: str | None = None
    corruptions_mce_3d: str | None = None
    unreliable: bool | None = None
    footnote: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One model on one track.

    ``factory`` says how to build the bare network: ``python:package.module:function`` calls a function without
    arguments; ``robustbench:dataset/threat/name`` asks RobustBench. ``preprocessing`` names what is done to original
    images before the network sees them, see ``data.preprocessing``; None: nothing. ``n_params`` counts parameters, also
    those that the network never uses. ``tuning`` names how it was fine-tuned, and ends the name.
    """

    name: str
    dataset: str
    threat: Threat
    factory: str
    weights: WeightsRef
    head: HeadRule = field(default_factory=HeadRule)
    paper: Paper = field(default_factory=Paper)
    preprocessing: str | None = None
    n_params: int | None = None
    tuning: str | None = None

    def __post_init__(self) -> None:
        check_name("model", self.name)
        check_name("dataset", self.dataset)

    def tuned(self, tuning: str) -> ModelSpec:
        """The same model fine-tuned, so that its card has a place of its own."""
        return replace(self, name=f"{self.name}_{tuning}", tuning=tuning)

    @property
    def untuned_name(self) -> str:
        """Its name before it was fine-tuned."""
        return self.name if self.tuning is None else self.name.removesuffix(f"_{self.tuning}")

    @property
    def base_name(self) -> str:
        """Its name in the catalog: untuned, without the budget that ``request.models.under`` adds."""
        budget = self.threat.budget
        return self.untuned_name.removesuffix(f"_eps{budget.replace('/', '-')}") if budget else self.untuned_name
