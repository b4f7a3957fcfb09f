"""The model that is shipped with this package and needs no download."""

from __future__ import annotations

import json
from importlib.resources import files

from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.zoo.spec import HeadRule, ModelSpec, Paper, WeightsRef

DIGITS_MODEL = "Digits2026ResNet-Linf"


def builtin_specs() -> list[ModelSpec]:
    """The embedded digits model, as its training command has written it down."""
    facts = json.loads(files("hpm_robustbench.embedded").joinpath("digits-resnet.json").read_text(encoding="utf-8"))
    return [
        ModelSpec(
            name=DIGITS_MODEL,
            dataset="digits",
            threat=ThreatModel.parse("Linf", facts["eps"]),
            factory="python:hpm_robustbench.embedded.network:digits_resnet",
            weights=WeightsRef("package", ("embedded/digits-resnet.safetensors",), (facts["sha256"],)),
            head=HeadRule(),
            paper=Paper(
                title="Adversarially trained ResNet for scikit-learn's digits",
                authors="The hpm-robustbench authors",
                architecture="PreActResNet",
                license="MIT",
            ),
            n_params=facts["parameters"],
        )
    ]
