"""The error region is exact, and the search finds what exhaustive search finds."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpm_robustbench.attacks.conjunction import CONDITIONS
from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import class_means
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.surrogates.region import Region
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import ThreatModel

SEARCH = Step("hpm", "conjunction", "msa", {"steps": 25})


def fulfilled(region, y, condition):
    """Rows for which some target fulfils the condition: [N]."""
    found = torch.zeros_like(y, dtype=torch.bool)
    for target in range(region.fc.shape[1]):
        terms = condition(region, y, torch.full_like(y, target))
        found |= (terms.amin(1) > 0) & (y != target)
    return found


def decided(logits, y):
    """Rows that rounding cannot tip over: the definition goes by way of mixed prototypes and rounds differently."""
    gaps = (logits - logits.gather(1, y[:, None])).abs().scatter(1, y[:, None], 1.0)
    return gaps.amin(1) > 1e-12


@given(n_classes=st.integers(2, 6), n_pixels=st.integers(1, 6), beta=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_the_conditions_together_are_the_error_region(worlds, n_classes, n_pixels, beta, seed):
    world = worlds.IdentityHPM.random(n_classes, n_pixels, seed).double()
    world.beta = torch.where(torch.arange(n_classes) % 2 == 0, beta, world.beta)
    x = torch.rand(200, 1, 1, n_pixels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.arange(200) % n_classes
    region = torch.stack([fulfilled(world.region(x), y, condition) for condition in CONDITIONS]).any(0)
    sure = decided(world(x), y)
    assert sure.any()
    assert torch.equal(region[sure], (world.predict(x) != y)[sure])


def test_no_condition_is_idle(worlds):
    world = worlds.IdentityHPM.random(5, 4, seed=0).double()
    x = torch.rand(2000, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(2000) % 5
    each = torch.stack([fulfilled(world.region(x), y, condition) for condition in CONDITIONS])
    only = each & (each.sum(0) == 1)
    assert only[0].any(), "FC chooses c, and only its discount makes it win"
    assert only[1].any(), "FC chooses a third class"
    assert only[2].any(), "FC stays with y"


@pytest.mark.parametrize("distance", ["squared", "l2", "scaled-l2"])
def test_the_views_region_is_that_of_the_real_classifier(distance):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(6, 4).double()
    prototypes = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    config = HPMConfig(beta=0.4, distance=distance)
    classifier = HPMClassifier(Split(torch.nn.Flatten(), head), prototypes, config).double().freeze()
    view = make_view("hpm", Subject(classifier, classifier))
    x = torch.rand(500, 1, 2, 3, generator=generator, dtype=torch.float64)
    y = torch.arange(500) % 4
    region = torch.stack([fulfilled(view.region(x), y, condition) for condition in CONDITIONS]).any(0)
    logits = view.target_logits(x)
    sure = decided(logits, y)
    assert torch.equal(region[sure], (logits.argmax(1) != y)[sure])


@pytest.mark.parametrize("exact", [False, True])
def test_an_error_outside_an_inexact_region_is_not_passed_by(worlds, exact):
    """The region of another defence, without a discount: the target is asked everywhere, unless the view denies it."""
    world = worlds.IdentityHPM.random(4, 6, seed=0)
    undiscounted, met = worlds.IdentityHPM.random(4, 6, seed=0), []
    undiscounted.beta = torch.zeros(4)
    world.region_is_exact = exact
    world.region = lambda x: (met.append(x.detach()), undiscounted.region(x))[1]
    threat, found = ThreatModel.parse("Linf", "0.06"), []
    for image in torch.rand(60, 1, 1, 2, 3, generator=torch.Generator().manual_seed(0)):
        y, every = world.predict(image), torch.ones(1, dtype=torch.bool)
        met.clear()
        x_adv = next(run_attack(SEARCH, world, image, y, every, threat, 0, 1))
        found.append((bool((world.predict(torch.cat(met)) != y).any()), bool(world.predict(x_adv) != y)))
    assert {(False, False), (True, True)} <= {*found}, "some stand, some fall"
    assert ((True, False) in found) == exact


@settings(max_examples=15)
@given(
    norm=st.sampled_from([("Linf", "0.15"), ("L2", "0.2")]),
    n_classes=st.sampled_from([2, 3, 6]),
    seed=st.integers(0, 2**32),
)
def test_finds_what_exhaustive_search_finds(worlds, norm, n_classes, seed):
    threat = ThreatModel.parse(*norm)
    world = worlds.IdentityHPM.random(n_classes, 2, seed)
    x = torch.rand(8, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
    y = world.predict(x)
    share = world.breakable(x, y, threat)
    x_adv = next(run_attack(SEARCH, world, x, y, torch.ones_like(y, dtype=torch.bool), threat, 0, 8))
    broken = world.predict(x_adv) != y
    assert broken[share > 0.005].all()


def test_prototypes_that_are_all_equal_leave_the_fc_decision(threat, worlds):
    """Then every distance is the same, the discount alone decides, and HPM is its FC head."""
    world = worlds.IdentityHPM.random(4, 9, seed=0)
    world.prototypes.zero_()
    world.beta.fill_(0.5)
    head = worlds.Wrapped(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4))).requires_grad_(False)
    head.net[1].load_state_dict({"weight": world.weight, "bias": world.bias})
    x = torch.rand(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    y, active = world.predict(x), torch.ones(20, dtype=torch.bool)
    assert torch.equal(y, head.predict(x))
    found = world.predict(next(run_attack(SEARCH, world, x, y, active, threat, 0, 20))) != y
    reference = head.predict(next(run_attack(Step("fc", "apgd-t", "test"), head, x, y, active, threat, 0, 20))) != y
    assert reference.any()
    assert found[reference].all()


class Hills(torch.nn.Module):
    """One pixel; class 1 is nearer than class 0 where a narrow hill rises above zero, and a broad one misleads."""

    name, row_independent, is_target, region_is_exact = "hpm", True, True, True

    def __init__(self, top):
        super().__init__()
        self.top, self.most, self.passes, self.asked = top, 0, 0, 0

    def region(self, x):
        self.most, self.passes = max(self.most, len(x)), self.passes + len(x)
        pixel = x.flatten(1)[:, 0]
        height = self.top - (0.2 + (pixel - 0.3).abs()).minimum(5 * (pixel - 0.9).abs())
        distances = torch.stack([torch.zeros_like(height), -height, torch.full_like(height, 20.0)], 1)
        return Region(-distances, distances, distances)

    def target_logits(self, x):
        self.asked += 1
        with torch.no_grad():
            return self.region(x).fc

    def stormed(self, restarts):
        """How many of 40 rows fall, and in how many passes; 50 images at once."""
        x, y = torch.full((40, 1, 1, 1), 0.5), torch.zeros(40, dtype=torch.long)
        step, self.passes = Step("hpm", "conjunction", "msa", {"steps": 10, "targets": 1, "restarts": restarts}), 0
        x_adv = next(run_attack(step, self, x, y, y == 0, ThreatModel.parse("Linf", "0.45"), 0, 50))
        passes = self.passes
        return int((self.target_logits(x_adv).argmax(1) == 1).sum()), passes


def test_what_ended_near_is_climbed_again_from_other_starts():
    hills = Hills(top=0.1)
    (once, passes), (again, more) = hills.stormed(0), hills.stormed(40)
    assert 0 < once < 20
    assert again > 35
    assert passes < more < 20 * passes, "what has fallen is not climbed again"
    assert hills.most == 50


def test_copies_are_asked_about_together():
    """Forty starts of one row: one question to the target per iterate, be it of one point or of forty."""
    hills, x, y = Hills(top=-0.1), torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.long)
    for restarts, climbs in ((0, 1), (40, 2)):
        step = Step("hpm", "conjunction", "msa", {"steps": 10, "targets": 1, "restarts": restarts})
        hills.asked = 0
        next(run_attack(step, hills, x, y, y == 0, ThreatModel.parse("Linf", "0.45"), 0, 50))
        assert hills.asked == climbs * 11


def test_a_row_without_a_number_now_and_then_is_climbed_again():
    """A minimum that was no number at one iterate does not hide that the climb ended near."""
    hills, odd = Hills(top=-0.1), []
    answer = hills.region

    def region(x):
        found = answer(x)
        odd.append(len(odd) == 3)
        return found._replace(distances=found.distances * torch.nan) if odd[-1] else found

    hills.region = region
    assert hills.stormed(40) == (0, 40 + 41 * 2 * 40 * 11 - 40), "all but the question about what was no number"
    assert sum(odd) == 1


@pytest.mark.parametrize(("top", "climbs"), [(-0.1, 41), (-3.0, 1)])
def test_what_ended_far_is_left_alone(top, climbs):
    hills, clean, points = Hills(top), 40, 40 * 11
    (once, passes), (again, more) = hills.stormed(0), hills.stormed(40)
    assert once == again == 0
    of_each = (passes - clean) // points
    assert of_each == (2 if climbs > 1 else 1), "the target is asked near the border alone"
    assert more == clean + climbs * of_each * points


class Doubled(torch.nn.Module):
    """A head that computes in double precision."""

    def __init__(self, head):
        super().__init__()
        self.head = deepcopy(head).double()

    def forward(self, x):
        return self.head(x.double())


def attacked_head(world, base, threat, parameters, n=60):
    """Images of one row, their labels, and what the search makes of them for a base model."""
    wrapped = HPMClassifier(Split(torch.nn.Flatten(), world.head), 0.5 * world.head.weight, HPMConfig())
    x = torch.rand(n, 1, 1, world.head.in_features, generator=torch.Generator().manual_seed(3))
    y, every = world.predict(x), torch.ones(n, dtype=torch.bool)
    view = make_view("base", Subject(wrapped, base, "base"))
    return x, y, next(run_attack(Step("base", "conjunction", "msa", parameters), view, x, y, every, threat, 0, n))


@pytest.mark.parametrize("n_classes", [2, 5])
def test_a_plain_head_meets_the_same_search(n_classes, worlds):
    """A base model's view: what can be reached in a linear head has a closed form, and one condition finds it."""
    world, threat = worlds.LinearWorld.random(n_classes, 12, seed=3), ThreatModel.parse("Linf", "0.1")
    x, y, x_adv = attacked_head(world, world, threat, {"steps": 30})
    broken, reachable = world.predict(x_adv) != y, world.reachable_margin(x, y, threat)
    clear = reachable.abs() > 1e-3
    assert 0 < broken.sum() < 60
    assert torch.equal(broken[clear], (reachable > 0)[clear])


