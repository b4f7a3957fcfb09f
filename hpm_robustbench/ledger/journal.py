"""The memory of a run: one file per (shard, step), written whole or not at all.

    runs/<run key>/plan.json
    runs/<run key>/environment.json
    runs/<run key>/shards/00003/02-apgd-t@hpm.json
    runs/<run key>/lent.json
    runs/<run key>/diagnostics.json
    runs/<run key>/aggregates.json

Resume is not a mode: whoever runs a plan asks which files exist. A file that is torn, foreign or edited does not
match its own checksum; it is ignored with a warning and the step is done again. The environment has none, for nothing
follows from it: one that cannot be read is written again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.ledger.aggregates import Aggregates
from hpm_robustbench.ledger.atomic import make_folder, write_atomic
from hpm_robustbench.ledger.card_block import Block
from hpm_robustbench.ledger.diagnostics import Diagnostics
from hpm_robustbench.ledger.matrix import MATRIX
from hpm_robustbench.ledger.plan import BasePlan, canonical_json, digest, plan_from_json
from hpm_robustbench.ledger.record import CLEAN, RunRecord, StepResult, merge_shards
from hpm_robustbench.ledger.transfers import LENT

log = logging.getLogger(__name__)
AnyBlock = TypeVar("AnyBlock", bound=Block)


class Journal:
    """The folder of one plan's run."""

    def __init__(self, runs: Path, plan: BasePlan) -> None:
        self.plan = plan
        self.folder = runs / plan.run_key
        self.step_names = [CLEAN, *(step.name for step in plan.steps)]

    def open(self, environment: Mapping[str, str]) -> Journal:
        """Create the folder, or recognise it.

        Raises:
            StorageProblem: it cannot be written.
        """
        make_folder(self.folder)
        plan_file = self.folder / "plan.json"
        text = json.dumps(self.plan.to_json(), indent=1, sort_keys=True) + "\n"
        # The folder's name is the plan's hash: a file that says anything else is torn.
        if not plan_file.exists() or plan_file.read_text(errors="replace") != text:
            write_atomic(plan_file, text)
        if self._environment() is None:
            write_atomic(self._environment_path, json.dumps(dict(environment), indent=1, sort_keys=True) + "\n")
        return self

    @property
    def _environment_path(self) -> Path:
        return self.folder / "environment.json"

    def _environment(self) -> dict[str, str] | None:
        """Where it came about, or None if that is not there or not whole."""
        try:
            found = json.loads(self._environment_path.read_bytes())
            return {str(name): str(value) for name, value in found.items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError) as error:
            log.warning("ignoring %s, which is not whole (%s); it is written again", self._environment_path, error)
            return None

    def path(self, shard: int, step: str) -> Path:
        """Where a step's result on a shard lies."""
        return self.folder / "shards" / f"{shard:05d}" / f"{self.step_names.index(step):02d}-{step}.json"

    def write(self, shard: int, result: StepResult) -> None:
        """Put a result down, atomically."""
        _write(self.path(shard, result.name), asdict(result))

    def read(self, shard: int, step: str) -> StepResult | None:
        """The result of a step on a shard, or None if it is not there or not whole."""
        return _read_step(self.path(shard, step), step, self.plan.shards()[shard])

    @property
    def lent_path(self) -> Path:
        """Where it lies what images of the base model do to HPM."""
        return self.folder / "lent.json"

    def write_lent(self, result: StepResult) -> None:
        """Put down what images of the base model do to HPM, atomically."""
        _write(self.lent_path, asdict(result))

    def read_lent(self) -> StepResult | None:
        """What images of the base model do to HPM, or None if it is not there or not whole."""
        return _read_step(self.lent_path, LENT.name, list(range(self.plan.examples.n)))

    def write_diagnostics(self, diagnostics: Diagnostics) -> None:
        """Put down what was found out about the attacks of the run, atomically."""
        _write(self.folder / "diagnostics.json", diagnostics.model_dump(mode="json"))

    def read_diagnostics(self) -> Diagnostics | None:
        """What was found out about the attacks, or None if it is not there or not whole."""
        return _read_block(self.folder / "diagnostics.json", Diagnostics)

    def write_aggregates(self, aggregates: Aggregates) -> None:
        """Put down what the images of the run do in other submissions, atomically."""
        _write(self.folder / "aggregates.json", aggregates.model_dump(mode="json"))

    def read_aggregates(self) -> Aggregates | None:
        """What the images do in other submissions, or None if it is not there or not whole."""
        return _read_block(self.folder / "aggregates.json", Aggregates)

    @property
    def awaits_images(self) -> bool:
        """Whether a trial of HPM is still to be shown what the base model's leaves behind, or what broke batches."""
        return bool(self.plan.lender) and (self.awaits_aggregates or self.read_lent() is None)

    @property
    def awaits_aggregates(self) -> bool:
        """Whether what broke whole batches is still to be put together, so that its images have to be there."""
        return self.plan.aggregated and self.read_aggregates() is None

    def progress(self) -> tuple[int, int]:
        """Step files written, and step files a finished run has."""
        done = sum(1 for _ in (self.folder / "shards").glob("*/[0-9]*.json"))
        return done, len(self.plan.shards()) * len(self.step_names)

    def record(self) -> RunRecord | None:
        """The finished run, or None while a step is missing, or the environment in which it came about."""
        steps, environment = [], self._environment()
        if environment is None:
            return None
        for name in self.step_names:
            shards = [self.read(shard, name) for shard in range(len(self.plan.shards()))]
            whole = [shard for shard in shards if shard is not None]
            if len(whole) != len(shards):
                return None
            steps.append(merge_shards(whole))
        found = self.read_diagnostics(), self.read_aggregates(), self.read_lent()
        return RunRecord(self.plan, tuple(steps), environment, *found)


