"""Checkpoints that are already here: RobustBench's folder, one's own files, the embedded model."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hpm_robustbench.architectures import build
from hpm_robustbench.errors import IntegrityError, InvalidInput, UsageProblem
from hpm_robustbench.state_dict import load_into, read_state_dict
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.weights import STRICT, load_weights, locate
from hpm_robustbench.weights.converted import read_tensors
from hpm_robustbench.weights.transfer import Partial
from hpm_robustbench.weights.trust import measure
from hpm_robustbench.zoo.builtin import builtin_specs
from hpm_robustbench.zoo.from_file import weights_from_text
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

LINF = {(spec.dataset, spec.name): spec for spec in robustbench_specs() if spec.threat.name == "Linf"}
WONG = LINF["cifar10", "Wong2020Fast"]
CHEN = LINF["cifar10", "Chen2020Adversarial"]
STATE = {"weight": torch.eye(2), "bias": torch.ones(2)}


def random_state(network: torch.nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for key, tensor in network.state_dict().items()
    }


class Never:
    def fetch(self, locator: str, partial: Partial) -> None:
        raise AssertionError(f"{locator} must not be fetched")


def paths(*arguments) -> list[Path]:
    return [original.path for original in locate(*arguments)]


def test_another_budget_and_name_use_the_same_file(tmp_path, torch_bytes):
    renamed = replace(WONG, name="Wong2020Fast_eps4-255", threat=ThreatModel.parse("Linf", "4/255"))
    cached = tmp_path / "cifar10/Linf/Wong2020Fast.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(torch_bytes())
    assert paths(renamed, tmp_path, Never()) == [cached]


def test_a_broken_file_already_there_is_named_and_left_alone(tmp_path):
    cached = tmp_path / "cifar10/Linf/Wong2020Fast.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"<html>Quota exceeded</html>")
    with pytest.raises(IntegrityError, match=r"a web page.*remove that file"):
        load_weights(WONG, tmp_path, Never())
    assert cached.read_bytes() == b"<html>Quota exceeded</html>"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_robustbenchs_own_folder_is_used_as_it_is(prefix, tmp_path):
    state = random_state(build(WONG))
    cached = tmp_path / WONG.weights.cache
    cached.parent.mkdir(parents=True)
    torch.save({"state_dict": {f"{prefix}{key}": tensor for key, tensor in state.items()}}, cached)
    model, sha256 = load_weights(WONG, tmp_path, Never())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert sha256 == (hashlib.sha256(cached.read_bytes()).hexdigest(),)
    assert not model.training


def test_an_ensemble_in_several_files(tmp_path):
    folder = tmp_path / "cifar10/Linf"
    folder.mkdir(parents=True)
    states = [random_state(member, seed) for seed, member in enumerate(build(CHEN).models)]
    for i, state in enumerate(states):
        torch.save({"state_dict": state}, folder / f"Chen2020Adversarial.pt_m{i}.pt")
    model, sha256 = load_weights(CHEN, tmp_path, Never())
    for member, state in zip(model.models, states, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in member.state_dict().items())
    assert len(sha256) == 3


def test_several_files_for_one_network(tmp_path, torch_bytes):
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path in paths:
        path.write_bytes(torch_bytes())
    with pytest.raises(InvalidInput, match="a network of 2 parts"):
        load_weights(replace(WONG, weights=WeightsRef("file", tuple(map(str, paths)))), tmp_path)


class Mixed(torch.nn.Module):
    """Two networks and a policy with its own normalisation, as RobustBench's Bai2023Improving is built."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(4, 2)])
        self.policy, self.norm = torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1, affine=False)


PARTS = ("nets.0", "nets.1", (("bn", "norm"), ("model", "policy")))


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mixed_nets", types.SimpleNamespace(Mixed=Mixed))
    source = Mixed()
    for net in (source.nets[0], source.nets[1], source.policy):
        torch.nn.init.normal_(net.weight)
    source.norm.running_mean.fill_(3.0)
    contents = [
        {"state_dict": {f"module.{key}": tensor for key, tensor in source.nets[0].state_dict().items()}},
        source.nets[1].state_dict(),
        {"model": source.policy.state_dict(), "bn": source.norm.state_dict()},
    ]
    for i, content in enumerate(contents):
        torch.save(content, tmp_path / f"{i}.pt")
    files = tuple(str(tmp_path / f"{i}.pt") for i in range(3))
    return source, replace(WONG, factory="python:mixed_nets:Mixed", weights=WeightsRef("file", files, parts=PARTS))


def test_a_mixture_in_several_files_of_different_networks(mixed, tmp_path):
    source, spec = mixed
    model = load_weights(spec, tmp_path).model
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_a_mixture_whose_files_are_not_all_there_or_in_another_order(mixed, tmp_path):
    _, spec = mixed
    files = spec.weights.locators
    with pytest.raises(InvalidInput, match=r"2 parts.*a Mixed of 3.*give 3 files, separated by commas"):
        load_weights(replace(spec, weights=WeightsRef("file", files[:2], parts=PARTS)), tmp_path)
    with pytest.raises(IntegrityError, match="of another shape"):
        load_weights(replace(spec, weights=WeightsRef("file", (files[1], files[0], files[2]), parts=PARTS)), tmp_path)


