from __future__ import annotations

import copy

import pytest
import torch

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.hpm.backbone import Split, split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import hpm_distances, squared_distances
from hpm_robustbench.threat import Batching


def parts_of(net, seed=0):
    return split(net(seed), (3, 2, 2), 4)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5), (4, 6)])
def test_prototypes_of_another_shape_are_invalid_input(net, shape):
    with pytest.raises(InvalidInput, match=r"prototypes of shape \(4, 5\)") as caught:
        HPMClassifier(parts_of(net), torch.zeros(shape), HPMConfig())
    assert caught.value.got == str(shape)


def test_setting_prototypes_later_asks_the_same(classifier):
    with pytest.raises(InvalidInput, match=r"prototypes of shape \(4, 5\)"):
        classifier().set_prototypes(torch.zeros(4, 6))


def test_setting_prototypes_copies_them_and_resets_the_carried_ones(classifier):
    defence, wanted = classifier(), torch.ones(4, 5, requires_grad=True)
    defence.set_prototypes(wanted)
    assert torch.equal(defence.prototypes.float(), wanted)
    assert torch.equal(defence.carried.float(), wanted)
    assert defence.prototypes.data_ptr() not in (defence.carried.data_ptr(), wanted.data_ptr())
    assert not defence.prototypes.requires_grad


@pytest.mark.parametrize("batching", Batching)
def test_logits_are_distances_over_tau(classifier, images, batching):
    defence, x = classifier(batching=batching), images(7)
    features, logits = defence.embed(x)
    assert torch.equal(features, defence.backbone(x))
    assert torch.equal(logits, defence.fc(features))
    distances = hpm_distances(
        features,
        logits,
        defence.prototypes,
        defence.beta,
        defence.config,
        batching,
        reference=defence.reference,
    )
    torch.testing.assert_close(defence(x), -distances / 0.7, rtol=1e-6, atol=0)


def test_static_distances_are_those_of_beta_zero(classifier, images):
    defence = classifier(HPMConfig(distance="scaled-l2"))
    features = defence.embed(images(7)).features
    wanted = (squared_distances(features, defence.prototypes) / 5).sqrt()
    torch.testing.assert_close(defence.static_distances(features), wanted)
    static = HPMConfig(distance="scaled-l2", beta=0.0)
    torch.testing.assert_close(defence.distances(defence.embed(images(7)), static), wanted)


def test_a_learned_beta_is_used_and_another_configuration_overrides_it(classifier, images):
    defence = classifier(HPMConfig(beta=0.5))
    with torch.no_grad():
        defence.beta.fill_(1.0)
    embedding = defence.embed(images(7))
    assert torch.equal(defence.distances(embedding).argmin(dim=1), embedding.logits.argmax(dim=1))
    static = defence.static_distances(embedding.features)
    torch.testing.assert_close(defence.distances(embedding, HPMConfig(beta=0.0)), static)


