"""Protocols are data: every step can be run, names are distinct, and the union starts with AutoAttack."""

import inspect
from dataclasses import replace

import pytest

from hpm_robustbench.attacks import alone, autoattack, conjunction, in_turns, joint, smoothed
from hpm_robustbench.attacks.protocols import COUPLED_THREATS, find_protocol, msa, msa_on_base, quick, standard
from hpm_robustbench.attacks.registry import find_attack
from hpm_robustbench.errors import BatchCoupled, UnknownName
from hpm_robustbench.ledger.plan import AUTOATTACK, COMPONENTS, MSA, QUICK
from hpm_robustbench.surrogates.views import VIEWS
from hpm_robustbench.threat import Batching

BATCHINGS = list(Batching)
SEARCHES = {
    "joint": joint._joint,
    "in-turns": in_turns._in_turns,
    "square": autoattack._square,
    "conjunction": conjunction._conjunction,
    "alone": alone._climb,
    "smoothed": smoothed._smoothed,
    "joint-smoothed": smoothed._joint_smoothed,
}
COUPLED_UNDER_JOINT = {"hpm", "soft", "soft-0.5"}


@pytest.mark.parametrize("target", ["base", "hpm"])
def test_standard_is_autoattack_in_its_own_order(target):
    assert [step.name for step in standard(target)] == [f"{attack}@{target}" for attack in COMPONENTS]
    assert {step.group for step in standard(target)} == {AUTOATTACK}


@pytest.mark.parametrize("batching", BATCHINGS)
def test_every_step_of_msa_names_what_exists(batching):
    steps = msa(batching)
    assert len({step.name for step in steps}) == len(steps)
    assert {step.view for step in msa(batching, fine_tuned=True)} <= set(VIEWS)
    for step in steps:
        find_attack(step.attack)
        if step.parameters:
            assert set(step.parameters) <= set(inspect.signature(SEARCHES[step.attack]).parameters)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_no_repacking_attack_meets_a_coupled_view(batching):
    for step in msa(batching):
        coupled = step.view in COUPLED_UNDER_JOINT and not batching.row_independent
        assert not (coupled and find_attack(step.attack).requires_row_independence)


@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.REFERENCE])
def test_msa_on_independent_rows_contains_standard_autoattack_first(batching):
    steps = msa(batching)
    assert steps[:4] == standard("hpm")
    assert {step.group for step in steps[4:]} == {MSA}
    assert [step.name for step in steps[4:]] == [
        "conjunction@hpm.restarts-40",
        "conjunction@hpm.restarts-40.softness-0.0.targets-3",
        "apgd-ce@base",
        "apgd-t@base",
        "square@base.where-misled",
        "smoothed@hpm.sigma-2.0.where-misled",
        "smoothed@hpm.sigma-3.0.where-misled",
        "hard-label@hpm",
    ]


def test_a_base_model_meets_autoattack_and_all_that_is_made_for_rows_of_hpm():
    """But for transfers, so neither is called better for being attacked less."""
    own = [replace(step, view="base") for step in msa(Batching.SOLO) if step.view == "hpm"]
    assert list(msa_on_base()) == own
    assert msa_on_base()[:4] == standard("base")


def test_msa_on_joint_batches():
    assert [step.name for step in msa(Batching.JOINT)] == [
        "joint@hpm.loss-ce",
        "joint@hpm.loss-dlr",
        "joint@soft.loss-ce",
        "joint@soft-0.5.loss-ce",
        "apgd-t@l2",
        "joint-square@hpm",
        "apgd-ce@base",
        "apgd-t@base",
        "square@base.where-misled",
        "joint-smoothed@hpm.sigma-2.0.where-misled",
        "joint-smoothed@hpm.sigma-3.0.where-misled",
        "joint@hpm.loss-ce.steps-40.victims-16",
        "joint@hpm.loss-ce.steps-40.victims-4",
        "in-turns@hpm",
    ]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_hpm_meets_gradients_of_the_base_model_and_square_where_these_mislead(batching):
    """What AutoAttack finds beyond that, in the base model's own trial, HPM is shown in the end."""
    wanted = ["apgd-ce@base", "apgd-t@base", "square@base.where-misled"]
    assert [step.name for step in msa(batching) if step.view == "base"] == wanted


@pytest.mark.parametrize("batching", BATCHINGS)
def test_after_fine_tuning_the_fc_head_takes_its_place_and_the_original_lends_its_two_apgds(batching):
    tuned, untuned = ({step.name for step in msa(batching, fine_tuned)} for fine_tuned in (True, False))
    assert tuned - untuned == {"apgd-ce@fc", "apgd-t@fc", "square@fc.where-misled"}
    assert untuned - tuned == {"square@base.where-misled"}


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("target", ["base", "hpm"])
def test_a_screen_is_part_of_the_same_attacks_in_a_group_of_its_own(target, batching):
    steps = quick(target, batching)
    assert {step.group for step in steps} == {QUICK}
    known = {(step.view, step.attack) for step in msa(batching)} | {("base", "apgd-ce"), ("base", "apgd-t")}
    assert {(step.view, step.attack) for step in steps} <= known


def test_every_threat_to_one_image_is_a_search_that_exists():
    for step in [step for steps in COUPLED_THREATS.values() for step in steps]:
        attack, view = find_attack(step.attack), step.view
        assert view in VIEWS
        assert not (attack.requires_row_independence and view in COUPLED_UNDER_JOINT)
        assert set(step.parameters) <= set(inspect.signature(SEARCHES[step.attack]).parameters)
        assert step.group == QUICK, "a screen, which never becomes a card"
    last = {steps[-1].name for steps in COUPLED_THREATS.values()}
    assert len(last) == len(COUPLED_THREATS)


def test_find_protocol():
    assert find_protocol("quick", "hpm", Batching.SOLO) == quick("hpm", Batching.SOLO)
    assert find_protocol("standard", "hpm", Batching.SOLO) == standard("hpm")
    assert find_protocol("msa", "hpm", Batching.JOINT) == msa(Batching.JOINT)
    assert find_protocol("msa", "hpm", Batching.SOLO, fine_tuned=True) == msa(Batching.SOLO, fine_tuned=True)
    assert find_protocol("msa", "base", Batching.SOLO) == msa_on_base()
    assert find_protocol("standard", "base", Batching.SOLO) == standard("base")
    with pytest.raises(UnknownName, match="standard"):
        find_protocol("standart", "hpm", Batching.SOLO)
    with pytest.raises(BatchCoupled, match="msa"):
        find_protocol("standard", "hpm", Batching.JOINT)
