"""What our AutoAttack costs over stock's, on the same network, images, seed and batches.

    python benchmarks/autoattack_ratio.py [--model embedded|small] [--n 64] [--batch-size 32] [--norm Linf]

Both run in one process, in turns, and their images are compared bit for bit. ``small`` is an untrained network that
is right about every image and too firm to be broken, so that every attack spends its whole budget: the worst case for
overhead per call. The target is a ratio of at most 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpm_robustbench.attacks.protocols import standard
from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.data import open_dataset
from hpm_robustbench.embedded.network import digits_resnet
from hpm_robustbench.load import wrap
from hpm_robustbench.request.models import find_spec
from hpm_robustbench.robustbench_compat import import_autoattack
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Norm, ThreatModel
from hpm_robustbench.weights import load_weights
from hpm_robustbench.zoo.builtin import DIGITS_MODEL


class Case(NamedTuple):
    """What both sides attack."""

    subject: Subject
    x: Tensor
    y: Tensor
    threat: ThreatModel
    batch_size: int


class Cost(NamedTuple):
    """Seconds of one run."""

    wall: float
    cpu: float


def make_case(model: str, n: int, batch_size: int, norm: Norm) -> Case:
    """The network, frozen, with images and labels."""
    digits = open_dataset("digits")
    test = digits.test().head(n)
    x, y = test.images, test.labels
    if model == "embedded":
        spec = find_spec(DIGITS_MODEL)
        net = load_weights(spec, Path("models")).model
        threat = ThreatModel.parse(norm.value, spec.threat.budget if norm.value == spec.threat.name else "0.8")
    else:
        torch.manual_seed(0)
        net, threat = digits_resnet().eval(), ThreatModel.parse(norm.value, "1e-4")
        y = net(x).argmax(dim=1)
    wrapped = wrap(net, digits.train())
    return Case(Subject(wrapped.classifier, wrapped.base, "base"), x, y, threat, batch_size)


def run_ours(case: Case) -> Tensor:
    """The four steps, each on the rows that stand; what the target gets wrong is kept."""
    view = make_view("base", case.subject)
    images = case.x.clone()
    standing = predict(case, case.x) == case.y
    for step in standard("base"):
        x_adv = next(run_attack(step, view, case.x, case.y, standing, case.threat, 0, case.batch_size))
        broken = standing & (predict(case, x_adv) != case.y)
        images[broken] = x_adv[broken]
        standing &= ~broken
    return images


def predict(case: Case, x: Tensor) -> Tensor:
    """Labels of the target, in batches as an attack sees them."""
    return torch.cat([case.subject.target_logits(batch).argmax(dim=1) for batch in x.split(case.batch_size)])


def run_stock(case: Case) -> Tensor:
    """AutoAttack as its authors run it."""
    attack = import_autoattack().AutoAttack(
        case.subject.base, norm=case.threat.norm.value, eps=float(case.threat.eps), seed=0, version="standard"
    )
    images, _ = attack.run_standard_evaluation(case.x, case.y, batch_size=case.batch_size)
    return images


def timed(run: Callable[[Case], Tensor], case: Case) -> tuple[Tensor, Cost]:
    """The run's images, and what they cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    images = run(case)
    return images, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def call_overhead(case: Case, calls: int = 2000) -> tuple[float, float]:
    """Milliseconds of one forward pass of a batch: through our view, and of the bare network."""

    def milliseconds(model: nn.Module) -> float:
        x = case.x[: case.batch_size]
        with torch.no_grad():
            start = time.perf_counter()
            for _ in range(calls):
                model(x)
        return 1000 * (time.perf_counter() - start) / calls

    rounds = [(milliseconds(make_view("base", case.subject)), milliseconds(case.subject.base)) for _ in range(5)]
    ours, bare = zip(*rounds, strict=True)
    return statistics.median(ours), statistics.median(bare)


def main() -> None:
    """Print both sides' times, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["embedded", "small"], default="embedded")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--norm", type=Norm.parse, default=Norm.LINF)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    case = make_case(given.model, given.n, given.batch_size, given.norm)
    costs: dict[str, list[Cost]] = {"ours": [], "stock": []}
    for repeat in range(given.repeats):
        images = {}
        for name, run in (("ours", run_ours), ("stock", run_stock))[:: 1 if repeat % 2 == 0 else -1]:
            images[name], cost = timed(run, case)
            costs[name].append(cost)
            print(f"repeat {repeat + 1}  {name:5}  wall {cost.wall:7.2f} s  cpu {cost.cpu:7.2f} s", flush=True)
        assert torch.equal(images["ours"], images["stock"]), "the two must do the same work"
    view, bare = call_overhead(case)
    print(f"forward pass of {min(given.batch_size, given.n)}: view {view:.4f} ms, bare network {bare:.4f} ms")
    for kind in Cost._fields:
        pairs = zip(costs["ours"], costs["stock"], strict=True)
        ratios = [getattr(ours, kind) / getattr(stock, kind) for ours, stock in pairs]
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{kind:4} ratio {statistics.median(ratios):.3f}  (median of {each})")


if __name__ == "__main__":
    main()
