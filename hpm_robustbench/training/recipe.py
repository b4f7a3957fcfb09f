"""What fine-tuning does, as one frozen value with a name and a version; the same for every model. No torch.

Every choice that arXiv 2606.01746's abstract leaves open is a knob here, with a recorded value: a recipe is part of
the key under which its result is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.plan import digest

_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_NonNegative = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]
_PositiveCount = Annotated[int, Field(ge=1, lt=2**31)]
Learned = Literal["backbone", "fc", "tau", "beta"]


def _by_comma(value: object) -> object:
    return tuple(filter(None, value.split(","))) if isinstance(value, str) else value


class Recipe(BaseModel):
    """How a wrapped classifier is fine-tuned.

    The loss is CE(s, y) + ``fc_weight`` CE(a, y), with HPM's logits s and the FC head's a, on attacked images; or,
    as ``trades`` (Zhang et al., ICML 2019), CE on clean images plus ``trades_weight`` times the divergence of the
    attacked answers from the clean ones, for s and a alike. The attack is PGD (Madry et al., ICLR 2018) within the
    threat model that the classifier will be tried under, on the answers to the batch as ``batching`` says, whatever
    the classifier will be deployed for. Normalisation layers keep their statistics, in the attack too.

    Attributes:
        name: of the recipe; with ``version``, what a person calls this set of values.
        version: raised whenever a named recipe changes.
        learned: what changes: the backbone, the FC layer, tau, beta. Features of images that nobody
            attacks, shifts or mirrors are computed once if the backbone does not change.
        epochs: passes over the training images.
        batch_size: images whose prototypes and gradient are computed together, however few fit into memory at a time.
        batching: whether HPM answers the batch together (``joint``) or each image alone (``solo``).
        loss: ``ce`` or ``trades``.
        trades_weight: of the divergence.
        fc_weight: of the FC head's own loss.
        label_smoothing: of the cross-entropies.
        attack_view: what the attack sees: HPM with its straight-through gradient (``ste``), HPM with soft
            memberships, or the FC head.
        attack_steps: of PGD; 0 trains on clean images.
        attack_step: length of one of them, as a share of eps.
        optimiser: ``sgd`` (Nesterov) or ``adamw``.
        learning_rate: its highest value.
        schedule: ``cosine`` falls to zero after a linear warm-up, ``constant`` stays.
        warm_up: share of all steps in which the learning rate rises.
        momentum: of SGD, and first moment of AdamW.
        weight_decay: of weights with two or more dimensions.
        max_gradient_norm: longer gradients are shortened to it.
        average_share: weights are averaged exponentially over this share of all steps; 0 deploys the last ones.
        prototype_momentum: m of mD <- m mD + (1 - m) mean, for classes in the batch.
        prototype_labels: whether an image belongs to the prototype of its true class, or of the FC head's (``fc``).
        prototype_feed: whether prototypes follow features of attacked or of clean images.
        shift: images move by up to this share of their side.
        mirror: which images are mirrored at random; ``colour``, the default, spares scans of digits and letters.
        precision: of the network's passes; prototypes and distances are always float32. ``bfloat16`` becomes float32
            on a device without it.
        held_out: share of the training images that only measure, at most 500.
        clean_bound: a fall of clean accuracy by more than this is reported, on them and, after a trial, on test images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    version: _PositiveCount = 1
    learned: Annotated[tuple[Learned, ...], BeforeValidator(_by_comma)] = ("backbone", "fc", "tau")
    epochs: _Count = 5
    batch_size: _PositiveCount = 128
    batching: Literal["joint", "solo"] = "joint"
    loss: Literal["ce", "trades"] = "ce"
    trades_weight: _NonNegative = 6.0
    fc_weight: _NonNegative = 1.0
    label_smoothing: _Share = 0.0
    attack_view: Literal["ste", "soft", "fc"] = "ste"
    attack_steps: _Count = 10
    attack_step: _Positive = 0.25
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: _Positive = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: _Share = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: _NonNegative = 5e-4
    max_gradient_norm: _Positive = 1.0
    average_share: _Share = 0.1
    prototype_momentum: _Share = 0.99
    prototype_labels: Literal["true", "fc"] = "true"
    prototype_feed: Literal["attacked", "clean"] = "attacked"
    shift: _Share = 0.125
    mirror: Literal["never", "colour", "always"] = "colour"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clean_bound: _Share = 0.02

    @property
    def from_features(self) -> bool:
        """Whether features of the training images are computed once: images that change have others each time."""
        moving = self.attack_steps or self.shift or self.mirror != "never"
        return "backbone" not in self.learned and not moving

    def with_knobs(self, knobs: dict[str, Any]) -> Recipe:
        """The same recipe with some values changed, and a name that says so.

        Args:
            knobs: values by name, or the texts that they are written as.

        Raises:
            UnknownName: no such knob.
            UsageProblem: a value that the knob cannot take.
        """
        known = sorted(set(type(self).model_fields) - {"name", "version"})
        for knob in knobs:
            if knob not in known:
                raise UnknownName("knob of a recipe", knob, known)
        try:
            changed = Recipe.model_validate({**self.model_dump(), **knobs})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise UsageProblem(
                wanted=f"a value for {first['loc'][0]} that a recipe can have",
                got=f"{first['input']!r}: {first['msg']}",
                next_step=f"write --tune {first['loc'][0]}={_text(self.to_json()[str(first['loc'][0])])}, for example",
            ) from error
        origin = self.known
        if changed.model_copy(update={"name": origin.name}) == origin:
            return origin
        return changed.model_copy(update={"name": _changed(origin.name, changed)})

    @property
    def known(self) -> Recipe:
        """The recipe of ``RECIPES`` that this one is, or was made from; one that is neither stands for itself."""
        return next((r for r in RECIPES.values() if self.name in (r.name, _changed(r.name, self))), self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="prototypes", learned=(), epochs=0),
        Recipe(
            name="head",
            learned=("fc", "tau", "beta"),
            epochs=20,
            attack_steps=0,
            optimiser="adamw",
            learning_rate=1e-3,
            prototype_momentum=1.0,
            shift=0.0,
            mirror="never",
        ),
        Recipe(name="uniform-v1"),
    )
}
"""S0: class means, nothing learned. S1: all but the backbone, on clean features. S2: a short full fine-tuning."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UnknownName: there is none.
    """
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]