def _write(path: Path, payload: Mapping[str, Any]) -> None:
    write_atomic(path, canonical_json({"payload": payload, "sha256": digest(payload)}) + "\n")


def _read(path: Path) -> Any:
    content = json.loads(path.read_bytes())
    if content["sha256"] != digest(content["payload"]):
        raise ValueError("checksum mismatch")
    return content["payload"]


def _read_step(path: Path, name: str, rows: list[int]) -> StepResult | None:
    try:
        result = StepResult.from_json(_read(path))
        if result.name != name or list(result.rows) != rows:
            raise ValueError("it belongs to another shard or step")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("ignoring %s, which is not a whole journal file (%s); the step is done again", path, error)
        return None
    return result


def _read_block(path: Path, kind: type[AnyBlock]) -> AnyBlock | None:
    try:
        return kind.model_validate(_read(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("ignoring %s, which is not whole (%s); it is done again", path, error)
        return None


def load_plan(folder: Path) -> BasePlan:
    """Read the plan of a run folder.

    Raises:
        IntegrityError: there is none, or it is not a plan.
    """
    try:
        data: Any = json.loads((folder / "plan.json").read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(
            wanted=f"a readable plan.json in {folder}", got=str(error), next_step="remove that folder"
        ) from error
    return plan_from_json(data)


def overview(runs: Path) -> list[dict[str, Any]]:
    """How far each run below ``runs`` is, by run key; folders without a readable plan are left out with a warning."""
    rows = []
    for folder in sorted(path.parent for path in runs.glob("*/plan.json")):
        try:
            plan = load_plan(folder)
        except IntegrityError as error:
            log.warning("%s", error)
            continue
        journal = Journal(runs, plan)
        done, total = journal.progress()
        rows.append(
            {
                "run": folder.name,
                "model": plan.model,
                "target": plan.target,
                "batching": plan.batching.value,
                "protocol": f"{MATRIX}: {plan.steps[0].name}" if plan.protocol == MATRIX else plan.protocol,
                "dataset": plan.examples.dataset,
                "threat": str(plan.threat),
                "n": plan.examples.n,
                "steps": f"{done}/{total}",
                "state": "unfinished" if done < total or journal.awaits_images else "finished",
            }
        )
    return rows
