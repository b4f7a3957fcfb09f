"""Each shim is tried against the libraries as installed, in a fresh interpreter, with warnings as errors."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from hpm_robustbench import robustbench_compat


def python(code: str) -> str:
    """Run code in a fresh interpreter; returns its output, or raises with its traceback."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def test_importing_the_module_imports_none_of_the_libraries():
    loaded = python(
        "import sys, hpm_robustbench.robustbench_compat\n"
        "print({'torch', 'torchvision', 'robustbench', 'pyautoattack'} & set(sys.modules))"
    )
    assert loaded.strip() == "set()"


def test_robustbench_imports_twice_quietly_and_leaves_no_stand_in_behind():
    out = python(
        "import sys\n"
        "from hpm_robustbench.robustbench_compat import import_autoattack, import_robustbench\n"
        "robustbench = import_robustbench()\n"
        "assert import_robustbench() is robustbench\n"
        "package = import_autoattack()\n"
        "assert robustbench.eval.AutoAttack is package.AutoAttack\n"
        "from robustbench.loaders import pkg_resources\n"
        "names = 'helper_files/imagenet_test_image_ids.txt'\n"
        "lines = open(pkg_resources.resource_filename('robustbench.loaders', names)).readlines()\n"
        "print(len(lines), sorted(set(sys.modules) & {'autoattack', 'pkg_resources'}))"
    )
    count, left = out.split(maxsplit=1)
    assert int(count) == 5000
    installed = [name for name in ("autoattack", "pkg_resources") if importlib.util.find_spec(name)]
    assert left.strip() == str(installed)


