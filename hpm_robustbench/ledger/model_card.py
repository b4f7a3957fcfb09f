"""Model cards: a RobustBench ``model_info`` file whose ``hpm_bench`` block holds everything else.

    model_cards/<dataset>/<threat>/<Model>.json
    model_cards/schema/model_card-1.0.schema.json

RobustBench's own files are cards too, without that block.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.ledger.card_bench import HpmBench
from hpm_robustbench.ledger.card_corruptions import CorruptionBench
from hpm_robustbench.ledger.card_from_corruptions import build_corruption_card
from hpm_robustbench.ledger.card_from_records import build_card
from hpm_robustbench.ledger.card_from_tuning import Tuned
from hpm_robustbench.ledger.card_schema import ModelCard, contract_of, json_schema

__all__ = [
    "ModelCard",
    "Tuned",
    "build_card",
    "build_corruption_card",
    "card_path",
    "check_replaceable",
    "json_schema",
    "place",
    "read_card",
    "write_card",
]


def read_card(path: Path) -> ModelCard:
    """Read and check a card.

    Raises:
        InvalidInput: it cannot be read or breaks the contract; names the field and the problem.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            wanted=f"a readable model card {path}", got=error.strerror or str(error), next_step="check the path"
        ) from error
    with contract_of(str(path)):
        return ModelCard.model_validate_json(content)


def card_path(card: ModelCard, cards_dir: Path) -> Path:
    """Where a card lies: ``<dataset>/<threat>/<Model>.json``.

    Raises:
        InvalidInput: it is one of RobustBench's own entries, which do not know their model's name.
    """
    if card.hpm_bench is None:
        raise InvalidInput(
            wanted="a card with an hpm_bench block",
            got=f"a plain RobustBench entry, {card.name!r}",
            next_step="evaluate the model with hpm-bench run",
        )
    return place(cards_dir, card.dataset, card.hpm_bench.threat_name, card.hpm_bench.model_id)


def place(cards_dir: Path, dataset: str, threat_model: str, model: str) -> Path:
    """Where the card of a model on a track lies."""
    return cards_dir / dataset / threat_model / f"{model}.json"


def check_replaceable(
    path: Path,
    trials: Collection[tuple[object, ...]],
    defence: Mapping[str, Any],
    weights_sha256: Sequence[str],
    *,
    controls: bool = False,
) -> None:
    """See that a card at ``path``, if there is one, tells of the same trials of the same defence and weights.

    Args:
        path: where a new card will be written.
        trials: of the new card: target, batching, batch size, composition, seed, exact eps and
            fingerprint of each.
        defence: configuration of HPM.
        weights_sha256: of the files that the base model came from.
        controls: whether the new card will tell of controls.

    Raises:
        UsageProblem: it tells of others, or of controls beside them, or cannot be read; replacing it would lose them.
    """
    bench = _told(path) if path.exists() else None
    if bench is None:
        return
    told = {evaluation.trial for evaluation in bench.evaluations}
    same_weights = list(bench.weights.sha256) == list(weights_sha256)
    if told != set(trials) or bench.defence != dict(defence) or not same_weights:
        raise UsageProblem(
            wanted=f"to write {path} anew",
            got="a card there that tells of other weights, images, batches, seeds, budgets or HPM knobs",
            next_step="choose another --output or --name, or say --overwrite",
        )
    if isinstance(bench, HpmBench) and bench.controls and not controls:
        raise UsageProblem(
            wanted=f"to write {path} anew",
            got="a card there that tells of controls, too",
            next_step="add --controls, or say --overwrite",
        )


def _told(path: Path) -> HpmBench | CorruptionBench | None:
    try:
        return read_card(path).hpm_bench
    except InvalidInput as error:  # of another schema, or by another rule
        raise UsageProblem(
            wanted=f"to write {path} anew",
            got=f"a card there that this version does not read: {error.got}",
            next_step="choose another --output or --name, or say --overwrite",
        ) from error


def write_card(card: ModelCard, cards_dir: Path) -> Path:
    """Write a card to its place below ``cards_dir``, whole or not at all.

    Raises:
        StorageProblem: the folder cannot be written.
    """
    path = card_path(card, cards_dir)
    write_atomic(path, card.to_text())
    return path
