"""The images that an attacker may submit, and how to keep to them: all that attacks and adversarial training share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpm_robustbench.shapes import Images
from hpm_robustbench.threat import Norm, ThreatModel

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Ball:
    """The images an attacker may submit: within ``threat`` of ``center`` and in the box [0, 1]."""

    center: Images
    threat: ThreatModel

    def project(self, x: Images) -> Images:
        """Bring ``x`` back into the ball and then into the box; the second cannot undo the first."""
        eps = float(self.threat.eps)
        if self.threat.norm is Norm.LINF:
            return x.clamp(self.center - eps, self.center + eps).clamp(0, 1)
        delta = x - self.center
        return (self.center + delta * (eps / _length(delta)).clamp(max=1)).clamp(0, 1)

    def direction(self, gradient: Images) -> Images:
        """The unit step of steepest ascent in the threat model's norm; zero where the gradient is zero."""
        if self.threat.norm is Norm.LINF:
            return gradient.sign()
        largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(_TINY)
        scaled = gradient / largest  # the square of a saturated model's gradient would underflow
        return scaled / _length(scaled)

    def random_point(self, generator: torch.Generator) -> Images:
        """Uniform in the cube of Linf, or on the sphere of L2, then projected."""
        linf = self.threat.norm is Norm.LINF
        draw = torch.rand if linf else torch.randn
        noise = draw(self.center.shape, generator=generator).to(self.center)
        unit = 2 * noise - 1 if linf else noise / _length(noise)
        return self.project(self.center + float(self.threat.eps) * unit)


def per_image(row_values: Tensor) -> Tensor:
    """One value per row, [N], as [N 1 1 1]: what images are multiplied by or chosen with."""
    return row_values[:, None, None, None]


def _length(x: Images) -> Tensor:
    """Euclidean length of each image, [N 1 1 1], never zero."""
    length: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return length.clamp_min(_TINY)
