"""One contract for every view, under every batching."""

from __future__ import annotations

import pytest
import torch

from hpm_robustbench.errors import InvalidInput, UnknownName
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.surrogates.views import VIEWS, Subject, View, make_view
from hpm_robustbench.threat import Batching

N = 8


@pytest.fixture
def subject(classifier, net, images):
    """A defence, frozen as in a trial, and another net as the base model from before a fine-tuning."""

    def make(config=None, batching=Batching.SOLO, target="hpm"):
        equipped = classifier(config, Batching.REFERENCE)  # every view finds what it needs, whatever the batching
        reference = images(6, seed=3) if batching is Batching.REFERENCE else None
        deployed = equipped.with_batching(batching, reference).freeze()
        return Subject(deployed, net(seed=8).double().requires_grad_(False), target)

    return make


def same(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-10)


every_view = pytest.mark.parametrize("name", VIEWS)
every_batching = pytest.mark.parametrize("batching", Batching)


@every_view
@every_batching
def test_declared_row_independence_is_the_truth(subject, images, name, batching):
    view, x = make_view(name, subject(batching=batching), images(N)), images(N)
    whole = view(x)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert same(view(x[order]), whole[order])
    halves = same(torch.cat([view(x[:4]), view(x[4:])]), whole)
    alone = same(torch.cat([view(row.unsqueeze(0)) for row in x]), whole)
    assert (halves, alone) == (view.row_independent, view.row_independent)


@every_view
@every_batching
def test_no_gradient_crosses_between_independent_rows(subject, images, name, batching):
    view, x = make_view(name, subject(batching=batching), images(N)), images(N).requires_grad_()
    (gradient,) = torch.autograd.grad(view(x)[0, 0], x)
    assert (gradient[1:].abs().max() == 0) == view.row_independent


@every_view
@every_batching
def test_writing_into_the_answer_harms_nobody(subject, images, name, batching):
    view, x = make_view(name, subject(batching=batching), images(N)), images(N)
    first = view(x)
    wanted = first.clone()
    first.fill_(-torch.inf)
    assert torch.equal(view(x), wanted)


def test_a_view_hands_out_copies_even_of_what_its_model_keeps(subject, images):
    kept = torch.zeros((N, 4))
    view = View("constant", subject(), lambda x: kept, row_independent=True)
    view(images(N)).fill_(-torch.inf)
    assert torch.equal(kept, torch.zeros((N, 4)))


