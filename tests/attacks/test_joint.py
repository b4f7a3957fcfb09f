"""Whole batches move together, and what is kept was submitted together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.attacks.whole_batches import Cover, Remembering
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel

THREAT = ThreatModel.parse("Linf", "0.1")


def answers_of(view, x, y, active=None, batch_size=100, seed=0, **parameters):
    active = torch.ones_like(y, dtype=torch.bool) if active is None else active
    return [*run_attack(Step("world", "joint", "msa", parameters), view, x, y, active, THREAT, seed, batch_size)]


def joint(*arguments, **parameters):
    return answers_of(*arguments, **parameters)[0]


def coupled(worlds, own, shared):
    """Twenty images of label 0, half of which the best whole batch can have wrong."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(20, 1, 4, 4, generator=generator)
    sums = x.flatten(1).sum(1)
    scores = (own * sums + shared * sums.mean()).sort().values
    gain = 16 * 0.1 * (own + shared)
    offset = -float(scores[9] + scores[10]) / 2 - gain
    world = worlds.CoupledWorld(torch.full((16,), own), torch.full((16,), shared), offset)
    return world, x, torch.zeros(20, dtype=torch.long)


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin", "targeted"])
@pytest.mark.parametrize(("own", "shared"), [(1.0, 1.0), (0.2, 2.0), (1.0, 0.0)])
def test_reaches_the_best_whole_batch(loss, own, shared, worlds):
    world, x, y = coupled(worlds, own, shared)
    assert (world.predict(x) == 0).all()
    found = int((world.predict(joint(world, x, y, loss=loss, steps=50)) == 1).sum())
    assert found == world.most_wrong(x, THREAT) == 10


def test_a_restart_begins_elsewhere_for_what_still_stands(worlds, monkeypatch):
    world, x, y = coupled(worlds, 1.0, 1.0)
    starts = []

    def spy(*arguments, start, **rest):
        starts.append((start.initial_seed(), start.get_state().numpy().tobytes()))
        return ascend(*arguments, start=start, **rest)

    monkeypatch.setattr("hpm_robustbench.attacks.joint.ascend", spy)
    once = answers_of(world, x, y, seed=7, steps=20)
    thrice = answers_of(world, x, y, seed=7, steps=20, restarts=3)
    assert {seed for seed, _ in starts} == {7}
    assert starts[0] == starts[1]
    assert len({*starts}) == 3
    assert len(thrice) >= len(once)
    assert all(torch.equal(a, b) for a, b in zip(once, thrice, strict=False))


def test_cross_terms_count(worlds):
    """What a row gains alone, beside clean mates, is less than what the whole batch gains together."""
    world, x, y = coupled(worlds, 0.2, 2.0)
    together = int((world.predict(joint(world, x, y, steps=50)) == 1).sum())
    alone = 0
    for row in range(len(x)):
        mixed = x.clone()
        mixed[row] += 0.1  # the best move of one row
        alone += int(world.predict(mixed)[row] == 1)
    assert alone == 0
    assert together == 10


