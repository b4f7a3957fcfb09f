"""Cards of one network on the same images: what fell on one of them has fallen.

A base model meets on each card what was made for the HPM of that card. So beside a fine-tuned HPM, whose images are
made for another network, it may stand where it falls on the card of the untuned one; and the fine-tuned HPM seems to
hurt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hpm_robustbench.ledger.card_bench import HpmBench, Verdict
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.image_set import ImageSet
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
    told = [_told(bench) for bench in benches]
    found: defaultdict[Network, set[int]] = defaultdict(set)
    for network, fallen in filter(None, told):
        found[network] |= fallen
    return [frozenset(found[one[0]]) if one else None for one in told]


def _told(bench: HpmBench) -> tuple[Network, set[int]] | None:
    """Whose rows a card tells of, and which fell on it."""
    base = base_of(bench)
    fallen = base.fallen if base else None
    return (Network.of(base, bench), fallen) if base and fallen is not None else None


def tempered(claim: Verdict, bench: HpmBench, fallen: frozenset[int] | None) -> Verdict:
    """A card's verdict, or a less certain one if that follows from what is known of the base model.

    HPM was not shown what was made elsewhere, so that alone is no reason to credit HPM: the less certain of the two
    comparisons counts, and where they contradict each other nothing is decided.
    """
    hpm = bench.evaluation("hpm", claim.batching)
    if fallen is None or hpm is None or hpm.fallen is None:
        return claim
    base, defended = ([row not in lost for row in range(claim.n)] for lost in (fallen, hpm.fallen))
    fc = bench.fc(claim.batching)
    known = Verdict.of(base, defended, claim.batching, fc=fc.test if fc else None, tuned=bool(bench.tuning))
    agreed = claim.verdict if known.verdict == claim.verdict else "undecided"
    less_certain = claim if known.p_value <= claim.p_value else known
    return less_certain.model_copy(update={"verdict": agreed, "rule": claim.rule})
