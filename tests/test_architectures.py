from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpm_robustbench.architectures import build
from hpm_robustbench.errors import InvalidInput, UnknownName, UsageProblem
from hpm_robustbench.robustbench_compat import without_cuda_calls
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

ZOO = {(spec.dataset, spec.name): spec for spec in robustbench_specs() if spec.threat.name == "Linf"}
FACTORIES = """
import torch

def small():
    return torch.nn.Linear(2, 2)

class Loud(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.mean = torch.ones(2).cuda()
        self.child = torch.nn.Dropout()
        print("built")

    def train(self, mode=True):
        self.training = mode
        return self

def loud():
    return Loud()

def raises():
    raise ValueError("no pretrained weights here")

def leaves():
    raise SystemExit(3)

def number():
    return 3

constant = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(FACTORIES)
    (tmp_path / "script_nets.py").write_text("import sys; sys.exit('usage: nets FILE')")
    (tmp_path / "broken_nets.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)

    def spec(factory: str) -> ModelSpec:
        weights = WeightsRef("file", (str(Path("x.pt")),))
        return ModelSpec("Own", "cifar10", ThreatModel.parse("Linf", "8/255"), factory, weights)

    return spec


def test_a_function_of_your_own(own):
    before = torch.get_rng_state()
    network = build(own("python:own_nets:small"))
    assert isinstance(network, torch.nn.Linear) and not network.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_is_built_silently_wholly_in_eval_mode_and_with_all_its_tensors(own, capsys):
    with without_cuda_calls():
        network = build(own("python:own_nets:loud"))
    assert capsys.readouterr().out == ""
    assert not any(module.training for module in network.modules())
    assert "mean" not in network.state_dict()
    assert network.to("meta").mean.is_meta


def test_cuda_calls_are_only_left_out_where_they_are_told_to_be():
    original = torch.Tensor.cuda
    with without_cuda_calls():
        assert torch.ones(1).cuda().device.type in ("cpu", "cuda")
    assert torch.Tensor.cuda is original


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("python:no_such_nets:small", UsageProblem, "No module named 'no_such_nets'"),
        ("python:broken_nets:small", UsageProblem, "a_module_that_nobody_has"),
        ("python:own_nets:smal", UnknownName, "did you mean small"),
        ("python:own_nets:constant", UnknownName, "function of own_nets"),
        ("python:own_nets:raises", InvalidInput, "ValueError: no pretrained weights here"),
        ("python:own_nets:leaves", InvalidInput, "SystemExit: 3"),
        ("python:script_nets:small", UsageProblem, "SystemExit: usage: nets FILE"),
        ("python:own_nets:number", InvalidInput, "got a int"),
        ("robustbench:cifar10/Linf/Carmon2019", UnknownName, "cifar10/Linf/Carmon2019Unlabeled"),
        ("hub:someone/model", UnknownName, "kind of factory"),
    ],
)
def test_factories_that_do_not_work_say_why(own, factory, error, message):
    with pytest.raises(error, match=message):
        build(own(factory))


@pytest.mark.parametrize(
    ("dataset", "name", "parameters"),
    [
        ("cifar10", "Wong2020Fast", 11_171_146),
        ("cifar10", "Carmon2019Unlabeled", 38_119_866),
        ("cifar10", "Debenedetti2022Light_XCiT-S12", 25_872_154),
        ("imagenet", "Standard_R50", 25_557_032),
    ],
)
def test_robustbench_networks_are_built_without_a_download(dataset, name, parameters, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = build(ZOO[dataset, name])
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters == ZOO[dataset, name].n_params
    assert not any(module.training for module in network.modules())
    assert list(tmp_path.iterdir()) == []


def test_the_network_that_stands_in_for_standard_r50_is_torchvisions():
    from hpm_robustbench.robustbench_compat import import_torchvision

    theirs = import_torchvision().models.resnet50(weights=None).state_dict()
    ours = build(ZOO["imagenet", "Standard_R50"]).model.state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}
