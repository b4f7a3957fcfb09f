"""Worlds with known answers: what any attack can reach in them is computed in closed form or by exhaustion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpm_robustbench.surrogates.region import Region
from hpm_robustbench.threat import Norm, ThreatModel


class World(nn.Module):
    """A view of itself: the surrogate is the target."""

    name = "world"
    row_independent = True
    is_target = True
    region_is_exact = True

    def target_logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self(x)

    def predict(self, x: Tensor) -> Tensor:
        return self.target_logits(x).argmax(1)


class Wrapped(World):
    """Any frozen network; counts the calls."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


class LinearWorld(World):
    """The nearest of some prototypes, written as the linear classifier that it is: logits 2 P x - |P|^2.

    The best an attacker can do for each class has a closed form, box included.
    """

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(prototypes.shape[1], prototypes.shape[0])
        self.head.load_state_dict({"weight": 2 * prototypes, "bias": -prototypes.square().sum(1)})
        self.eval().requires_grad_(False)

    @classmethod
    def random(cls, n_classes: int, n_pixels: int, seed: int) -> LinearWorld:
        return cls(torch.rand(n_classes, n_pixels, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))

    def region(self, x: Tensor) -> Region:
        """The same world as an HPM classifier with beta = 0, whose FC head agrees with its prototypes."""
        distances = (x.flatten(1).unsqueeze(1) - self.head.weight / 2).square().sum(2)
        return Region(self(x), distances, distances)

    def beside(self, mates: Tensor) -> LinearWorld:
        return self

    def shared_prototypes(self, x: Tensor) -> Tensor:
        return self.head.weight / 2

    def logits_against(self, x: Tensor, prototypes: list[Tensor]) -> list[Tensor]:
        return [-(x.flatten(1).unsqueeze(1) - constants).square().sum(2) for constants in prototypes]

    def reachable_margin(self, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """Largest (best other logit - own logit) over the ball and the box: [N]; positive means breakable."""
        logits, flat = self(x).double(), x.flatten(1).double()
        margins = []
        for target in range(logits.shape[1]):
            slope = (self.head.weight[target] - self.head.weight[y]).double()
            gain = (slope * best_move(slope, flat, threat)).sum(1)
            margin = logits[:, target] - logits.gather(1, y[:, None])[:, 0] + gain
            margins.append(margin.masked_fill(y == target, -torch.inf))
        return torch.stack(margins, 1).amax(1)


def best_move(slope: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The legal perturbation with the largest inner product with ``slope``, both [N D].

    In L2 it is clip(scale * slope) to the box (Karush-Kuhn-Tucker), with the scale that spends the budget; bisected.
    """
    eps = float(threat.eps)
    if threat.norm is Norm.LINF:
        return (eps * slope.sign()).clamp(-x, 1 - x)
    low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
    for _ in range(100):
        scale = (low + high) / 2
        over = (scale * slope).clamp(-x, 1 - x).norm(dim=1, keepdim=True) > eps
        low, high = torch.where(over, low, scale), torch.where(over, scale, high)
    return (low * slope).clamp(-x, 1 - x)


class IdentityHPM(World):
    """HPM over the pixels themselves, each image its own batch of one, written out from the definition."""

    name = "hpm"

    def __init__(self, weight: Tensor, bias: Tensor, prototypes: Tensor, beta: Tensor) -> None:
        super().__init__()
        for key, value in (("weight", weight), ("bias", bias), ("prototypes", prototypes), ("beta", beta)):
            self.register_buffer(key, value)

    @classmethod
    def random(cls, n_classes: int, n_pixels: int, seed: int) -> IdentityHPM:
        """Prototypes in the image cube, and an FC head that agrees with them roughly, as a trained one does."""
        generator = torch.Generator().manual_seed(seed)
        prototypes = torch.rand(n_classes, n_pixels, generator=generator)
        weight = prototypes - 0.5 + 0.3 * torch.randn(n_classes, n_pixels, generator=generator)
        bias = -weight.square().sum(1) / 2 - weight.sum(1) / 2
        return cls(weight, bias, prototypes, torch.rand(n_classes, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        chosen = nn.functional.one_hot((z @ self.weight.T + self.bias).argmax(1), len(self.prototypes))
        share = (chosen * self.beta).unsqueeze(2)
        mixed = (1 - share) * self.prototypes + share * z.unsqueeze(1)
        return -(z.unsqueeze(1) - mixed).square().sum(2)

    def region(self, x: Tensor) -> Region:
        z = x.flatten(1)
        distances = (z.unsqueeze(1) - self.prototypes).square().sum(2)
        return Region(z @ self.weight.T + self.bias, distances, (1 - self.beta).square() * distances)

    def breakable(self, x: Tensor, y: Tensor, threat: ThreatModel, per_side: int = 101) -> Tensor:
        """Share of a fine grid over each legal set that is misclassified: [N]. For images of two pixels."""
        eps = float(threat.eps)
        side = torch.linspace(-eps, eps, per_side)
        moves = torch.cartesian_prod(side, side)
        shares = []
        for image, label in zip(x, y, strict=True):
            points = image.flatten() + moves
            legal = ((points >= 0) & (points <= 1)).all(1)
            if threat.norm is Norm.L2:
                legal &= moves.norm(dim=1) <= eps
            shares.append((self.predict(points[legal].view(-1, *image.shape)) != label).double().mean())
        return torch.stack(shares)


class CoupledWorld(World):
    """Two classes; each image's margin depends on its own pixels and on the mean of its batch, both linearly.

    Every row gains from the same move of every other row, so the best whole batch has a closed form in Linf.
    """

    row_independent = False

    def __init__(self, own: Tensor, shared: Tensor, offset: float) -> None:
        super().__init__()
        self.own, self.shared, self.offset = own, shared, offset

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        wrong = z @ self.own + (z.mean(0) @ self.shared) + self.offset
        return torch.stack([-wrong / 2, wrong / 2], 1)

    def most_wrong(self, x: Tensor, threat: ThreatModel) -> int:
        """The largest number of rows of label 0 that one batch in the Linf ball can have wrong.

        ``own`` and ``shared`` must agree in sign pixel by pixel: then one move serves every row at once.
        """
        assert (self.own * self.shared >= 0).all() and threat.norm is Norm.LINF
        direction = (self.own + self.shared).sign()
        moved = x.flatten(1) + best_move(direction.expand(len(x), -1), x.flatten(1), threat)
        return int((self.predict(moved.view_as(x)) == 1).sum())
