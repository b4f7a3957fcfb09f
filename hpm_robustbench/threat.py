"""What a model is up against and what it answers to: datasets, norms, budgets, corruptions, batching. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import ClassVar, TypeAlias

from hpm_robustbench.errors import UnknownName, UsageProblem

_SHORT_NUMBER = re.compile(r"[0-9]{0,20}\.?[0-9]{0,20}(e-?[0-9]{1,2})?(/[0-9]{1,20})?", re.IGNORECASE)


@dataclass(frozen=True)
class Dataset:
    """A classification task: its name, number of classes and image shape (C, H, W)."""

    name: str
    n_classes: int
    image_shape: tuple[int, int, int]


class Norm(str, Enum):
    """The distance in which a perturbation is measured; values are RobustBench's spellings."""

    LINF = "Linf"
    L2 = "L2"

    @classmethod
    def parse(cls, text: str) -> Norm:
        """Read a norm in any case.

        Raises:
            UnknownName: not a supported norm.
        """
        return cls(_as_spelled(text, [norm.value for norm in cls]))


@dataclass(frozen=True)
class Eps:
    """A perturbation budget: the exact text a person wrote and the exact number it means.

    ``8/255`` is not a finite binary fraction, so both are kept; ``float(eps)`` is what attacks compute with. Two
    spellings of one number are the same budget.
    """

    text: str = field(compare=False)
    value: Fraction

    @classmethod
    def parse(cls, text: str) -> Eps:
        """Read ``8/255``, ``0.031`` or ``0.5``.

        Raises:
            UsageProblem: not a finite number above zero.
        """
        cleaned = text.strip().replace(" ", "")
        try:
            # Fraction would compute 1e999999999 to the last digit.
            value = Fraction(cleaned) if _SHORT_NUMBER.fullmatch(cleaned) else Fraction(0)
        except (ValueError, ZeroDivisionError):
            value = Fraction(0)
        if value <= 0:
            raise UsageProblem(
                wanted="eps as a positive number or fraction, in units of the [0, 1] image range",
                got=repr(text),
                next_step="write it like 8/255 or 0.031",
            )
        return cls(cleaned, value)

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ThreatModel:
    """An Lp ball of radius ``eps`` around an image, intersected with the box [0, 1]."""

    norm: Norm
    eps: Eps

    @classmethod
    def parse(cls, norm: str, eps: str) -> ThreatModel:
        """Read a norm and a budget from text."""
        return cls(Norm.parse(norm), Eps.parse(eps))

    @property
    def name(self) -> str:
        """RobustBench's name of the threat model."""
        return self.norm.value

    @property
    def budget(self) -> str | None:
        """The radius as a person wrote it."""
        return self.eps.text

    def to_json(self) -> dict[str, str]:
        """Plain JSON values; ``threat_from_json`` is its inverse."""
        return {"norm": self.name, "eps": self.eps.text, "eps_exact": str(self.eps.value)}

    def __str__(self) -> str:
        return f"{self.name} {self.eps}"


@dataclass(frozen=True)
class Corruptions:
    """What weather, sensors and codecs do to an image: noise, blur, fog and the like, and nobody who means harm.

    Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019.
    """

    kinds: ClassVar[tuple[str, ...]] = (
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
        "frost",
        "fog",
        "brightness",
        "contrast",
        "elastic_transform",
        "pixelate",
        "jpeg_compression",
    )
    """The fifteen that RobustBench averages over; the four that the paper keeps for validation are not among them."""
    severities: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5)
    name: ClassVar[str] = "corruptions"
    budget: ClassVar[str | None] = None
    """There is no norm and no radius; a severity from 1 to 5 takes their place."""

    def to_json(self) -> dict[str, str]:
        """Plain JSON values; ``threat_from_json`` is its inverse."""
        return {"name": self.name}

    def __str__(self) -> str:
        return self.name


Threat: TypeAlias = ThreatModel | Corruptions
"""What a model is meant to withstand; ``name`` tells the kinds apart, as in RobustBench."""

THREAT_NAMES = (*(norm.value for norm in Norm), Corruptions.name)


def parse_threat_name(text: str) -> str:
    """RobustBench's spelling of a threat model's name, given in any case.

    Raises:
        UnknownName: no such threat model.
    """
    return _as_spelled(text, THREAT_NAMES)


def _as_spelled(text: str, names: Sequence[str]) -> str:
    for name in names:
        if name.casefold() == text.strip().casefold():
            return name
    raise UnknownName("threat model", text, names)


def parse_threat(name: str, eps: str | None) -> Threat:
    """Read a threat model from its name and its budget, which a norm needs and corruptions do not have.

    Raises:
        UnknownName: no such threat model.
        UsageProblem: the budget is missing, is no number, or has no meaning.
    """
    known = parse_threat_name(name)
    if known != Corruptions.name and eps is not None:
        return ThreatModel.parse(known, eps)
    if known == Corruptions.name and eps is None:
        return Corruptions()
    wanted = "no budget, which corruptions do not have" if eps else f"a budget for {known}"
    raise UsageProblem(
        wanted=wanted,
        got=f"eps {eps}",
        next_step="leave --eps out, or attack under --threat_model Linf or L2"
        if eps
        else f"add --eps, such as {'0.5' if known == Norm.L2.value else '8/255'}",
    )


def threat_from_json(data: Mapping[str, str]) -> Threat:
    """Rebuild a threat model from its JSON values.

    Raises:
        KeyError, ValueError: they are of none.
    """
    if "norm" in data:
        return ThreatModel(Norm(data["norm"]), Eps(data["eps"], Fraction(data["eps_exact"])))
    if data["name"] != Corruptions.name:
        raise ValueError(f"threat model {data['name']!r}")
    return Corruptions()


class Batching(str, Enum):
    """Which images an HPM classifier looks at when it answers for one image."""

    SOLO = "solo"
    """Each image is its own batch of one: stateless, row-independent, comparable with RobustBench."""
    REFERENCE = "reference"
    """Each image joins a fixed set of clean reference images: row-independent too."""
    JOINT = "joint"
    """The images are answered together, so an attacker's images move each other's prototypes."""

    @property
    def row_independent(self) -> bool:
        """Whether the answer for one image ignores every other image of the call."""
        return self is not Batching.JOINT


class Composition(str, Enum):
    """Which images meet in a batch of JOINT, after they were shuffled once by the seed."""

    IID = "iid"
    """As they were shuffled."""
    SORTED = "sorted"
    """Sorted by label inside windows of two batches, so that a batch holds half of the classes (Chen et al. 2022)."""
    SINGLE_CLASS = "single-class"
    """Of one label each; the last batch of every class may be a partial one."""