def test_autoattack_components_come_from_an_installed_package():
    out = python(
        "from hpm_robustbench.robustbench_compat import import_autoattack\n"
        "package = import_autoattack()\n"
        "package.autopgd_base.APGDAttack, package.fab_pt.FABAttack_PT, package.square.SquareAttack\n"
        "print(package.__name__)"
    )
    assert out.strip() == ("autoattack" if importlib.util.find_spec("autoattack") else "pyautoattack")


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A folder on the path of other interpreters, with a package named as the reference implementation is."""
    package = tmp_path / "autoattack"
    package.mkdir()
    for module in ("__init__", "autopgd_base", "fab_pt", "square", "state"):
        (package / f"{module}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_an_installed_autoattack_is_preferred(reference):
    out = python(
        "from hpm_robustbench.robustbench_compat import import_autoattack; print(import_autoattack().__file__)"
    )
    assert out.strip() == str(reference / "autoattack" / "__init__.py")


@pytest.mark.parametrize("known", [True, False])
def test_results_name_the_autoattack_that_made_them(reference, known):
    if known:
        about = reference / "autoattack-0.7.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: autoattack\nVersion: 0.7\n")
    used = python(
        "import json, torch; from hpm_robustbench import planning\n"
        "cpu = torch.device('cpu')\n"
        "print(json.dumps([planning._software(cpu, reads_images=False), planning.environment_of(cpu)]))"
    )
    for told in json.loads(used):
        assert told["autoattack"] == ("0.7" if known else "of unknown version")
        assert "pyautoattack" not in told


def test_torchvision_shim_is_active_only_where_the_import_fails():
    """A CUDA torchvision beside a CPU torch needs it; once it does not, drop the shim (pytorch/vision issue 9085)."""
    needed = "+cpu" in version("torch") and "+cpu" not in version("torchvision")
    if needed:
        with pytest.raises(RuntimeError, match="operator torchvision::nms does not exist"):
            python("import torchvision")
    else:
        python("import torchvision")
    out = python(
        "from hpm_robustbench import robustbench_compat as compat\n"
        "active = []\n"
        "declare = compat._declare_torchvision_operators\n"
        "compat._declare_torchvision_operators = lambda: (active.append(1), declare())\n"
        "torchvision = compat.import_torchvision()\n"
        "assert compat.import_torchvision() is torchvision and torchvision.models.resnet18\n"
        "print(len(active))"
    )
    assert int(out) == needed


@pytest.mark.parametrize(
    ("module", "upstream"),
    [("autoattack", "RobustBench issue 211"), ("pkg_resources", "RobustBench pull request 214")],
)
def test_a_stand_in_is_needed_exactly_where_the_module_is_absent(module, upstream):
    """When RobustBench imports without the stand-in although the module is absent, drop that stand-in."""
    absent = importlib.util.find_spec(module) is None
    code = (
        "from hpm_robustbench import robustbench_compat as compat\n"
        "stand_ins = compat._stand_ins\n"
        "compat._stand_ins = lambda modules: stand_ins(\n"
        f"    {{name: value for name, value in modules.items() if name.partition('.')[0] != {module!r}}})\n"
        "compat.import_robustbench()"
    )
    if absent:
        with pytest.raises(RuntimeError, match=f"No module named '{module}'"):
            python(code)
    else:
        assert python(code) == "", f"{upstream}: the module is installed, so the stand-in must not be needed"


def test_every_silenced_warning_is_raised_by_the_versions_it_stands_for():
    """When one of them is no longer raised, drop its line."""
    out = python(
        "import json, warnings\n"
        "from hpm_robustbench import robustbench_compat as compat\n"
        "compat._IMPORT_TIME_WARNINGS = ()\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    robustbench = compat.import_robustbench()\n"
        "    from robustbench.model_zoo.architectures import xcit\n"
        "print(json.dumps([[str(warning.message) for warning in seen], xcit.__file__]))"
    )
    raised, xcit = json.loads(out)
    old_paths = "timm.models.registry" in Path(xcit).read_text(encoding="utf-8")
    expected = {
        "torch": release("torch") >= (2, 13) and release("timm") < (1, 0, 31),  # which no longer declares them
        "timm": old_paths,  # until RobustBench pull request 210, which no release has
        "pkg_resources": importlib.util.find_spec("pkg_resources") and release("setuptools") >= (67, 5),
    }
    silenced = robustbench_compat._IMPORT_TIME_WARNINGS
    assert len(silenced) == len(expected)
    for pattern in silenced:
        [subject] = [name for name in expected if name in pattern.split("deprecated")[0]]
        assert any(re.match(pattern, message) for message in raised) == bool(expected[subject]), (pattern, raised)


def release(package: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version(package))[:3]))


def test_networks_still_keep_constants_that_stay_behind_on_another_device():
    """When they are buffers, drop ``adopt_tensors`` (RobustBench issue 58 and pull request 61)."""
    robustbench_compat.import_robustbench()
    from robustbench.model_zoo.architectures import bit_rn, dm_rn

    with robustbench_compat.without_cuda_calls():
        networks = [bit_rn.ResNetV2([1, 1, 1, 1], 1, 10), dm_rn.WideResNet(depth=10, width=1)]
    for network in networks:
        assert not copy.deepcopy(network).to("meta").mean.is_meta
        state = network.state_dict().keys()
        robustbench_compat.adopt_tensors(network)
        assert network.to("meta").mean.is_meta
        assert network.state_dict().keys() == state, "checkpoints do not hold them"


def test_a_copy_that_a_network_keeps_on_its_first_gpu_still_stays_there():
    """When it is not kept any more, drop ``_KEPT_COPIES`` (RobustBench issue 58)."""
    robustbench_compat.import_robustbench()
    from robustbench.model_zoo.architectures import dm_rn

    assert "if self.mean_cuda is None" in inspect.getsource(dm_rn.WideResNet.forward)
    network = dm_rn.WideResNet(depth=10, width=1)
    adopted = copy.deepcopy(network)
    robustbench_compat.adopt_tensors(adopted)
    assert torch.equal(adopted.mean_cuda, adopted.mean), "so the first pass on a GPU changes nothing any more"
    network.mean_cuda = network.mean.clone()  # as that pass does
    for one in (network, adopted):
        one.to("meta")
    assert not network.mean_cuda.is_meta
    assert adopted.mean_cuda.is_meta
    assert "mean_cuda" not in adopted.state_dict()


def test_a_mixture_still_leaves_a_part_of_itself_in_training():
    """When ``eval()`` reaches all of it, drop ``leave_training_everywhere``."""
    robustbench_compat.import_robustbench()
    from robustbench.model_zoo.architectures.comp_model import CompositeModel, CompositeModelWrapper

    class Small(CompositeModel):
        def __init__(self):
            nn.Module.__init__(self)
            self.models = nn.ModuleList([nn.Dropout(), nn.Dropout()])
            self.policy_net, self.bn = nn.Dropout(), nn.Dropout()

    mixture = CompositeModelWrapper(Small(), parallel=False).eval()
    assert any(module.training for module in mixture.modules())
    robustbench_compat.leave_training_everywhere(mixture)
    assert not any(module.training for module in mixture.modules())


def test_timm_still_refuses_the_names_under_which_robustbenchs_swins_were_written():
    """When timm reads them, or RobustBench does not rename them any more, drop ``with_newer_timm_names``."""
    robustbench = robustbench_compat.import_robustbench()
    from timm.models.swin_transformer import SwinTransformer

    assert "checkpoint_filter_fn" in inspect.getsource(robustbench.utils.load_model), "RobustBench pull request 166"
    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "num_classes": 5}
    swin = SwinTransformer(**sizes, depths=(1, 2), num_heads=(1, 2))
    older = {
        key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): tensor
        for key, tensor in swin.state_dict().items()
    }
    with pytest.raises(RuntimeError, match=r"layers\.1\.downsample"):
        swin.load_state_dict(older)
    assert robustbench_compat.with_newer_timm_names(older).keys() == swin.state_dict().keys()


def test_a_constructor_still_asks_for_a_gpu_that_need_not_be_there(monkeypatch):
    """When it does not any more, drop ``without_cuda_calls`` (RobustBench pull request 61 left none)."""
    robustbench_compat.import_robustbench()
    from robustbench.model_zoo.architectures.bit_rn import ResNetV2

    assert ".cuda()" in inspect.getsource(ResNetV2.__init__)
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            ResNetV2([1, 1, 1, 1], 1, 10)
    # Another kind of device stands for the GPU, which need not be there.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, *_: tensor.to("meta"))
    assert ResNetV2([1, 1, 1, 1], 1, 10).mean.device.type == "meta"
    with robustbench_compat.without_cuda_calls():
        assert ResNetV2([1, 1, 1, 1], 1, 10).mean.device.type == "cpu"
