"""Named protocols: which attacks meet which views. Data only; no torch."""

from __future__ import annotations

from hpm_robustbench.errors import BatchCoupled, UnknownName
from hpm_robustbench.ledger.plan import AUTOATTACK, COMPONENTS, MSA, QUICK, STANDARD, Step
from hpm_robustbench.threat import Batching

_MISLED = "misled"
"""Where attacks that are dear go: to images whose margin has no gradient, or one that leads nowhere or is a mate's."""


_RESTARTS = 40
"""Other starts of a climb of the conjunction that ended near."""


def standard(target: str) -> tuple[Step, ...]:
    """Standard AutoAttack on the target itself: ``base``, or a row-independent ``hpm``."""
    return tuple(Step(target, attack, AUTOATTACK) for attack in COMPONENTS)


def msa_on_base() -> tuple[Step, ...]:
    """What a base model meets: standard AutoAttack, and all that is made for rows of HPM, for it is made for any head.

    HPM has the conjunction climb again from many starts. Compared with a base model whose gradients were followed from
    one, it would be called worse for being attacked better.
    """
    return (*standard("base"), *_conjunctions("base"), *_by_labels_alone("base"))


def msa(batching: Batching, fine_tuned: bool = False) -> tuple[Step, ...]:
    """The Mixed Surrogate Attack on an HPM classifier: attacks made for it, then transfer from its surrogates.

    Where rows are independent, it contains standard AutoAttack on the classifier itself. A base whose gradients mislead
    falls to Square alone, and HPM on top of it must not be credited for that: on MNIST (Linf 0.3) Square's images broke
    12 of 13 that stood under everything else. So the FC head meets Square where its gradient misleads; and in the end
    HPM is shown what was made of the base model in that one's own trial (``evaluation/lent.py``), and HPM SOLO
    what was made for other batchings (``ledger/transfers.py``), which are no steps of a plan. Unless something was
    fine-tuned, the FC head on its backbone *is* the original model (the split proves it, bit for bit), so the two
    surrogates are one, listed as ``base``. Where there is no gradient, as through rounded pixels, or one that misleads,
    the decision is smoothed instead; that is dear, and spent nowhere else.
    """
    linear = ("base", "fc") if fine_tuned else ("base",)
    transferred = tuple(Step(view, attack, MSA) for attack in ("apgd-ce", "apgd-t") for view in linear)
    transferred += (Step(linear[-1], "square", MSA, {"where": _MISLED}),)
    if batching.row_independent:
        return (*standard("hpm"), *_conjunctions("hpm"), *transferred, *_by_labels_alone("hpm"))
    return _TOGETHER + transferred + _smoothed("hpm", "joint-smoothed") + _FOR_FEW_VICTIMS


def _conjunctions(target: str) -> tuple[Step, ...]:
    """With a soft minimum for every class, with a hard one, from a start of its own, for the three most promising."""
    harder = {"softness": 0.0, "targets": 3}
    return tuple(Step(target, "conjunction", MSA, {"restarts": _RESTARTS, **changed}) for changed in ({}, harder))


def _by_labels_alone(target: str) -> tuple[Step, ...]:
    return (*_smoothed(target, "smoothed"), Step(target, "hard-label", MSA))


def _smoothed(target: str, attack: str) -> tuple[Step, ...]:
    """With narrower noise and with wider: either took rows that the other left."""
    return tuple(Step(target, attack, MSA, {"where": _MISLED, "sigma": sigma}) for sigma in (2.0, 3.0))


_TOGETHER = (
    Step("hpm", "joint", MSA, {"loss": "ce"}),
    Step("hpm", "joint", MSA, {"loss": "dlr"}),
    Step("soft", "joint", MSA, {"loss": "ce"}),
    Step("soft-0.5", "joint", MSA, {"loss": "ce"}),
    Step("l2", "apgd-t", MSA),
    Step("hpm", "joint-square", MSA),
)
"""The whole batch moves against all of its rows, by gradients and without; rows alone against the static head, too.

Where that head decides nearly by itself, this took two to three times what one more joint climb took (10 of the 13 rows
of the digits' static control that only Square had broken). The sharper of the soft votes took 52 images in five trials,
one of them behind everything that came after it.
"""
_FOR_FEW_VICTIMS = (
    Step("hpm", "joint", MSA, {"loss": "ce", "steps": 40, "victims": 16}),
    Step("hpm", "joint", MSA, {"loss": "ce", "steps": 40, "victims": 4}),
    Step("hpm", "in-turns", MSA),
)
"""The whole batch moves against the few that still stand, the dearer steps after the cheaper.

Of what the first two leave of four batches (the digits model, fine-tuned and not), three climbs for one victim at a
time took 18 rows, each climb others, and turns took 35, all but two of the 18 among them, in fewer passes. In two of
them a third turn took none; behind all of MSA it takes some, with more steps as well (docs/msa.md).
"""


def quick(target: str, batching: Batching) -> tuple[Step, ...]:
    """A screen at a small part of the cost: what stands under it may well fall; what falls has fallen."""
    few: dict[str, dict[str, int]] = {"apgd-ce": {"n_iter": 20}, "apgd-t": {"n_iter": 20, "targets": 3}}
    base = tuple(Step("base", attack, QUICK, parameters) for attack, parameters in few.items())
    if target == "base":
        return base
    if batching.row_independent:
        own = tuple(Step("hpm", attack, QUICK, parameters) for attack, parameters in few.items())
        return (*own, Step("hpm", "conjunction", QUICK, {"steps": 20, "targets": 3}), *base)
    joint = tuple(Step("hpm", "joint", QUICK, {"loss": loss, "steps": 20}) for loss in ("ce", "dlr"))
    return (*joint, *base, Step("hpm", "joint", QUICK, {"loss": "ce", "steps": 20, "victims": 16}))


def _for_one(**in_hand: int | str) -> Step:
    return Step("hpm", "joint", QUICK, {"loss": "margin", "steps": 40, "victims": 1, **in_hand})


_BLINDLY = Step("drawn", "alone", QUICK, {"steps": 40})
COUPLED_THREATS: dict[str, tuple[Step, ...]] = {
    "the image itself, mates clean and unknown": (_BLINDLY,),
    "the image itself, mates clean": (_BLINDLY, _for_one(move="own")),
    "one mate, not the image": (_for_one(move="mates", movers=1),),
    "four mates, not the image": (_for_one(move="mates", movers=4),),
    "all mates, not the image": (_for_one(move="mates"),),
    "the image and all its mates": (_for_one(move="all"),),
}
"""What an attacker of a coupled classifier may have in hand, and know, when he is after one image; the search for each.

Together they are a screen of what batch mates can do to each other. Who knows the mates can do all that one can who
does not.
"""


def find_protocol(name: str, target: str, batching: Batching, fine_tuned: bool = False) -> tuple[Step, ...]:
    """The steps of a protocol against ``base`` or ``hpm``.

    Raises:
        UnknownName: no such protocol.
        BatchCoupled: standard AutoAttack on a classifier whose rows depend on each other.
    """
    if name not in (STANDARD, MSA, QUICK):
        raise UnknownName("protocol", name, [STANDARD, MSA, QUICK])
    if name == QUICK:
        return quick(target, batching)
    if name == MSA:
        return msa_on_base() if target == "base" else msa(batching, fine_tuned)
    if target == "hpm" and not batching.row_independent:
        raise BatchCoupled(
            wanted="standard AutoAttack on a classifier that answers each image independently",
            got=f"batching {batching.value}",
            next_step="use the protocol msa, or batching solo or reference",
        )
    return standard(target)
