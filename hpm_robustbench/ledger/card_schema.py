"""The type of a model card: RobustBench's keys on top, which mirror the ``hpm_bench`` block where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.card_bench import SCHEMA_VERSION, HpmBench
from hpm_robustbench.ledger.card_block import PercentText
from hpm_robustbench.ledger.card_corruptions import CorruptionBench, CorruptionEvaluation


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _kind(bench: object) -> str:
    """Which block ``bench`` is meant to be; a corruption track's is the one that counts by corruption."""
    evaluations = bench.get("evaluations") if isinstance(bench, dict) else None
    counted = isinstance(evaluations, list) and any(isinstance(e, dict) and "right" in e for e in evaluations)
    return _CORRUPTED if counted or isinstance(bench, CorruptionBench) else _ATTACKED


_ATTACKED, _CORRUPTED = "under attack", "on corrupted images"
AnyBench: TypeAlias = Annotated[
    Annotated[HpmBench, Tag(_ATTACKED)] | Annotated[CorruptionBench, Tag(_CORRUPTED)], Discriminator(_kind)
]


class ModelCard(BaseModel):
    """RobustBench's keys, with its spellings: accuracies are text in percent, eps is text such as ``8/255``.

    A key that was not given is absent from the written card too: RobustBench reads ``external`` wherever it exists.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    link: str
    name: str
    authors: str
    additional_data: bool
    number_forward_passes: Annotated[int, Field(ge=1)]
    dataset: str
    venue: str
    architecture: str
    eps: str | float | None
    clean_acc: PercentText
    reported: PercentText | Literal["", "null"] | None
    autoattack_acc: PercentText | None = None
    external: Annotated[PercentText | SkipJsonSchema[None], Field(json_schema_extra=_drop_default)] = None
    unreliable: bool | None = None
    footnote: str | None = None
    corruptions_acc: PercentText | None = None
    corruptions_mce: PercentText | None = None
    corruptions_acc_3d: PercentText | None = None
    corruptions_mce_3d: PercentText | None = None
    hpm_bench: AnyBench | None = None

    @field_validator("external")
    @classmethod
    def _absent_rather_than_null(cls, value: str | None) -> str:
        if value is None:
            raise ValueError("leave the key out instead of writing null")
        return value

    @model_validator(mode="after")
    def _mirrors_agree(self) -> ModelCard:
        if self.hpm_bench is None:
            return self
        for key, expected in robustbench_view(self.hpm_bench).items():
            if getattr(self, key) != expected:
                raise ValueError(f"{key} is {getattr(self, key)!r}, but hpm_bench says {expected!r}")
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of every key that was given."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_text(self) -> str:
        """The text of the card's file: equal cards, equal bytes."""
        return json.dumps(self.to_json(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def robustbench_view(bench: HpmBench | CorruptionBench) -> dict[str, Any]:
    """What ``hpm_bench`` means in RobustBench's keys; ``external`` is None where AutoAttack's number is the lowest."""
    solo = bench.headline
    if isinstance(solo, CorruptionEvaluation):
        return {
            "dataset": solo.dataset,
            "eps": None,
            "clean_acc": solo.clean.text,
            "autoattack_acc": None,
            "corruptions_acc": solo.text,
        }
    assert solo.autoattack is not None
    stronger = solo.robust.count < solo.autoattack.count
    return {
        "dataset": solo.dataset,
        "eps": solo.threat.eps,
        "clean_acc": solo.clean.text,
        "autoattack_acc": solo.autoattack.text,
        "external": solo.robust.text if stronger else None,
        "unreliable": solo.autoattack_flagged,
    }


@contextmanager
def contract_of(what: str) -> Iterator[None]:
    """Turn a failed validation of ``what`` into an error that names the field and the problem.

    Raises:
        InvalidInput: the body's data do not keep the contract of a card.
    """
    try:
        yield
    except ValidationError as error:
        raise InvalidInput(
            wanted=f"{what} as a model card of schema {SCHEMA_VERSION}",
            got=first_problem(error),
            next_step="correct that field, or build the card again with hpm-bench run",
        ) from error


def first_problem(error: ValidationError) -> str:
    """In one line, which field is wrong and why, and how many more are."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"] if part not in (_ATTACKED, _CORRUPTED)) or "the whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field!r}: {first['msg']}{more}"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a card."""
    schema = ModelCard.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:hpm-robustbench:model-card:{SCHEMA_VERSION}",
        **schema,
    }