def test_normalized_features_and_prototypes_lie_on_the_unit_sphere(classifier, images):
    defence = classifier(HPMConfig(normalize=True))
    features = defence.embed(images(7)).features
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(defence.prototypes.norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert defence.distances(defence.embed(images(7))).max() <= 4


def test_features_and_distances_are_in_full_precision_under_autocast(net, images):
    defence = HPMClassifier(parts_of(net), torch.zeros(4, 5), HPMConfig()).eval()
    x = images(7).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert defence.backbone(x).dtype is torch.bfloat16 or defence.fc(defence.backbone(x)).dtype is torch.bfloat16
        features, logits = defence.embed(x)
        got = defence.distances(defence.embed(x))
    assert features.dtype is logits.dtype is got.dtype is torch.float32
    torch.testing.assert_close(got, defence.distances(type(defence.embed(x))(features, logits)))


@pytest.mark.parametrize("batching", Batching)
def test_a_batch_without_images_has_no_answers(classifier, images, batching):
    assert classifier(batching=batching)(images(0)).shape == (0, 4)


@pytest.mark.parametrize("batching", Batching)
def test_freezing_leaves_nothing_to_train(classifier, batching):
    frozen = classifier(batching=batching).freeze()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with pytest.raises(InvalidInput, match="frozen"):
        frozen.train()
    assert frozen.eval() is frozen
    assert not any(module.training for module in frozen.modules())


def test_an_unfrozen_classifier_switches_modes(classifier):
    defence = classifier()
    assert all(module.training for module in defence.train().modules())
    assert not any(module.training for module in defence.eval().modules())


def test_every_batching_of_a_frozen_classifier_is_frozen(classifier, images):
    frozen = classifier().freeze()
    for batching, reference in [(Batching.JOINT, None), (Batching.REFERENCE, images(3)), (Batching.SOLO, None)]:
        with pytest.raises(InvalidInput, match="frozen"):
            frozen.with_batching(batching, reference).train()


def test_another_batching_shares_the_weights_and_leaves_the_first_alone(classifier, images):
    solo = classifier()
    joint = solo.with_batching(Batching.JOINT)
    assert (solo.batching, joint.batching) == (Batching.SOLO, Batching.JOINT)
    pairs = list(zip(solo.state_dict().values(), joint.state_dict().values(), strict=True))
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    with torch.no_grad():
        solo.beta.zero_()
    torch.testing.assert_close(joint(images(5)), solo(images(5)))


@pytest.mark.parametrize(
    ("batching", "n_reference"), [(Batching.REFERENCE, None), (Batching.SOLO, 3), (Batching.JOINT, 3)]
)
def test_reference_images_belong_to_reference_alone(classifier, images, batching, n_reference):
    with pytest.raises(InvalidInput, match="reference images for REFERENCE"):
        classifier().with_batching(batching, None if n_reference is None else images(n_reference))


def test_reference_images_take_part_in_the_answer(classifier, images):
    solo = classifier()
    one, other = (solo.with_batching(Batching.REFERENCE, images(4, seed=seed)) for seed in (3, 4))
    assert (one(images(5)) - other(images(5))).abs().max() > 1e-3


def test_reference_images_are_state_without_a_graph(classifier, images):
    one, other = (classifier().with_batching(Batching.REFERENCE, images(4, seed=seed)) for seed in (3, 4))
    assert not any(part.requires_grad for part in one.reference)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(images(5)), one(images(5)))


def test_carried_prototypes_stand_in_for_absent_classes(classifier, images):
    """Alone, an image belongs to its FC class only: all others are compared with halfway to the carried prototype."""
    defence = classifier(HPMConfig(absent="carry"))
    defence.carried.fill_(2.0)
    features, fc = defence.embed(images(7))
    own = torch.nn.functional.one_hot(fc.argmax(dim=1), 4).unsqueeze(2)
    prototypes = (defence.prototypes + torch.where(own == 1, features.unsqueeze(1), 2.0)) / 2
    wanted = -(features.unsqueeze(1) - prototypes).square().sum(dim=2) / defence.tau
    torch.testing.assert_close(defence(images(7)), wanted)


def test_the_state_of_one_classifier_makes_another_answer_bit_for_bit_alike(classifier, net, images, tmp_path):
    source = classifier().float()
    with torch.no_grad():
        source.tau.fill_(3.0)
        source.beta.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        source.carried.fill_(0.5)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    copied = HPMClassifier(parts_of(net, seed=9), torch.zeros(4, 5), HPMConfig(), tau=7.0).eval()
    copied.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = images(9).float()
    for batching in (Batching.SOLO, Batching.JOINT):
        assert torch.equal(copied.with_batching(batching)(x), source.with_batching(batching)(x))
    assert {"prototypes", "carried", "tau", "beta", "fc.weight"} <= source.state_dict().keys()


@pytest.mark.parametrize("batching", Batching)
def test_answering_changes_nothing(classifier, images, batching):
    defence, x = classifier(HPMConfig(absent="carry"), batching), images(7).requires_grad_()
    before, rng = copy.deepcopy(defence.state_dict()), torch.get_rng_state()
    first = defence(x)
    torch.autograd.grad(first.sum(), x)
    assert torch.equal(defence(x), first)
    after = defence.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in defence.parameters())


def test_gradients_reach_what_a_recipe_may_learn(classifier, images):
    defence = classifier(batching=Batching.JOINT)
    defence(images(9))[:, 0].sum().backward()
    learned = {name for name, parameter in defence.named_parameters() if parameter.grad.abs().max() > 0}
    assert learned == {name for name, _ in defence.named_parameters()}


def test_a_split_is_all_that_a_classifier_needs(images):
    parts = Split(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    defence = HPMClassifier(parts, parts.fc.weight, HPMConfig(beta=0.0)).eval()
    x = images(2).float()
    torch.testing.assert_close(defence(x), -torch.cdist(x.flatten(1), parts.fc.weight).square(), rtol=1e-4, atol=1e-4)