def test_mates_move_for_the_active_rows_and_idle_batches_rest(worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    active = torch.arange(20) == 3
    x_adv = joint(world, x, y, active, batch_size=8, steps=5)
    assert (x_adv[:8] != x[:8]).flatten(1).any(1).all()
    assert torch.equal(x_adv[8:], x[8:])


def test_batches_are_consecutive_and_the_last_may_be_partial(worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    sizes = []
    world.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    whole = joint(world, x, y, batch_size=8, steps=5)
    assert set(sizes) == {8, 4}
    for start in (0, 8, 16):
        rows = slice(start, start + 8)
        assert torch.equal(whole[rows], joint(world, x[rows], y[rows], batch_size=8, steps=5))


def rivals(worlds):
    """Two rows that can be broken only one at a time: no iterate has both wrong. With everything it was shown."""
    submitted = []

    class Rivals(worlds.World):
        row_independent = False

        def forward(self, x):
            submitted.append(x.detach().clone())
            lead = (x.flatten(1).sum(1) - x.flatten(1).sum(1).flip(0)) * 5 - 0.3
            return torch.stack([-lead, lead], 1)

    return Rivals(), submitted


def test_submits_iterates_not_a_patchwork(worlds):
    (world, submitted), x, y = rivals(worlds), torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
    answers = answers_of(world, x, y, steps=40)
    for x_adv in answers:
        assert (world.predict(x_adv) != y).sum() == 1
        assert any(torch.equal(x_adv, batch) for batch in submitted)


def test_no_row_that_an_iterate_had_wrong_is_forgotten(worlds):
    """Each rival is wrong in some iterate, so each must be wrong in some submission; none is submitted for nothing."""
    (world, submitted), x, y = rivals(worlds), torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
    answers = answers_of(world, x, y, steps=40)
    met = torch.stack([world.predict(batch) != y for batch in list(submitted)])
    kept = torch.stack([world.predict(x_adv) != y for x_adv in answers])
    assert torch.equal(kept.any(0), met.any(0))
    assert len(answers) <= 2


@pytest.fixture
def ward(worlds):
    """A row that only its mates can break, against their own interest; each of them moves it by half of the mean."""

    class Ward(worlds.World):
        row_independent = False

        def forward(self, x):
            level = x.flatten(1).mean(1)
            lead = torch.stack([0.3 - level[1:].mean(), *(level[1:] - 0.7)])
            return torch.stack([-lead, lead], 1)

    return Ward(), torch.full((3, 1, 2, 2), 0.35), torch.zeros(3, dtype=torch.long)


def test_mates_give_themselves_up_for_the_row_that_is_left(ward):
    """It falls once it is the only active one."""
    world, x, y = ward
    assert (world.predict(joint(world, x, y, steps=20)) == 0).all(), "the mates' own losses pull the other way"
    active = torch.tensor([True, False, False])
    assert world.predict(joint(world, x, y, active, steps=20)).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("level", "falls_to"),
    [(0.34, {"one", "two", "all"}), (0.36, {"two", "all"}), (0.41, set())],
    ids=["one mate will do", "both are needed", "nobody can"],
)
def test_poisoned_mates_break_a_victim_that_is_not_touched(ward, level, falls_to):
    """Mates move by 0.1 at most, and the level of one of them weighs half: he lowers their mean by 0.05."""
    world, x, y = ward
    x, active = torch.full_like(x, level), torch.tensor([True, False, False])
    in_hand = {
        "own": {"move": "own"},
        "one": {"move": "mates", "movers": 1},
        "two": {"move": "mates"},
        "all": {"move": "all"},
    }
    found = {
        who: joint(world, x, y, active, loss="margin", steps=20, victims=1, **what) for who, what in in_hand.items()
    }
    assert {who for who, x_adv in found.items() if world.predict(x_adv)[0] == 1} == falls_to
    moved = {who: (x_adv != x).flatten(1).any(1).tolist() for who, x_adv in found.items()}
    assert not moved["one"][0] and not moved["two"][0], "the victim stays as it is"
    assert moved["own"][1:] == [False, False]
    assert not moved["one"][2], "one mate is one mate"


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12))
def test_a_cover_loses_no_row_and_holds_nothing_useless(worlds, wrong):
    """Whatever the iterates were: the same rows, the best first, and each of the rest with a row of its own to show."""
    iterates = [torch.full((4, 1, 1, 1), float(k)) for k in range(len(wrong))]
    table = torch.tensor(wrong)

    class Told(worlds.World):
        def forward(self, x):
            return torch.nn.functional.one_hot(table[int(x[0])].long(), 2).float()

    cover = Cover(Told(), torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool))
    for x in iterates:
        cover.observe(x, torch.zeros(4))
    kept = table[[int(x[0]) for x in cover.submissions]]
    assert torch.equal(kept.any(0), table.any(0))
    assert kept[0].sum() == table.sum(1).max()
    assert all((kept[k] & ~kept[:k].any(0)).any() for k in range(1, len(kept)))


def test_a_victim_is_not_dropped_for_rows_that_nobody_asked_for(worlds):
    """Twenty rows fall in one iterate each, the victims in those with the lowest scores."""
    n, victims = 20, torch.arange(20) < 16

    class Told(worlds.World):
        def forward(self, x):
            return torch.nn.functional.one_hot((torch.arange(n) == int(x[0])).long(), 2).float()

    cover = Cover(Told(), torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool), victims)
    for k in range(n):
        cover.observe(torch.full((n, 1, 1, 1), float(k)), torch.full((n,), float(k)))
    assert cover.wrong[victims].all()
    assert len(cover.submissions) == 17