def test_a_head_in_double_precision_is_searched_as_well(worlds):
    world, threat = worlds.LinearWorld.random(5, 12, seed=3), ThreatModel.parse("Linf", "0.1")
    base = torch.nn.Sequential(torch.nn.Flatten(), Doubled(world.head))
    _, y, x_adv = attacked_head(world, base, threat, {"steps": 30, "restarts": 2})
    assert x_adv.dtype is torch.float32
    assert 0 < (base(x_adv).argmax(1) != y).sum() < 60


def test_where_no_choice_discounts_one_condition_is_all(worlds):
    """C2, static distances: a third of the passes."""
    generator = torch.Generator().manual_seed(0)
    head, prototypes = worlds.LinearWorld.random(4, 6, seed=0).head, torch.randn(4, 6, generator=generator)
    x, threat = torch.rand(30, 1, 2, 3, generator=generator), ThreatModel.parse("Linf", "0.00001")

    def passes(beta):
        classifier = HPMClassifier(Split(torch.nn.Flatten(), head), prototypes, HPMConfig(beta=beta)).freeze()
        view = make_view("hpm", Subject(classifier, classifier))
        y = view.target_logits(x).argmax(1)
        next(run_attack(SEARCH, view, x, y, torch.ones_like(y, dtype=torch.bool), threat, 0, 30))
        return view.cost.backward

    assert passes(0.0) == 30 * 26 * 3
    assert passes(0.5) == 30 * 26 * 3 * len(CONDITIONS)


def test_sees_through_a_real_classifier(digits, digits_net):
    """A gradient through one side of the FC decision leaves rows standing that the conjunction breaks."""
    backbone, head = digits_net.net[:-1], digits_net.net[-1]
    with torch.no_grad():
        prototypes = class_means(backbone(digits[0][:1500]), digits[1][:1500], 10)
    classifier = HPMClassifier(Split(backbone, head), prototypes, HPMConfig(), tau=1.0).freeze()
    subject = Subject(classifier, digits_net)
    x, y = digits[0][1500:1540], digits[1][1500:1540]
    correct = subject.target_logits(x).argmax(1) == y
    threat = ThreatModel.parse("L2", "0.8")

    def standing(step):
        x_adv = next(run_attack(step, make_view(step.view, subject), x, y, correct, threat, 0, 100))
        return correct & (subject.target_logits(x_adv).argmax(1) == y)

    untargeted, targeted = standing(Step("hpm", "apgd-ce", "test")), standing(Step("hpm", "apgd-t", "test"))
    conjunction = standing(SEARCH)
    assert 0 < conjunction.sum() < untargeted.sum() - 5
    assert (conjunction & ~(untargeted & targeted)).sum() <= 1
