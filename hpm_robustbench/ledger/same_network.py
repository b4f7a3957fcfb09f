"""Cards of one network on the same images: what fell on one of them has fallen.

A base model meets on each card what was made for the HPM of that card. So beside a fine-tuned HPM, whose images are
made for another network, it may stand where it falls on the card of the untuned one; and the fine-tuned HPM seems to
hurt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hpm_robustbench.ledger.card_bench import HpmBench, Verdict, judged
from hpm_robustbench.ledger.card_control import written
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.image_set import ImageSet
from hpm_robustbench.ledger.statistics import compare
from hpm_robustbench.threat import Batching


class Network(NamedTuple):
    """A base model under one attacker on one set of images: its checkpoint, or its tensors where it has none."""

    weights: tuple[str, ...]
    norm: str
    eps: str
    images: ImageSet

    @classmethod
    def of(cls, base: Evaluation, bench: HpmBench) -> Network:
        """Whose rows an evaluation tells of."""
        weights = tuple(bench.weights.sha256) or (base.state_sha256,)
        return cls(weights, base.threat.norm.value, base.threat.eps_exact, ImageSet.of(base))


def base_of(bench: HpmBench) -> Evaluation | None:
    """The model without HPM; the card of C1 tells of none, but of C1 in its place."""
    return None if bench.control == "fc" else bench.evaluation("base", Batching.SOLO)


def fallen_anywhere(benches: Sequence[HpmBench]) -> list[frozenset[int] | None]:
    """For each card the rows of its base model that fell on any of these cards, if it tells of rows itself."""
    bases = [base_of(bench) for bench in benches]
    networks = [
        Network.of(base, bench) if base and base.fallen is not None else None
        for base, bench in zip(bases, benches, strict=True)
    ]
    found: defaultdict[Network | None, set[int]] = defaultdict(set)
    for network, base in zip(networks, bases, strict=True):
        found[network] |= (base and base.fallen) or set()
    return [frozenset(found[network]) if network else None for network in networks]


def tempered(claim: Verdict, bench: HpmBench, fallen: frozenset[int] | None) -> Verdict:
    """A card's verdict, or a less certain one if that follows from what is known of the base model.

    HPM was not shown what was made elsewhere, so that alone is no reason to credit HPM: the less certain of the two
    comparisons counts, and where they contradict each other nothing is decided.
    """
    hpm = bench.evaluation("hpm", claim.batching)
    if fallen is None or hpm is None or hpm.fallen is None:
        return claim
    test = compare(len(hpm.fallen - fallen), len(fallen - hpm.fallen))
    if test.p_value <= claim.p_value:
        return claim
    fc = bench.fc(claim.batching)
    verdict = judged(test, fc.test if fc else None, tuned=bool(bench.tuning))
    told = {"only_base": test.only_first, "only_hpm": test.only_second, "p_value": written(test.p_value)}
    return claim.model_copy(update={**told, "verdict": verdict if verdict == claim.verdict else "undecided"})