@every_view
@every_batching
@pytest.mark.parametrize("distance", ["squared", "l2", "scaled-l2"])
def test_the_gradient_towards_the_image_is_finite_and_not_zero(subject, images, name, batching, distance):
    config = HPMConfig(beta=0.9, distance=distance)
    view, x = make_view(name, subject(config, batching), images(N)), images(N).requires_grad_()
    (gradient,) = torch.autograd.grad(view(x).logsumexp(dim=1).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()


@every_view
@every_batching
def test_images_are_counted_forward_and_backward(subject, images, name, batching):
    view, x = make_view(name, subject(batching=batching), images(N)), images(N).requires_grad_()
    with torch.no_grad():
        view(x)
    assert (view.cost.forward, view.cost.backward) == (N, 0)
    logits = view(x[:3])
    assert (view.cost.forward, view.cost.backward) == (N + 3, 0)
    logits[0].sum().backward(retain_graph=True)
    assert (view.cost.forward, view.cost.backward) == (N + 3, 3)
    logits.sum().backward()
    assert (view.cost.forward, view.cost.backward) == (N + 3, 6)
    view.target_logits(x[:2])
    assert (view.cost.forward, view.cost.backward) == (N + 5, 6)
    view.region(x[:4]).distances.sum().backward()
    assert (view.cost.forward, view.cost.backward) == (N + 9, 10)


@every_view
def test_a_caller_may_interrupt_at_every_call(subject, images, name):
    view, calls = make_view(name, subject(), images(N)), []
    view.on_call = lambda: calls.append(view.cost.forward)
    view(images(N))
    view.region(images(N))
    assert calls == [0, N]


@every_view
@every_batching
@pytest.mark.parametrize("target", ["hpm", "base"])
def test_target_logits_are_those_of_the_deployed_model(subject, images, name, batching, target):
    trial, x = subject(batching=batching, target=target), images(N).requires_grad_()
    got = make_view(name, trial, images(N)).target_logits(x)
    deployed = trial.classifier if target == "hpm" else trial.base
    assert torch.equal(got, deployed(x))
    assert not got.requires_grad


def test_each_view_is_what_its_name_says(subject, images):
    trial, x = subject(), images(N)
    classifier = trial.classifier
    features, fc = classifier.embed(x)
    assert torch.equal(make_view("hpm", trial)(x), classifier(x))
    assert torch.equal(make_view("fc", trial)(x), fc)
    assert torch.equal(make_view("base", trial)(x), trial.base(x))
    static = -(features.unsqueeze(1) - classifier.prototypes).square().sum(dim=2) / classifier.tau
    torch.testing.assert_close(make_view("l2", trial)(x), static)
    # a lone soft member of weight q_c is mixed in by beta q_c
    left = 1 - 0.5 * fc.softmax(dim=1)
    torch.testing.assert_close(make_view("soft", trial)(x), left.square() * static)


@every_batching
def test_surrogates_of_a_batch_are_what_their_names_say(subject, images, batching):
    trial, x, moved = subject(batching=batching), images(N), images(N, seed=5)
    classifier, frozen = trial.classifier, make_view("frozen", trial, x)
    if batching is Batching.JOINT:
        torch.testing.assert_close(frozen(x), classifier(x))
    prototypes = frozen.shared_prototypes(x)
    wanted = -(classifier.embed(moved).features.unsqueeze(1) - prototypes).square().sum(dim=2) / classifier.tau
    torch.testing.assert_close(frozen(moved), wanted)
    against = frozen.logits_against(moved, [prototypes, classifier.prototypes])
    torch.testing.assert_close(against, [wanted, make_view("l2", trial)(moved)])
    for temperature in ("0.5", "0.1"):
        config = HPMConfig(assignment="soft", temperature=float(temperature))
        wanted = -classifier.distances(classifier.embed(x), config) / classifier.tau
        torch.testing.assert_close(make_view(f"soft-{temperature}", trial)(x), wanted)
    config = HPMConfig(assignment="soft", beta=1.0)
    torch.testing.assert_close(
        make_view("batch", trial)(x), -classifier.distances(classifier.embed(x), config) / classifier.tau
    )


def test_no_head_drowns_another_in_the_mixed_view(subject, images):
    trial, x = subject(), images(N)
    classifier = trial.classifier
    before = make_view("mixed", trial)(x)
    parts = [make_view(name, trial)(x) for name in ("fc", "l2", "soft")]
    wanted = sum((part - part.mean(1, keepdim=True)) / part.std(1, keepdim=True) for part in parts) / 3
    torch.testing.assert_close(before, wanted)
    classifier.tau.mul_(100)
    torch.testing.assert_close(make_view("mixed", trial)(x), before)


@pytest.mark.parametrize("distance", ["squared", "l2"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_beside_drawn_mates_each_image_is_answered_as_in_a_batch_of_them(classifier, net, images, distance, assignment):
    """Where all there are to draw from are alike, every draw is the same batch, and its answer is known."""
    config, mate, x = HPMConfig(distance=distance, assignment=assignment), images(1, seed=3), images(N)
    joint = classifier(config).with_batching(Batching.REFERENCE, mate).with_batching(Batching.JOINT).freeze()
    batches = [torch.cat([row.unsqueeze(0), *[mate] * (N - 1)]) for row in x]
    wanted = torch.stack([joint(batch)[0] for batch in batches])
    torch.testing.assert_close(make_view("drawn", Subject(joint, net(seed=8)), x)(x), wanted)


def test_drawn_is_the_mean_over_draws_that_stay_what_they_are(subject, images):
    """Of six images to draw five from; nothing of the batch but its size is used."""
    trial, x = subject(batching=Batching.JOINT), images(N)
    view = make_view("drawn", trial, images(6, seed=11))
    assert torch.equal(view(x), make_view("drawn", trial, images(6, seed=12))(x))
    generator, answers = torch.Generator().manual_seed(0), []
    for _ in range(8):
        mates = trial.classifier.draw_mates(5, generator)
        answers.append(-trial.classifier.distances(trial.classifier.embed(x), mates=mates) / trial.classifier.tau)
    torch.testing.assert_close(view(x), sum(answers) / 8)
    assert not torch.equal(answers[0], answers[1])


def test_a_batch_of_one_has_no_mates_to_draw(subject, images):
    trial, x = subject(batching=Batching.JOINT), images(N)
    alone = torch.cat([trial.classifier(row.unsqueeze(0)) for row in x])
    torch.testing.assert_close(make_view("drawn", trial, x[:1])(x), alone)


@pytest.mark.parametrize("name", ["frozen", "drawn"])
def test_what_looks_at_the_clean_batch_needs_it(subject, name):
    with pytest.raises(InvalidInput, match=f"clean batch for the view {name}"):
        make_view(name, subject())


def test_mates_are_drawn_from_images_that_there_are(classifier, net, images):
    with pytest.raises(InvalidInput, match="reference images"):
        make_view("drawn", Subject(classifier(), net(seed=8)), images(N))


def test_an_unknown_view_is_named_with_its_neighbours(subject):
    with pytest.raises(UnknownName, match="did you mean soft"):
        make_view("softt", subject())


def test_the_region_is_differentiable(subject, images):
    x = images(N).requires_grad_()
    region = make_view("hpm", subject()).region(x)
    for part in region:
        (gradient,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("distance", ["squared", "l2"])
@pytest.mark.parametrize("include_self", [True, False])
def test_beside_its_mates_an_image_is_answered_as_in_their_batch(subject, images, distance, include_self):
    view = make_view("hpm", subject(HPMConfig(distance=distance, include_self=include_self), Batching.JOINT))
    x, others = images(N), images(5, seed=4)
    lone = view.beside(x[1:])
    assert (lone.row_independent, lone.is_target) == (True, True)
    for image in (x[:1], *others.split(1)):
        batch = torch.cat([image, x[1:]])
        assert same(lone(image), view(batch)[:1])
        assert same(lone.target_logits(image), view.target_logits(batch)[:1])
    assert same(lone(others), torch.cat([lone(image) for image in others.split(1)]))


def test_what_is_asked_beside_mates_counts(subject, images):
    view, x = make_view("hpm", subject(batching=Batching.JOINT)), images(N)
    lone = view.beside(x[1:])
    lone.region(images(3).requires_grad_()).distances.sum().backward()
    assert (view.cost.forward, view.cost.backward) == (N - 1 + 3, 3)


def test_beside_nobody_an_image_is_alone(subject, images):
    joint, x = make_view("hpm", subject(batching=Batching.JOINT)), images(N)
    assert same(joint.beside(x[:0])(x), make_view("hpm", subject(batching=Batching.SOLO))(x))


@pytest.mark.parametrize("name", ["base", "fc"])
@pytest.mark.parametrize("target", ["base", "hpm"])
def test_the_region_of_a_head_is_where_its_highest_logit_is(subject, images, name, target):
    view, x = make_view(name, subject(target=target)), images(N)
    assert view.region_is_exact == (name == target)
    region = view.region(x)
    assert torch.equal(region.chosen, region.distances)
    assert torch.equal(region.distances.argmin(1), view(x).argmax(1))
    assert torch.equal(region.fc.argmax(1), view(x).argmax(1))