class Control(str, Enum):
    """What is trained beside HPM, with the same budget, images, order and seed, so that a gain can be credited."""

    FC = "fc"
    """C1: the FC head alone answers, in training and on trial; HPM has no part in it."""
    STATIC = "static"
    """C2: distances to dataset prototypes alone, beta = 0."""
    SHUFFLED = "shuffled"
    """C3: in training each image is put into the classes that another image of its batch was given by the FC head."""
    LEAVE_ONE_OUT = "leave-one-out"
    """C4: no image is a member of its own batch prototype."""


def find_control(name: str) -> Control:
    """The control of that name.

    Raises:
        UnknownName: there is none.
    """
    known = [control.value for control in Control]
    if name not in known:
        raise UnknownName("control", name, known)
    return Control(name)


@dataclass(frozen=True)
class Tuning:
    """A recipe, perhaps as a control, and the seed of its every random choice."""

    recipe: Recipe
    control: Control | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """``uniform-v1``, or ``uniform-v1_static`` for a control."""
        return self.recipe.name if self.control is None else f"{self.recipe.name}_{self.control.value}"

    def defence(self, config: HPMConfig) -> HPMConfig:
        """The definition of HPM that is trained and then stands trial."""
        if self.control is Control.STATIC:
            return replace(config, beta=0.0)
        if self.control is Control.LEAVE_ONE_OUT:
            return replace(config, include_self=False)
        return config

    @property
    def learned(self) -> tuple[Learned, ...]:
        """What changes; beta stays where the control says, and a control without HPM does not touch its parts."""
        kept = {Control.FC: ("tau", "beta"), Control.STATIC: ("beta",)}.get(self.control or Control.SHUFFLED, ())
        return tuple(part for part in self.recipe.learned if part not in kept)

    def with_controls(self) -> list[Tuning]:
        """This tuning, then every control of the same recipe and seed."""
        return [replace(self, control=control) for control in (None, *Control)]

    @property
    def moves_fc(self) -> bool:
        """Whether the FC head on its backbone is another model than the base model beside it."""
        return self.control is not Control.FC and not {"backbone", "fc"}.isdisjoint(self.learned)

    @property
    def options(self) -> list[str]:
        """The command line options that stand for this recipe and control; the seed is the run's own."""
        values, named = self.recipe.to_json(), self.recipe.known
        changed = [knob for knob, value in named.to_json().items() if knob != "name" and value != values[knob]]
        control = [] if self.control is None else ["--control", self.control.value]
        knobs = [part for knob in changed for part in ("--tune", f"{knob}={_text(values[knob])}")]
        return ["--recipe", named.name, *control, *knobs]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the name, all that it stands for, and how to ask for it."""
        control = None if self.control is None else self.control.value
        values = {"recipe": self.recipe.to_json(), "control": control, "seed": self.seed}
        return {"name": self.name, "options": self.options, **values}


def _changed(name: str, recipe: Recipe) -> str:
    """What a recipe is called that has other values than the known one of ``name``; a knob to come changes no name."""
    known = RECIPES[name].to_json() if name in RECIPES else {}
    others = {knob: value for knob, value in recipe.to_json().items() if knob != "name" and value != known.get(knob)}
    return f"{name}-{digest({**others, 'version': recipe.version})[:8]}"


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
