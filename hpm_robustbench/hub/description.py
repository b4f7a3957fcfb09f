"""``config.json`` of a published model: what it is, as plain data that checks itself. No torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from hpm_robustbench.errors import HpmBenchError, InvalidInput, first_line
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.card_block import Block, EpsText, Name, Sha256
from hpm_robustbench.ledger.card_schema import first_problem
from hpm_robustbench.threat import Batching, Dataset, Threat, parse_threat
from hpm_robustbench.training.header import RECORD, TENSORS
from hpm_robustbench.zoo.checksums import Checksum

DESCRIPTION_VERSION: Final = "1.0"
LIBRARY: Final = "hpm-robustbench"
CONFIG: Final = "config.json"
_Option = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,=+-]{1,64}$")]
"""As ``Tuning.options`` writes them: what a shell or a terminal would obey cannot be among them."""
_Line = Annotated[str, Field(pattern=r"^\P{C}*$")]
"""Text that people are shown, in which nothing steers their terminal."""
_MOST_PIXELS = 3 * 1024 * 1024
"""A description is somebody else's: no image is made that is larger than any real one."""


class Base(Block):
    """The model below the defence, and what its weights are.

    Attributes:
        name: on cards and boards.
        model: in the catalog; the same without the budget that another threat model adds.
        dataset: what it classifies.
        threat_model: RobustBench's name.
        eps: the budget, where there is one.
        factory: what built the network; compared with the catalog's and told to people, never imported.
        head: the layer that was named as its classifier.
        weights: where they came from; followed where it names a commit on the Hub, else the catalog knows.
        sha256: of each file of the checkpoint.
    """

    name: Name
    model: Name
    dataset: Name
    threat_model: str
    eps: EpsText | None
    factory: Annotated[_Line, Field(max_length=256)]
    head: Annotated[_Line, Field(max_length=256)] | None
    weights: Annotated[_Line, Field(max_length=4096)]
    sha256: list[Sha256]

    @property
    def threat(self) -> Threat:
        """What it is to withstand."""
        return parse_threat(self.threat_model, self.eps)


class Description(Block):
    """A published model.

    Attributes:
        contains: ``head`` if the backbone is the base model's own, ``model`` if the file holds everything.
        coupled: the network sees one image at a time, since its answer depends on the others.
        size: of ``model.safetensors`` in bytes.
        sha256: of that file.
        state_sha256: of every tensor of the classifier, the backbone's included.
        prototypes: where the dataset prototypes come from, in words.
        tuned_by: the options of ``hpm-bench run`` that ask for its fine-tuning; absent if it was not fine-tuned.
        training: sha256 of ``training.json``, which tells how that went; absent if it was not fine-tuned.
    """

    schema_version: Literal["1.0"]
    library_name: Literal["hpm-robustbench"]
    base: Base
    n_classes: Annotated[int, Field(ge=1, le=100_000)]
    image_shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    defence: dict[str, JsonValue]
    batching: Batching
    coupled: bool
    contains: Literal["head", "model"]
    size: Annotated[int, Field(ge=1)]
    sha256: Sha256
    state_sha256: Sha256
    prototypes: Annotated[_Line, Field(max_length=1024)]
    tuned_by: Annotated[list[_Option], Field(max_length=128)] = Field(default_factory=list)
    training: Sha256 | None = None

    @property
    def config(self) -> HPMConfig:
        """The definition of HPM."""
        values: dict[str, Any] = self.defence
        return HPMConfig(**values)

    @property
    def images(self) -> Dataset:
        """What the classifier takes and answers."""
        channels, height, width = self.image_shape
        return Dataset(self.base.dataset, self.n_classes, (channels, height, width))

    @property
    def checksums(self) -> dict[str, Checksum]:
        """What each file beside this one must be."""
        tensors = {TENSORS: Checksum(self.sha256, self.size)}
        return tensors if self.training is None else {**tensors, RECORD: Checksum(self.training)}

    @field_validator("image_shape")
    @classmethod
    def _of_a_real_image(cls, shape: list[int]) -> list[int]:
        if math.prod(shape) > _MOST_PIXELS:
            raise ValueError(f"images of {shape} are larger than any")
        return shape

    @model_validator(mode="after")
    def _means_something(self) -> Description:
        try:
            _ = self.config, self.base.threat
        except (HpmBenchError, TypeError, OverflowError) as error:
            raise ValueError(first_line(error)) from error
        if self.training is not None and not self.tuned_by:
            raise ValueError("a training, and no options that ask for it")
        return self

    def to_text(self) -> str:
        """The text of the file: equal models, equal bytes."""
        return self.model_dump_json(indent=2, exclude_unset=True) + "\n"


def read_description(content: bytes, where: str) -> Description:
    """Read and check a description.

    Raises:
        InvalidInput: it is none; names the field and the problem.
    """
    try:
        return Description.model_validate_json(content)
    except ValidationError as error:
        raise InvalidInput(
            wanted=f"{CONFIG} of a model that hpm-bench push has published, in {where}",
            got=first_problem(error),
            next_step="name another repository or folder, or install the version of hpm-robustbench that wrote it",
        ) from error
