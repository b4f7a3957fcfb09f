"""What a person is looking for among the models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.zoo.spec import ModelSpec

_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kMB]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def parse_size(text: str) -> int:
    """A number of parameters, as ``11171146``, ``11.2M`` or ``0.5B``.

    Raises:
        UsageProblem: it is not written like these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageProblem(
            wanted="a number of parameters", got=repr(text[:40]), next_step="write it like 11171146, 500k, 11.2M or 1B"
        )
    return round(float(match[1]) * _UNITS[match[2].casefold()])


@dataclass(frozen=True)
class Query:
    """Which models are wanted; None leaves a question open.

    Attributes:
        dataset: the exact name.
        threat_model: RobustBench's spelling.
        architecture: a part of the architecture's name, in any case.
        license: a part of the licence's name, in any case.
        min_params: fewest parameters; a model whose size is not known is not wanted then.
        max_params: most parameters, likewise.
    """

    dataset: str | None = None
    threat_model: str | None = None
    architecture: str | None = None
    license: str | None = None
    min_params: int | None = None
    max_params: int | None = None

    def among(self, specs: Iterable[ModelSpec]) -> list[ModelSpec]:
        """The wanted ones, in their order.

        Raises:
            UnknownName: no model at all is of that dataset.
        """
        specs = list(specs)
        datasets = {spec.dataset for spec in specs}
        if self.dataset is not None and self.dataset not in datasets:
            raise UnknownName("dataset with models", self.dataset, datasets)
        return [spec for spec in specs if self._admits(spec)]

    def _admits(self, spec: ModelSpec) -> bool:
        return (
            self.dataset in (None, spec.dataset)
            and self.threat_model in (None, spec.threat.name)
            and _contains(spec.paper.architecture, self.architecture)
            and _contains(spec.paper.license, self.license)
            and self._has_size(spec.n_params)
        )

    def _has_size(self, n_params: int | None) -> bool:
        if n_params is None:
            return self.min_params is None and self.max_params is None
        return (self.min_params or 0) <= n_params and (self.max_params is None or n_params <= self.max_params)


def _contains(text: str, part: str | None) -> bool:
    return part is None or part.casefold() in text.casefold()
