"""One contract, every model: built with random weights, each is taken apart, wrapped and ready to be attacked.

Before that it is written in every layout that RobustBench's loader accepts, and loaded back bit for bit.
A dozen of many kinds here; all of them in ``tox -e zoo``, where what is built twice alike is proven once.
"""

from __future__ import annotations

import gc
import hashlib
import io
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from hpm_robustbench.architectures import build
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.state_dict import read_state_dict
from hpm_robustbench.threat import Dataset
from hpm_robustbench.weights import STRICT, locate
from hpm_robustbench.weights.converted import read_tensors
from hpm_robustbench.weights.load import fill
from hpm_robustbench.weights.places import places
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec

ZOO = {f"{spec.dataset}/{spec.threat.name}/{spec.name}": spec for spec in robustbench_specs()}
REPRESENTATIVE = {
    "cifar10/Linf/Chen2020Adversarial",  # an ensemble that returns probabilities
    "cifar10/Linf/Ding2020MMA",  # normalises each image by itself
    "cifar10/Linf/Engstrom2019Robustness",
    "cifar10/Linf/Rade2021Helper_R18_extra",
    "cifar10/Linf/Debenedetti2022Light_XCiT-S12",  # from timm
    "cifar10/Linf/Wong2020Fast",
    "cifar10/L2/Rice2020Overfitting",
    "cifar10/L2/Sehwag2021Proxy_R18",
    "cifar10/corruptions/Diffenderfer2021Winning_Binary",  # its head is a 1x1 convolution
    "cifar100/Linf/Rice2020Overfitting",
    "imagenet/Linf/Salman2020Do_R18",
    "imagenet/Linf/Wong2020Fast",  # 288 x 288
}
N = 2
MEMORY = 8e9
"""Bytes that one model may take, and so this process, which has one at a time, and the one that reads pickles."""


CASES = [
    pytest.param(spec, id=key, marks=() if key in REPRESENTATIVE else pytest.mark.zoo)
    for key, spec in sorted(ZOO.items())
]


def images_of(spec: ModelSpec) -> ExampleSet:
    known = KNOWN[spec.dataset]
    shape = (3, 288, 288) if spec.preprocessing == "Crop288" else known.image_shape
    images = torch.rand((2 * N, *shape), generator=torch.Generator().manual_seed(1))
    return ExampleSet(Dataset(spec.dataset, known.n_classes, shape), "train", images, torch.arange(2 * N))


State: TypeAlias = Mapping[str, Tensor]
Modules: TypeAlias = Mapping[str, nn.Module]
"""What one file holds: a network under no name, or several by their names."""
CONSTANTS = ("mu", "sigma", "mean", "std", "num_batches_tracked")
WRAPPED: tuple[tuple[Callable[[State], Any], str], ...] = (
    (lambda state: state, ""),
    (lambda state: {"state_dict": state, "epoch": 3}, "module."),
    (lambda state: {"last": state, "best": {}}, "module.model."),
    (lambda state: {"last": {"state_dict": state}}, "model."),
)
"""How a state dict may lie in a file, and the prefix of its names."""


PROVEN: set[str] = set()
"""The likeness of every network that has kept the contract."""


@pytest.fixture(autouse=True)
def _each_for_itself() -> Iterator[None]:
    """The same random weights whatever was tested before, and no memory kept for what comes after."""
    torch.manual_seed(0)
    yield
    gc.collect()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of checkpoints that is not kept: they are many gigabytes."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_all_are_there() -> None:
    assert len(ZOO) == 206
    assert set(ZOO) >= REPRESENTATIVE


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*saved_variables.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize("spec", CASES)
def test_every_model_keeps_the_contract(spec: ModelSpec, folder: Path, request: pytest.FixtureRequest) -> None:
    network, by_the_whole_road = build(spec), request.node.get_closest_marker("zoo") is not None
    likeness = f"{_likeness(network, spec)} {by_the_whole_road}"
    if likeness in PROVEN:
        return
    _loads_back(network, spec, folder, by_the_whole_road=by_the_whole_road)
    examples = images_of(spec)
    others = examples.images[N:]  # an image that is its class's prototype has no gradient towards it
    published = _answer(network, others) if spec.head.output == "probabilities" else None
    wrapped = wrap(network, examples.head(N), head=spec.head)  # proves that the model's answer is unchanged
    if published is not None:
        _keeps_the_ensembles_probabilities(wrapped, published, others)
    _is_frozen(wrapped)
    _shows_gradients_everywhere(wrapped, others)
    _answers_each_image_for_itself(wrapped, others)
    _moves_with_all_its_tensors(wrapped)  # and has none any more
    if by_the_whole_road:
        assert _peak_memory() < MEMORY
    PROVEN.add(likeness)