def test_the_files_of_a_mixture_are_named_on_one_line(mixed, tmp_path):
    source, spec = mixed
    named = weights_from_text(",".join(spec.weights.locators))
    model = load_weights(replace(spec, weights=named.read_like(spec.weights)), tmp_path).model
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_the_policys_normalisation_may_not_be_missing(mixed, tmp_path):
    source, spec = mixed
    torch.save({"model": source.policy.state_dict()}, tmp_path / "2.pt")
    with pytest.raises(IntegrityError, match="missing"):
        load_weights(spec, tmp_path)


def test_files_that_leave_something_learned_random_are_refused(mixed, tmp_path):
    _, spec = mixed
    files = spec.weights.locators
    with pytest.raises(IntegrityError, match=r"none for policy\.weight, policy\.bias"):
        load_weights(replace(spec, weights=WeightsRef("file", files[:2], parts=PARTS[:2])), tmp_path)


def test_every_mixture_says_what_its_files_hold():
    mixtures = [spec for spec in robustbench_specs() if spec.name.startswith("Bai202")]
    assert [len(spec.weights.parts) for spec in mixtures] == [len(spec.weights.locators) for spec in mixtures]
    assert len(mixtures) == 6


def test_a_normalised_network_takes_the_bare_networks_weights(tmp_path, monkeypatch):
    """As for RobustBench's ImageNet models: the file knows nothing of the normalisation in front."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = LINF["imagenet", "Standard_R50"]
    state = random_state(build(spec).model)
    cached = tmp_path / "hub/checkpoints/resnet50-0676ba61.pth"
    cached.parent.mkdir(parents=True)
    torch.save(state, cached)
    model = load_weights(spec, tmp_path, Never()).model
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.model.state_dict().items())
    assert torch.allclose(model.normalize.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_safetensors_beside_the_original_go_first(tmp_path, torch_bytes):
    original = tmp_path / WONG.weights.cache
    original.parent.mkdir(parents=True)
    original.write_bytes(torch_bytes())
    converted = original.with_suffix(".safetensors")
    safetensors.torch.save_file(STATE, converted)
    assert paths(WONG, tmp_path, Never()) == [converted]
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    pinned = replace(WONG, weights=replace(WONG.weights, sha256=(sha256,)))
    assert paths(pinned, tmp_path, Never()) == [original]


def own_file(path: Path, *sha256: str) -> ModelSpec:
    reference = WeightsRef("file", (str(path),), sha256)
    return ModelSpec("Own", "digits", ThreatModel.parse("Linf", "0.1"), "python:torch.nn:Identity", reference)


def test_a_known_sha256_must_match(tmp_path, torch_bytes):
    path = tmp_path / "own.pt"
    path.write_bytes(torch_bytes())
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    assert paths(own_file(path, good), tmp_path) == [path]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match=f"wanted sha256 {good}") as caught:
        locate(own_file(path, good), tmp_path)
    assert caught.value.exit_code == 4


def test_a_local_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageProblem, match=r"the weights of Own at .*absent\.pt"):
        locate(own_file(tmp_path / "absent.pt"), tmp_path)


def test_the_embedded_model_needs_no_network(tmp_path):
    [spec] = builtin_specs()
    model, sha256 = load_weights(spec, tmp_path, Never())
    assert sha256 == spec.weights.sha256
    with torch.no_grad():
        logits = model(torch.zeros(1, 1, 8, 8))
    assert logits.shape == (1, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def real():
    """The folder of real checkpoints, and the module that knows their architectures."""
    if "HPM_BENCH_REAL_DATA" not in os.environ:
        pytest.skip("HPM_BENCH_REAL_DATA names no folder of real checkpoints")
    folder = Path(os.environ["HPM_BENCH_REAL_DATA"])
    spec = importlib.util.spec_from_file_location("real_models", folder / "models.py")
    assert spec is not None and spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    return folder / "weights", models


REAL = (
    "cifar_cnn_a_adv",
    "cifar_resnet20_plain",
    "cifar_resnet2b_linf2",
    "cifar_resnet4b_linf2",
    "cifar_resnet56_plain",
    "mnist_lenet5_adv",
    "mnist_lenet5_plain",
)


@pytest.mark.parametrize("name", REAL)
def test_real_checkpoints_load_as_their_makers_load_them(name, real, tmp_path):
    folder, models = real
    builder, file, _ = models.MODELS[name]
    ours, theirs = builder(), models.load(name).net.state_dict()
    load_into(ours, read_tensors(folder / file, measure(folder / file), tmp_path, STRICT), file)
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.state_dict().items())


def test_a_real_checkpoint_of_another_architecture_is_refused(real):
    folder, models = real
    resnet20 = models.MODELS["cifar_resnet20_plain"][0]()
    with pytest.raises(IntegrityError, match=r"weights for CifarResNet in a file; got .* unexpected \(layer1\.3"):
        load_into(resnet20, read_state_dict(folder / "resnet56-4bfd9763.th"), "a file")
