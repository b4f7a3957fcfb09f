"""From a card back to the options of the trial that it tells of."""

from __future__ import annotations

from dataclasses import replace

from hpm_robustbench.knobs import defence_told
from hpm_robustbench.ledger.card_bench import HpmBench
from hpm_robustbench.ledger.card_corruptions import CorruptionBench
from hpm_robustbench.request.options import tuning_of
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching


def as_tried(bench: HpmBench | CorruptionBench, options: RunOptions) -> RunOptions:
    """Options under which the trials of a card are planned again, and no card of theirs is in the way.

    Args:
        bench: of the card.
        options: where things lie, on what device, and what is believed; how it is tried is taken from the card.

    Raises:
        InvalidInput: the card tells of knobs that this version does not know.
        HpmBenchError: it tells of a fine-tuning that nobody could have asked for, see ``tuning_of``.
    """
    solo, joint = bench.headline, bench.evaluation("hpm", Batching.JOINT)
    seed = bench.tuning.get("seed")
    tuning = tuning_of(bench.tuning_options, seed if isinstance(seed, int) else solo.seed) if bench.tuning else None
    return replace(
        options,
        n_ex=solo.n,
        batchings=tuple(e.batching for e in bench.evaluations if e.target == "hpm"),
        batch_size=solo.batch_size,
        joint_size=joint.batch_size if joint else options.joint_size,
        composition=joint.composition if joint else options.composition,
        seed=solo.seed,
        defence=defence_told(bench.asked_knobs, f"the card of {bench.model_id}"),
        tuning=tuning,
        overwrite=True,
    )
