"""Write down what a checkpoint is, so that from then on nothing else passes for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.ledger.atomic import make_folder, write_atomic
from hpm_robustbench.weights.load import assemble
from hpm_robustbench.weights.locate import locate
from hpm_robustbench.weights.locks import locked, unwritable
from hpm_robustbench.weights.transfer import Fetcher
from hpm_robustbench.weights.trust import Trust
from hpm_robustbench.zoo.checksums import Checksum, checksums_json, read_checksums
from hpm_robustbench.zoo.spec import ModelSpec


def pin(
    spec: ModelSpec,
    model_dir: Path,
    output: Path | None = None,
    fetcher: Fetcher | None = None,
    allow_globals: tuple[str, ...] = (),
) -> dict[str, Checksum]:
    """Size and sha256 of each file of a checkpoint, by locator; it is fetched if it is not there.

    Only weights that fit their network are pinned.

    Args:
        spec: which model.
        model_dir: where checkpoints lie.
        output: a file of checksums that takes the entries, also those of several processes at once; it is made if
            there is none.
        fetcher: see ``locate``.
        allow_globals: see ``Trust``.

    Raises:
        UsageProblem: nobody but its owner can have the file.
        IntegrityError: it is no checkpoint of that network, or not what was pinned before; nothing is written.
    """
    if spec.weights.source in ("file", "package"):
        raise UsageProblem(
            wanted="a model whose weights are fetched",
            got=f"{spec.name} from {spec.weights}",
            next_step="pin a model of RobustBench's, or weights from the Hub",
        )
    known = read_checksums(output) if output is not None and output.exists() else {}
    trust = Trust(output if known else None, allow_globals)
    originals = locate(replace(spec, weights=replace(spec.weights, sha256=())), model_dir, fetcher, trust, exactly=True)
    assemble(spec, originals, model_dir, trust)
    entries = {original.locator: original.checksum for original in originals}
    if output is not None:
        _add(entries, output)
    return entries


def _add(entries: Mapping[str, Checksum], output: Path) -> None:
    """Join entries to those of a file, which another process may have changed since it was read."""
    make_folder(output.parent)
    try:
        with locked(output):
            known = read_checksums(output) if output.exists() else {}
            for locator in known.keys() & entries.keys():
                if not known[locator].matches(entries[locator]):
                    raise IntegrityError(
                        wanted=f"{known[locator]} for {locator}, as another process has just pinned",
                        got=str(entries[locator]),
                        next_step="find out which of the two is the right file",
                    )
            write_atomic(output, checksums_json({**known, **entries}))
    except OSError as error:
        raise unwritable(output, error) from error