def test_ends_when_every_row_is_wrong(worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    world.offset = 100.0
    view = worlds.Wrapped(world)
    view.row_independent = False
    joint(view, x, y, steps=100)
    assert view.calls == 1, "one gradient, and with it the answer of the target"


def test_seeds_and_target_ranks_are_different_searches(worlds):
    world, x = worlds.LinearWorld.random(6, 16, seed=0), torch.rand(10, 1, 4, 4)
    y = world.predict(x)
    answers = [
        joint(world, x, y, loss="targeted", steps=5),
        joint(world, x, y, loss="targeted", steps=5, seed=1),
        joint(world, x, y, loss="targeted", steps=5, target_rank=3),
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(answers) for b in answers[:i])
    runner_up = joint(world, x, y, loss="targeted", steps=5, target_rank=2)
    assert torch.equal(runner_up, answers[0])


def test_unknown_loss(worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    with pytest.raises(UnknownName, match="targeted"):
        joint(world, x, y, loss="targetted")


def test_a_few_victims_at_a_time_are_each_won_by_the_whole_batch(worlds):
    """In a quarrel all lose: what breaks one row protects its neighbour, so only one victim at a time surely falls."""

    class Quarrel(worlds.World):
        row_independent = False

        def forward(self, x):
            level = x.flatten(1).mean(1)
            lead = level - level.roll(1) - 0.15
            return torch.stack([-lead, lead], 1)

    world, x, y = Quarrel(), torch.full((6, 1, 2, 2), 0.5), torch.zeros(6, dtype=torch.long)

    def won(**parameters):
        return torch.stack([world.predict(a) != y for a in answers_of(world, x, y, steps=20, **parameters)]).any(0)

    assert not won().all(), "only lucky random starts"
    assert won(victims=1).all()


def test_victims_that_fell_on_the_way_are_not_attacked_again(worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    world.offset = 100.0
    assert len(answers_of(world, x, y, victims=1)) == 1, "the first iterate has everybody wrong"
    world.offset = -100.0
    answers = answers_of(world, x, y, steps=3, victims=7)
    assert len(answers) == 1, "a failure is shown to the judge once"
    assert (world.predict(answers[0]) == y).all()


@pytest.mark.parametrize(
    ("move", "movers", "moved"),
    [("all", 0, [0, 1, 2, 3]), ("own", 0, [3]), ("mates", 0, [0, 1, 2]), ("mates", 1, [0]), ("mates", 2, [0, 1])],
)
def test_only_the_rows_in_hand_are_moved(move, movers, moved, worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    world.offset = -100.0
    x, y, active = x[:4], y[:4], torch.arange(4) == 3
    answers = answers_of(world, x, y, active, victims=1, move=move, movers=movers, steps=3)
    changed = torch.stack([(x_adv != x).flatten(1).any(1) for x_adv in answers]).any(0)
    assert changed.nonzero().squeeze(1).tolist() == moved


def test_unknown_move(worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    with pytest.raises(UnknownName, match="mates"):
        joint(world, x, y, move="mate")


@pytest.mark.parametrize(("is_target", "passes"), [(True, 1), (False, 2)])
def test_a_view_that_is_the_target_is_asked_once_for_each_iterate(worlds, is_target, passes):
    robust = worlds.LinearWorld.random(3, 25, seed=1)
    robust.head.bias += torch.tensor([1e3, 0.0, 0.0])
    world = worlds.Wrapped(robust)
    world.is_target = is_target
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y = world.predict(x)
    world.calls = 0
    joint(world, x, y, steps=5)
    assert world.calls == passes * 6


def test_a_target_that_is_remembered_was_asked_for_these_very_images(worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(3, 25, seed=1))
    view, x = Remembering(world), torch.rand(4, 1, 5, 5)
    answer = view(x)
    assert torch.equal(view.target_logits(x.clone()), answer)
    answer.zero_()
    assert torch.equal(view.target_logits(x), world(x))
    assert torch.equal(view.target_logits(x + 0.1), world(x + 0.1))
