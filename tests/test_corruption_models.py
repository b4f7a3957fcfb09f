"""RobustBench's corruption entries: loaded as RobustBench loads them, and evaluated from the command line's road."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hpm_robustbench
from hpm_robustbench.architectures import build
from hpm_robustbench.case import prepare
from hpm_robustbench.data import open_dataset
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hpm.backbone import split
from hpm_robustbench.pipeline import evaluate
from hpm_robustbench.request.models import find_spec
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, Corruptions
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

SMALL = ["Hendrycks2020AugMix_WRN", "Hendrycks2020AugMix_ResNeXt", "Modas2021PRIMEResNet18"]


def write_checkpoint(name: str, folder: Path) -> torch.nn.Module:
    """Put random weights where RobustBench would have put the published ones, wrapped as authors wrap them."""
    spec = find_spec(name, "cifar10", "corruptions")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(spec)
        for parameter in network.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
    path = folder / "cifar10" / "corruptions" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    return network


@pytest.mark.parametrize("name", SMALL)
def test_an_entry_is_loaded_with_robustbenchs_arguments_and_its_head_is_known(name: str, tmp_path: Path) -> None:
    expected = write_checkpoint(name, tmp_path)
    model = hpm_robustbench.load_model(name, tmp_path, "cifar10", "corruptions")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))
    parts = split(model, (3, 32, 32), 10, find_spec(name, "cifar10", "corruptions").head.path)
    assert parts.fc.weight.shape[0] == 10


def test_an_entry_is_not_on_another_track() -> None:
    with pytest.raises(UsageProblem, match="cifar10 corruptions"):
        hpm_robustbench.load_model("Hendrycks2020AugMix_WRN", dataset="cifar10", threat_model="Linf")


def test_an_entry_meets_a_corrupted_set(tmp_path: Path) -> None:
    network = write_checkpoint("Hendrycks2020AugMix_WRN", tmp_path / "models")
    rng = np.random.default_rng(0)
    labels = np.arange(4, dtype=np.uint8)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for kind in Corruptions.kinds:
        np.save(folder / f"{kind}.npy", rng.integers(0, 256, (20, 32, 32, 3), np.uint8))
    images = rng.integers(0, 256, (44, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "clean.npz", x_test=images[:4], y_test=labels, x_train=images[4:], y_train=np.arange(40) % 10)
    spec = find_spec("Hendrycks2020AugMix_WRN", threat_model="corruptions")
    options = RunOptions(
        batchings=(Batching.SOLO,),
        data=tmp_path / "clean.npz",
        data_dir=tmp_path,
        model_dir=tmp_path / "models",
        output=tmp_path,
    )
    card = evaluate(spec, options).card
    fog = torch.from_numpy(np.load(folder / "fog.npy")).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        right = [int((network(part).argmax(1) == torch.arange(4)).sum()) for part in fog.split(4)]
    assert card.hpm_bench.evaluations[0].right["fog"] == right
    assert card.hpm_bench.published.corruptions_acc == "88.82"
    assert (card.architecture, card.venue) == (spec.paper.architecture, "ICLR 2020")


def write_classes(world, split: Path, labels: np.ndarray, brightness: float = 1) -> None:
    for row, (pixels, label) in enumerate(zip(world.images_of(labels), labels, strict=True)):
        folder = split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((brightness * pixels[..., 0]).astype(np.uint8)).save(folder / f"{row}.png")


def test_clean_images_beside_the_corrupted_ones_are_used(world, tmp_path: Path) -> None:
    write_classes(world, tmp_path / "test", np.arange(10))
    write_classes(world, tmp_path / "train", np.arange(20) % 10, brightness=0.9)
    clean = open_dataset("pixels", data=tmp_path).test()
    folder = world.write_set(tmp_path / "pixels-C", clean.labels.numpy())
    weights = WeightsRef("memory", ())
    spec = ModelSpec("Brightest", "pixels", Corruptions(), "python:memory:model", weights)
    options = RunOptions(batchings=(Batching.SOLO,), data=tmp_path, output=tmp_path / "out")
    case = prepare(spec, options, model=world.classifier())
    assert torch.equal(case.test.images, clean.images)
    assert "20 train images" in case.wrapped.prototypes_from
    assert case.corrupted is not None and case.corrupted.folder == folder

    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UsageProblem, match="the clean images of pixels beside the corrupted ones"):
        prepare(spec, options, model=world.classifier())


def test_images_in_folders_are_evaluated_like_arrays(world, tmp_path: Path) -> None:
    """As ImageNet-C lies there."""
    write_classes(world, tmp_path / "test", world.LABELS)
    write_classes(world, tmp_path / "train", np.arange(20) % 10, brightness=0.9)
    for kind, severity in world.EVERY:
        seen, moved = world.LABELS.copy(), world.n_moved(kind, severity)
        seen[:moved] = (seen[:moved] + 1) % 10
        for row, (pixels, label) in enumerate(zip(world.images_of(seen), world.LABELS, strict=True)):
            folder = tmp_path / "pixels-C" / kind / str(severity) / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[..., 0]).save(folder / f"{row}.png")
    spec = ModelSpec("Brightest", "pixels", Corruptions(), "python:memory:model", WeightsRef("memory", ()))
    options = RunOptions(batchings=(Batching.SOLO,), data=tmp_path, output=tmp_path / "out")
    card = evaluate(spec, options, model=world.classifier()).card
    assert card.hpm_bench.evaluations[0].right == world.expected_right()


def test_a_model_of_ones_own_in_a_few_lines(world, tmp_path: Path) -> None:
    source = world.clean_source()
    test, train = source.test(), source.train()
    outcome = hpm_robustbench.benchmark(
        world.classifier(),
        (test.images, test.labels),
        (train.images, train.labels),
        name="Mine",
        dataset="pixels",
        threat_model="corruptions",
        batchings=(Batching.SOLO,),
        corruptions_data_dir=world.write_set(tmp_path / "corrupted"),
        n_ex=world.N,
        output=tmp_path,
    )
    assert outcome.card_path == tmp_path / "model_cards" / "pixels" / "corruptions" / "Mine.json"
    assert outcome.card.hpm_bench.evaluations[0].right == world.expected_right()
