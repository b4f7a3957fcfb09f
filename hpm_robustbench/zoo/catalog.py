"""Every model there is, by name and track."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.threat import Norm
from hpm_robustbench.zoo.builtin import builtin_specs
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec

_DEFAULT_DATASET = "cifar10"
_DEFAULT_NORM = Norm.LINF


class Catalog:
    """An unchangeable set of specs, in which (dataset, norm, name) occurs once."""

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        """Merge the specs of all sources.

        Raises:
            UsageProblem: two specs claim the same name on the same track.
        """
        ordered = sorted(specs, key=_key)
        for one, other in pairwise(ordered):
            if _key(one) == _key(other):
                raise UsageProblem(
                    wanted=f"one model called {one.name} on {_track(one)}",
                    got=f"two: {one.factory} and {other.factory}",
                    next_step="rename one of them",
                )
        self._specs = tuple(ordered)

    def specs(self, dataset: str | None = None, norm: Norm | None = None) -> tuple[ModelSpec, ...]:
        """The models of a dataset and a norm (None: of all), sorted by dataset, norm and name."""
        return tuple(spec for spec in self._specs if _is_on(spec, dataset, norm))

    def find(self, name: str, dataset: str | None = None, norm: Norm | None = None) -> ModelSpec:
        """The one model of that name.

        Where the name stands on several tracks and the request leaves the choice open, RobustBench's defaults decide:
        CIFAR-10, then Linf.

        Raises:
            UnknownName: no model has that name; shows the nearest ones.
            UsageProblem: it is not on the wanted track, or on several others than the default; lists its tracks.
        """
        named = [spec for spec in self._specs if spec.name == name]
        if not named:
            near = self.specs(dataset, norm) or self._specs
            raise UnknownName("model", name, {spec.name for spec in near})
        hits = [spec for spec in named if _is_on(spec, dataset, norm)]
        if len(hits) > 1:
            hits = [spec for spec in hits if _is_on(spec, dataset or _DEFAULT_DATASET, norm or _DEFAULT_NORM)]
        if len(hits) != 1:
            wanted = " ".join(part for part in (dataset, norm and norm.value) if part) or "one track"
            raise UsageProblem(
                wanted=f"{name} on {wanted}",
                got=f"a model of {', '.join(_track(spec) for spec in named)}",
                next_step="choose one of these with --dataset and --threat_model",
            )
        return hits[0]


def _key(spec: ModelSpec) -> tuple[str, str, str]:
    return spec.dataset, spec.threat.norm.value, spec.name


def _track(spec: ModelSpec) -> str:
    return f"{spec.dataset} {spec.threat.norm.value}"


def _is_on(spec: ModelSpec, dataset: str | None, norm: Norm | None) -> bool:
    return dataset in (None, spec.dataset) and norm in (None, spec.threat.norm)


@lru_cache(maxsize=1)
def catalog() -> Catalog:
    """The embedded model and RobustBench's zoo."""
    return Catalog([*builtin_specs(), *robustbench_specs()])
