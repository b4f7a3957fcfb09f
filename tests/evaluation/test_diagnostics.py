"""Each indicator of attack failure fires on a planted fault, and none on a sound model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from small_trials import plan_of
from torch import Tensor, nn

from hpm_robustbench.attacks.losses import cross_entropy, margin
from hpm_robustbench.attacks.slope import misled_by, slope_of
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.evaluation.diagnostics import diagnose, measure
from hpm_robustbench.evaluation.probes import dead_gradients, misled, regrouped, reordered, repeated
from hpm_robustbench.evaluation.runner import run
from hpm_robustbench.evaluation.sample import ROWS, Sample, draw_sample
from hpm_robustbench.evaluation.stress import broken_by_gradients, broken_by_noise, multiples
from hpm_robustbench.ledger.indicators import indicators
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import MSA, Plan, Step
from hpm_robustbench.load import Wrapped
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Batching, ThreatModel

Answer = Callable[[nn.Module, Tensor], Tensor]
LINF = ThreatModel.parse("Linf", "0.1")


class Fault(nn.Module):
    """A network behind a planted fault: ``answer`` makes the logits from the network and the images."""

    def __init__(self, net: nn.Module, answer: Answer) -> None:
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.net, x)


class OnePixel(torch.autograd.Function):
    """The identity with a gradient that shows one pixel of each image, another one at every point."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        flat = gradient.flatten(1)
        shown = (x.double().flatten(1).sum(1) * 1e5).long() % flat.shape[1]
        return (flat * nn.functional.one_hot(shown, flat.shape[1])).view_as(gradient)


class Asleep:
    """A gradient that is not there until so many have been asked for."""

    def __init__(self, gradients: int) -> None:
        self.left = gradients

    def __call__(self, net: nn.Module, x: Tensor) -> Tensor:
        self.left -= x.requires_grad
        return net(x.detach() if self.left >= 0 else x)


def quantised(net: nn.Module, x: Tensor) -> Tensor:
    return net((16 * x).round() / 16)