def _likeness(network: nn.Module, spec: ModelSpec) -> str:
    """Equal for two specs if the contract cannot tell them apart: but for learned values they are one network."""
    weights, written = spec.weights, io.BytesIO()
    files = weights.source, len(weights.locators), weights.parts, weights.leftover, weights.constants, _leftovers(spec)
    try:
        _ButForValues(written).dump((spec.dataset, spec.preprocessing, spec.head, files, network))
    # A function without a name, or computed weights, which torch refuses by a RuntimeError: like no other.
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        return f"{spec.dataset}/{spec.threat.name}/{spec.name}"
    return hashlib.sha256(written.getvalue()).hexdigest()


class _ButForValues(pickle.Pickler):
    """Writes each parameter as its place and shape, and other tensors, which are constants as yet, whole."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        place = self._places.setdefault(id(obj), len(self._places))  # a tensor that two layers share has one
        return place, tuple(obj.shape), str(obj.dtype), None if isinstance(obj, nn.Parameter) else obj.numpy().tobytes()


def _answer(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(images)
    return answer


def _keeps_the_ensembles_probabilities(wrapped: Wrapped, published: Tensor, images: Tensor) -> None:
    """The FC logits' softmax and choice are what the upstream model itself said before it was taken apart."""
    torch.testing.assert_close(published.sum(dim=1), torch.ones(len(images)))
    with torch.no_grad():
        fc = wrapped.classifier.embed(images).logits
    for logits in (_answer(wrapped.base, images), fc):
        torch.testing.assert_close(logits.softmax(dim=1), published, rtol=1e-5, atol=1e-6)
        assert torch.equal(logits.argmax(dim=1), published.argmax(dim=1))


def _peak_memory() -> int:
    """Most bytes of memory that this process or a child that has ended ever had at once."""
    import resource  # not on every system, and only the whole zoo asks

    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) * (1 if sys.platform == "darwin" else 1024)


def test_the_peak_of_memory_is_told_in_bytes() -> None:
    ballast = torch.ones(2**26)
    assert ballast.nbytes < _peak_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_frozen(wrapped: Wrapped) -> None:
    assert not any(module.training for module in wrapped.classifier.modules())
    assert not any(parameter.requires_grad for parameter in wrapped.classifier.parameters())


def _shows_gradients_everywhere(wrapped: Wrapped, images: torch.Tensor) -> None:
    before = state_sha256(wrapped.classifier)  # the base model is made of its parts
    for model in (wrapped.classifier, wrapped.base):
        x = images.clone().requires_grad_()
        logits = model(x)
        assert logits.isfinite().all()
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
        assert gradient.isfinite().all()
        assert gradient.flatten(1).abs().amax(1).min() > 0
    assert state_sha256(wrapped.classifier) == before


def _answers_each_image_for_itself(wrapped: Wrapped, images: torch.Tensor) -> None:
    with torch.no_grad():
        for model in (wrapped.classifier, wrapped.base):
            together, alone = model(images), torch.cat([model(image) for image in images.split(1)])
            scale = together.abs().max()
            assert (together - alone).abs().max() <= 1e-4 * scale


