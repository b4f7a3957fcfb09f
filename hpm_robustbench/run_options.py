"""How a model is put on trial: everything a person may choose, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.coupling import COUPLING
from hpm_robustbench.ledger.matrix import MATRIX
from hpm_robustbench.ledger.plan import QUICK
from hpm_robustbench.threat import Batching, Composition
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.recipe import Tuning
from hpm_robustbench.weights import STRICT, Trust

SCREENS = (QUICK, COUPLING, MATRIX)


@dataclass(frozen=True)
class RunOptions:
    """How a model is put on trial.

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
        if self.controls and (self.tuning is None or self.tuning.control is not None):
            raise UsageProblem(
                wanted="a recipe beside all its controls",
                got="no recipe" if self.tuning is None else f"the control {self.tuning.name} alone",
                next_step="give --recipe uniform-v1 --controls, or --control without --controls",
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
