"""Every model there is, by name and track."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.threat import Norm
from hpm_robustbench.zoo.builtin import builtin_specs
from hpm_robustbench.zoo.from_robustbench import read_published_only, robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec

_DEFAULT_DATASET = "cifar10"
_DEFAULT_THREAT = Norm.LINF.value


class Catalog:
    """An unchangeable set of specs, in which (dataset, threat model, name) occurs once."""

    def __init__(self, specs: Iterable[ModelSpec], without_weights: Iterable[tuple[str, str, str]] = ()) -> None:
        """Merge the specs of all sources.

        Args:
            specs: every model that can be loaded.
            without_weights: dataset, threat model and name of those whose figures were published without weights.

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
        self._specs, self._without_weights = tuple(ordered), frozenset(without_weights)

    def specs(self, dataset: str | None = None, threat_model: str | None = None) -> tuple[ModelSpec, ...]:
        """The models of a dataset and a threat model (None: of all), sorted by both and by name."""
        return tuple(spec for spec in self._specs if _is_on(spec, dataset, threat_model))

    def find(self, name: str, dataset: str | None = None, threat_model: str | None = None) -> ModelSpec:
        """The one model of that name.

        Where the name stands on several tracks and the request leaves the choice open, RobustBench's defaults decide
        as far as the model is there: CIFAR-10, then Linf.

        Raises:
            UnknownName: no model has that name; shows the nearest ones.
            UsageProblem: it is not on the wanted track, or on several that no default tells apart; lists its tracks.
                Or its figures were published without weights.
        """
        named = [spec for spec in self._specs if spec.name == name]
        hits = [spec for spec in named if _is_on(spec, dataset, threat_model)]
        if not hits:
            self._tell_if_without_weights(name, dataset, threat_model)
        if not named:
            near = self.specs(dataset, threat_model) or self._specs
            raise UnknownName("model", name, {spec.name for spec in near}, next_step="See `hpm-bench list`.")
        for default in ((_DEFAULT_DATASET, None), (None, _DEFAULT_THREAT)):
            hits = [spec for spec in hits if _is_on(spec, *default)] or hits
        if len(hits) != 1:
            wanted = " ".join(part for part in (dataset, threat_model) if part) or "one track"
            raise UsageProblem(
                wanted=f"{name} on {wanted}",
                got=f"a model of {', '.join(_track(spec) for spec in named)}",
                next_step="choose one of these with --dataset and --threat_model",
            )
        return hits[0]

    def _tell_if_without_weights(self, name: str, dataset: str | None, threat_model: str | None) -> None:
        for track in sorted(self._without_weights):
            if track[2] == name and dataset in (None, track[0]) and threat_model in (None, track[1]):
                raise UsageProblem(
                    wanted=f"{name} on {track[0]} {track[1]}, with weights",
                    got="published figures alone: RobustBench lists the model and has no checkpoint of it",
                    next_step="read its row on the board; if you have network and weights, name them with --factory",
                )


def _key(spec: ModelSpec) -> tuple[str, str, str]:
    return spec.dataset, spec.threat.name, spec.name


def _track(spec: ModelSpec) -> str:
    return f"{spec.dataset} {spec.threat.name}"


def _is_on(spec: ModelSpec, dataset: str | None, threat_model: str | None) -> bool:
    return dataset in (None, spec.dataset) and threat_model in (None, spec.threat.name)


@lru_cache(maxsize=1)
def catalog() -> Catalog:
    """The embedded model and RobustBench's zoo."""
    published = ((entry["dataset"], entry["threat"], entry["name"]) for entry in read_published_only())
    return Catalog([*builtin_specs(), *robustbench_specs()], published)