def hard(net: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.one_hot(net(x).argmax(1), 10).float()


def not_a_number(net: nn.Module, x: Tensor) -> Tensor:
    return net(x) + (x - x.detach()).flatten(1).sum(1, keepdim=True).sqrt()


def noisy(net: nn.Module, x: Tensor) -> Tensor:
    return net(x) + 1e-2 * torch.sin(1e4 * x.flatten(1)[:, :10])


def of_the_neighbour(net: nn.Module, x: Tensor) -> Tensor:
    logits = net(x)
    return logits.detach() + (logits - logits.detach()).roll(1, dims=0)


def half_of_the_neighbour(net: nn.Module, x: Tensor) -> Tensor:
    logits = net(x)
    own = logits - logits.detach()
    return logits.detach() + (own + own.roll(1, dims=0)) / 2


def flattering(net: nn.Module, x: Tensor) -> Tensor:
    """A gradient three times as steep as the answer."""
    logits = net(x)
    return 3 * logits - 2 * logits.detach()


def random_head(net: nn.Module, x: Tensor) -> Tensor:
    return net(x) + 1e-3 * torch.randn(len(x), 10)


def by_position(net: nn.Module, x: Tensor) -> Tensor:
    signs = 1 - 2 * (torch.arange(len(x)) % 2)
    return net(x) * signs.view(-1, 1)


def by_size(net: nn.Module, x: Tensor) -> Tensor:
    return net(x) if len(x) > 8 else -net(x)


def nines(net: nn.Module, x: Tensor) -> Tensor:
    """Nine, whatever it is; the first four scans show something else."""
    return 0 * net(x) + torch.arange(10)


@pytest.fixture
def sample_of(wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet]) -> Callable[..., Sample]:
    """The first 64 digits that a model has right, seen through it."""

    def make(answer: Answer | None = None, *, threat: ThreatModel = LINF, n: int = 64) -> Sample:
        base = wrapped.base if answer is None else Fault(wrapped.base, answer).eval()
        subject = Subject(wrapped.classifier, base, "base")
        x, y = digits[0].images[:100], digits[0].labels[:100]
        rows = (wrapped.base(x).argmax(1) == y).nonzero().squeeze(1)[:n]
        counted = torch.ones(len(rows), dtype=torch.bool)
        return Sample(make_view("base", subject), x[rows], y[rows], counted, threat, seed=0, batch_size=250)

    return make


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks of a few steps, where their strength does not matter."""
    monkeypatch.setattr("hpm_robustbench.evaluation.diagnostics._ITERATIONS", (2, 4))
    monkeypatch.setattr("hpm_robustbench.evaluation.diagnostics._BUDGET_STEPS", 2)


def fired(sample: Sample, *, coupled: bool = False) -> set[str]:
    return {i.name for i in indicators(measure(sample), coupled=coupled, autoattack=False) if i.flag}


# A sound model


@pytest.mark.parametrize("threat", [LINF, ThreatModel.parse("L2", "0.5")], ids=str)
def test_nothing_fires_on_a_sound_model(sample_of, threat: ThreatModel) -> None:
    found = measure(sample_of(threat=threat))
    assert [i.flag for i in indicators(found, coupled=False, autoattack=True) if i.flag] == []
    assert found.budgets[-1].standing == 0
    assert 0 < found.iterations[-1].standing < found.n == 64


def test_nothing_fires_on_hpm_alone(wrapped: Wrapped, sample_of) -> None:
    plain = sample_of()
    sample = replace(plain, view=make_view("hpm", Subject(wrapped.classifier, wrapped.base)))
    right = sample.view.target_logits(sample.x).argmax(1) == sample.y
    assert fired(replace(sample, counted=right)) == set()


def test_other_batches_of_a_coupled_target_are_other_questions_but_order_is_not(wrapped: Wrapped, sample_of) -> None:
    subject = Subject(wrapped.classifier.with_batching(Batching.JOINT), wrapped.base)
    sample = replace(sample_of(), view=make_view("hpm", subject))
    assert regrouped(sample).any()
    assert not reordered(sample).any()
    assert not repeated(sample).any()


# Planted faults


@pytest.mark.parametrize("answer", [quantised, hard, not_a_number], ids=lambda f: f.__name__)
@pytest.mark.parametrize("loss", [margin, cross_entropy], ids=lambda f: f.__name__)
def test_a_gradient_that_is_not_there_is_found(sample_of, answer, loss) -> None:
    assert dead_gradients(sample_of(answer), loss).all()
    assert not dead_gradients(sample_of(), loss).any()


@pytest.mark.parametrize("answer", [noisy, of_the_neighbour, flattering], ids=lambda f: f.__name__)
def test_a_gradient_that_misleads_is_found(sample_of, brief, answer) -> None:
    assert misled(sample_of(answer)).float().mean() > 0.3
    assert not dead_gradients(sample_of(answer), margin).any()
    assert "Slope of the margin" in fired(sample_of(answer))


@pytest.mark.parametrize("answer", [None, quantised, lambda net, x: 1e4 * net(x)], ids=["sound", "none", "large"])
@pytest.mark.parametrize("threat", [LINF, ThreatModel.parse("L2", "0.5"), ThreatModel.parse("Linf", "1/255")], ids=str)
def test_a_gradient_that_keeps_its_promise_or_makes_none_does_not_mislead(sample_of, answer, threat) -> None:
    assert not misled(sample_of(answer, threat=threat)).any()


def test_a_gradient_that_keeps_another_s_promise_is_found(sample_of) -> None:
    """Half of each image's own gradient, and half of its neighbour's, gain enough; alone it is another."""
    sample = sample_of(half_of_the_neighbour)
    slope, every = slope_of(sample.view, sample.x, sample.y, margin), torch.ones_like(sample.y, dtype=torch.bool)
    by_promise = misled_by(slope, sample.view, sample.x, sample.y, every, sample.threat)
    assert by_promise.float().mean() < 0.6
    assert misled(sample).float().mean() > 0.9


def test_slopes_are_not_asked_of_rows_that_share_a_gradient(wrapped: Wrapped, sample_of, brief) -> None:
    joint = make_view("hpm", Subject(wrapped.classifier.with_batching(Batching.JOINT), wrapped.base))
    assert measure(replace(sample_of(), view=joint)).misled is None
    assert measure(sample_of()).misled == 0


def test_blind_gradients_are_found_out_and_noise_beats_them(sample_of, brief) -> None:
    names = fired(sample_of(quantised, threat=ThreatModel.parse("Linf", "0.3")))
    assert {"Gradient of the margin", "Gradient of cross-entropy", "Random noise of size eps"} <= names


def test_an_answer_that_changes_is_found(sample_of, brief) -> None:
    assert repeated(sample_of(random_head)).all()
    assert "Same batch again" in fired(sample_of(random_head))


def test_an_answer_that_depends_on_the_place_in_the_batch_is_found(sample_of, brief) -> None:
    sample = sample_of(by_position)
    assert not repeated(sample).any()
    assert 0.2 < reordered(sample).float().mean() < 0.8
    assert "Same batch in another order" in fired(sample)


def test_an_answer_that_depends_on_the_size_of_the_batch_is_found(sample_of, brief) -> None:
    sample = sample_of(by_size)
    assert regrouped(sample).all()
    assert not reordered(sample).any()
    assert "Batches of other sizes" in fired(sample)


def test_probabilities_are_found(sample_of, brief) -> None:
    assert "Probabilities instead of logits" in fired(sample_of(lambda net, x: net(x).softmax(1)))


def test_logits_at_a_scale_where_cross_entropy_vanishes_are_found(sample_of, brief) -> None:
    names = fired(sample_of(lambda net, x: 1e4 * net(x)))
    assert {"Scale of the logits", "Gradient of cross-entropy"} <= names
    assert "Gradient of the margin" not in names


def test_an_attack_that_a_larger_budget_does_not_help_is_found(sample_of) -> None:
    sample = sample_of(lambda net, x: net(OnePixel.apply(x)), threat=ThreatModel.parse("Linf", "0.15"))
    assert {"Budget up to the whole box", "Random noise of size eps"} <= fired(sample)


def test_an_attack_that_needs_more_steps_is_found(sample_of) -> None:
    shorter = 26 + 51 + 101  # each asks for one gradient more than it takes steps
    found = measure(sample_of(Asleep(shorter + 110)))
    names = {i.name for i in indicators(found, coupled=False, autoattack=False) if i.flag}
    assert "Iterations of the gradient attack" in names
    assert found.iterations[0].standing == found.iterations[2].standing > found.iterations[3].standing


# The instruments themselves


def test_batches_are_attacked_for_themselves(sample_of) -> None:
    sample = sample_of(n=20)
    together, apart = sample, replace(sample, batch_size=1)
    assert broken_by_gradients(together, 10).shape == broken_by_gradients(apart, 10).shape == (20,)
    assert broken_by_noise(replace(apart, threat=ThreatModel.parse("Linf", "1"))).float().mean() > 0.5


def test_what_is_not_counted_is_attacked_but_not_counted(sample_of, brief) -> None:
    sample = sample_of(n=20)
    half = replace(sample, counted=torch.arange(20) < 10)
    whole, found = measure(sample), measure(half)
    assert (whole.n, found.n) == (20, 10)
    assert found.budgets[0].standing <= 10


@pytest.mark.parametrize(
    ("threat", "expected"),
    [
        (ThreatModel.parse("Linf", "0.3"), [0.25, 0.5, 1, 2, 10 / 3]),
        (ThreatModel.parse("Linf", "1/4"), [0.25, 0.5, 1, 2, 4]),
        (ThreatModel.parse("Linf", "1"), [0.25, 0.5, 1]),
        (ThreatModel.parse("L2", "2"), [0.25, 0.5, 1, 2, 4]),
    ],
    ids=str,
)
def test_the_budget_grows_until_it_holds_every_image(threat: ThreatModel, expected: list[float]) -> None:
    found = multiples(threat, pixels=64)
    assert [float(multiple) for multiple in found] == pytest.approx(expected)
    assert found[-1] * threat.eps.value == (1 if threat.name == "Linf" else Fraction(8))


def test_every_pass_is_counted(sample_of) -> None:
    found = measure(sample_of(n=8))
    assert found.backward > 8 * (25 + 50 + 100 + 200)
    assert found.forward > found.backward


# In a run


@pytest.fixture
def case(wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet]) -> Callable[..., tuple[Plan, Subject, ExampleSet]]:
    def make(batching: Batching, n: int = 40, answer: Answer | None = None) -> tuple[Plan, Subject, ExampleSet]:
        examples = digits[0].head(n)
        target = "base" if answer else "hpm"
        base = Fault(wrapped.base, answer).eval() if answer else wrapped.base
        subject = Subject(wrapped.classifier.with_batching(batching), base, target)
        attack = "joint" if batching is Batching.JOINT else "apgd-ce"
        parameters = {"steps": 3} if batching is Batching.JOINT else {"n_iter": 3}
        steps = (Step(target, attack, MSA, parameters),)
        return plan_of(subject, examples, steps, threat=LINF), subject, examples

    return make


@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.JOINT])
def test_a_finished_run_is_diagnosed_once(brief, case, tmp_path: Path, batching: Batching) -> None:
    plan, subject, examples = case(batching)
    journal = Journal(tmp_path, plan)
    diagnose(plan, subject, examples, tmp_path)
    assert not journal.folder.exists()  # nothing is known of a run that has not begun
    run(plan, subject, examples, tmp_path, {})
    diagnose(plan, subject, examples, tmp_path)
    path = journal.folder / "diagnostics.json"
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    record = journal.record()
    assert record is not None and record.diagnostics is not None
    right = record.clean_correct
    first = right if batching is Batching.SOLO else [right[row] for row in plan.shards()[0][:16]]
    assert record.diagnostics.n == min(sum(first), ROWS)
    diagnose(plan, subject, examples, tmp_path)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(content[:-30])
    diagnose(plan, subject, examples, tmp_path)
    assert path.read_bytes() == content


def test_a_coupled_target_is_asked_its_first_whole_batch(case, tmp_path: Path) -> None:
    plan, subject, examples = case(Batching.JOINT)
    run(plan, subject, examples, tmp_path, {})
    record = Journal(tmp_path, plan).record()
    assert record is not None
    sample = draw_sample(record, subject, examples, lambda: None)
    assert sample is not None
    assert torch.equal(sample.x, examples.take(plan.shards()[0]).images)
    assert torch.equal(sample.counted, subject.target_logits(sample.x).argmax(1) == sample.y)


def test_where_nothing_is_right_nothing_is_measured(brief, case, tmp_path: Path) -> None:
    plan, subject, examples = case(Batching.SOLO, n=4, answer=nines)
    run(plan, subject, examples, tmp_path, {})
    diagnose(plan, subject, examples, tmp_path)
    record = Journal(tmp_path, plan).record()
    assert record is not None and sum(record.clean_correct) == 0 and record.diagnostics is None


def test_the_file_holds_counts_and_their_checksum(brief, case, tmp_path: Path) -> None:
    plan, subject, examples = case(Batching.SOLO, n=8)
    run(plan, subject, examples, tmp_path, {})
    diagnose(plan, subject, examples, tmp_path)
    content = json.loads((tmp_path / plan.run_key / "diagnostics.json").read_text())
    assert set(content) == {"payload", "sha256"}
    assert content["payload"]["n"] <= 8