@pytest.mark.zoo
@pytest.mark.parametrize("spec", [spec for spec in ZOO.values() if spec.head.one_by_one], ids=lambda spec: spec.name)
def test_what_a_batch_does_to_a_logit_is_what_the_spec_says(spec: ModelSpec) -> None:
    network = build(spec)
    images = torch.rand((8, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    together, alone = _answer(network, images), torch.cat([_answer(network, image) for image in images.split(1)])
    effect = float((together - alone).abs().max() / together.abs().max())
    assert spec.head.batch_effect is not None
    assert 1 / 3 < effect / spec.head.batch_effect < 3, "of the same order, whatever the processor"


def test_every_model_that_sees_one_image_at_a_time_says_what_a_batch_would_do() -> None:
    told = {key for key, spec in ZOO.items() if spec.head.batch_effect is not None}
    assert told == {key for key, spec in ZOO.items() if spec.head.one_by_one} == {"cifar10/Linf/Kang2021Stable"}


def _moves_with_all_its_tensors(wrapped: Wrapped) -> None:
    """Also those that are no buffers: they would stay behind on another device, of which there may be none here."""
    for model in (wrapped.classifier, wrapped.base):
        model.to("meta")
        left = [path for path, tensor in _tensors_within(model, type(model).__name__, set()) if not tensor.is_meta]
        assert left == []


def _tensors_within(thing: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is reached from a module through attributes, containers and other objects that hold any."""
    if id(thing) in seen or isinstance(thing, (type, ModuleType)):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield path, thing
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from _tensors_within(value, f"{path}.{key}", seen)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        for number, value in enumerate(thing):
            yield from _tensors_within(value, f"{path}[{number}]", seen)
    elif isinstance(thing, partial):
        yield from _tensors_within((thing.func, thing.args, thing.keywords), path, seen)
    elif hasattr(thing, "__dict__"):
        yield from _tensors_within(vars(thing), path, seen)


def test_a_tensor_that_stays_behind_is_seen_wherever_it_lies() -> None:
    network, kept = nn.Sequential(nn.Linear(2, 2)), torch.ones(2)
    network[0].constants = {"mean": [kept, SimpleNamespace(std=kept.clone(), of=network)]}
    network[0].shift = partial(torch.add, other=torch.ones(1))
    network.to("meta")
    left = {path for path, tensor in _tensors_within(network, "it", set()) if not tensor.is_meta}
    places = ("constants.mean[0]", "constants.mean[1].std", "shift[2].other")
    assert left == {f"it._modules.0.{place}" for place in places}


def _loads_back(network: nn.Module, spec: ModelSpec, folder: Path, *, by_the_whole_road: bool) -> None:
    """A checkpoint in each layout gives the very tensors that were written; constants may be the architecture's own."""
    torch.save(network.state_dict(), folder / "built.pt")
    _make_every_tensor_its_own(network)
    torch.save(network.state_dict(), folder / "written.pt")
    paths = [place.path for place in places(spec.weights, folder)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(len(WRAPPED)):
        for path, part in zip(paths, _parts(network, spec), strict=True):
            torch.save(_content(part, spec, number), path)
            _forget(part, but=CONSTANTS if number else ())
        if by_the_whole_road and number == 1:
            originals = locate(spec, folder)
            states = [read_tensors(original.path, original.checksum, folder, STRICT) for original in originals]
        else:
            states = [read_state_dict(path) for path in paths]
        fill(network, spec.weights, states, [path.name for path in paths])
        del states
        _is_as_written(network, folder / "written.pt")
    network.load_state_dict(torch.load(folder / "built.pt", mmap=True, weights_only=True))


def _is_as_written(network: nn.Module, path: Path) -> None:
    written = torch.load(path, mmap=True, weights_only=True)
    assert network.state_dict().keys() == written.keys()
    assert all(torch.equal(tensor, written[key]) for key, tensor in network.state_dict().items())


def _make_every_tensor_its_own(network: nn.Module) -> None:
    """No two tensors alike, as after training: where all biases are zero, nobody sees them change places."""
    noise = torch.Generator().manual_seed(2)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=noise, dtype=tensor.dtype), alpha=1e-6)


def _parts(network: nn.Module, spec: ModelSpec) -> list[Modules]:
    """What each file of a checkpoint holds."""
    if spec.weights.parts:
        named = [(("", part),) if isinstance(part, str) else part for part in spec.weights.parts]
        return [{name: network.get_submodule(path) for name, path in part} for part in named]
    return [{"": member} for member in (network.models if len(spec.weights.locators) > 1 else [network])]


def _forget(part: Modules, but: tuple[str, ...]) -> None:
    for module in part.values():
        for key, tensor in module.state_dict().items():
            if key.rpartition(".")[2] not in but:
                tensor.zero_()


def _content(part: Modules, spec: ModelSpec, number: int) -> Any:
    """What a file may hold; under number 0 all tensors as they are."""
    if "" not in part:  # several networks side by side, whose names upstream takes as they are
        beside = {name: module.state_dict() for name, module in part.items()}
        return {"state_dict": beside} if number % 2 else beside
    (wrapped, prefix), forms = WRAPPED[number], list(_forms(part[""].state_dict()))
    form = forms[number % len(forms)]
    return wrapped({f"{prefix}{key}": tensor for key, tensor in _with_leftovers(form, spec).items()})


def _forms(state: State) -> Iterator[State]:
    """The names that a file may give a network's tensors."""
    yield state
    learned = {key: tensor for key, tensor in state.items() if key.rpartition(".")[2] not in CONSTANTS}
    yield learned
    if all(key.startswith("model.") for key in learned):  # RobustBench puts the normalisation in front by itself
        inner = {key.removeprefix("model."): tensor for key, tensor in learned.items()}
        yield inner
        if "head.fc.weight" in inner and any("relative_position" in key for key in inner):
            yield {_as_before_timm_0_9(key): tensor for key, tensor in inner.items()}


def _as_before_timm_0_9(key: str) -> str:
    older = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
    return older.replace("head.fc.", "head.")


def _with_leftovers(state: State, spec: ModelSpec) -> State:
    return {**state, **{name: state[copied] for name, copied in _leftovers(spec).items()}}


def _leftovers(spec: ModelSpec) -> Mapping[str, str]:
    """What some authors' files hold besides, which RobustBench passes over, and the tensor that it copies."""
    if spec.name.startswith(("Andriushchenko2020", "Kireev2021")):
        return {"model_preact_hl1.1.weight": "conv1.weight", "model_preact_hl1.2.bias": "layer1.0.bn1.bias"}
    return {"conv1.scores": "conv1.weight"} if spec.name.startswith("Diffenderfer2021") else {}
