"""What a caller tells of a model of his own, read from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.card_from_records import published_number
from hpm_robustbench.ledger.card_schema import ModelCard, first_problem
from hpm_robustbench.zoo.from_file import paper_from_json
from hpm_robustbench.zoo.spec import Paper

_NOTHING_TOLD = {
    **dict.fromkeys(("name", "dataset", "link", "authors", "venue", "architecture"), ""),
    "eps": None,
    "clean_acc": "0",
    "reported": None,
}
"""What a card needs, where nobody has told anything about its model."""


def read_facts(path: Path) -> Paper:
    """Facts about a model that its card can hold: a trial takes hours, and its card is made in the end."""
    paper = paper_from_json(_read_object(path), str(path))
    told = {key: fact for key, fact in vars(paper).items() if published_number(fact) is not None}
    try:
        ModelCard.model_validate({**_NOTHING_TOLD, **told})
    except ValidationError as error:
        raise UsageProblem(
            wanted=f"facts that a model card can hold in {path}, the file of --about",
            got=first_problem(error),
            next_step='correct that field; accuracies are text in percent, like "53.08"',
        ) from error
    return paper


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(wanted=f"a JSON file {path}", got=str(error), next_step="correct it") from error
    if not isinstance(content, dict):
        raise InvalidInput(wanted=f"a JSON object in {path}", got=type(content).__name__, next_step="correct it")
    return content
