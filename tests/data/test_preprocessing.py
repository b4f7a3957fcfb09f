"""Photographs become what RobustBench would make of them, pixel for pixel."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hpm_robustbench.data import open_dataset
from hpm_robustbench.data.preprocessing import Preprocessing
from hpm_robustbench.errors import IntegrityError, InvalidInput, UsageProblem
from hpm_robustbench.pipeline import evaluate
from hpm_robustbench.robustbench_compat import import_robustbench
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

NAMES = ("Res256Crop224", "BicubicRes256Crop224", "Res224", "Crop288")
OF_TIMM = {
    "BicubicRes224Crop224": (224, "bicubic"),
    "BicubicRes248Crop224": (248, "bicubic"),
    "Res224Crop224": (224, "bilinear"),
}
SIZES = ((500, 375), (375, 500), (299, 299), (301, 224), (97, 641), (224, 224), (50, 60), (289, 288), (287, 288))
"""Widths and heights: over and under each side, even and odd differences, narrow ones."""


def photograph(width: int, height: int) -> Image.Image:
    """Something with edges and gradients, so that each kind of interpolation leaves its mark."""
    rng = np.random.default_rng(width * 1000 + height)
    ramp = np.add.outer(np.linspace(0, 128, height), np.linspace(0, 127, width))[..., None]
    return Image.fromarray((ramp + rng.integers(0, 2, (height, width, 3)) * 128).clip(0, 255).astype(np.uint8))


def theirs(name: str):
    import_robustbench()
    from robustbench.data import PREPROCESSINGS
    from torchvision import transforms

    if name in PREPROCESSINGS:
        return PREPROCESSINGS[name]
    size, interpolation = OF_TIMM[name]
    resize = transforms.Resize(size, interpolation=transforms.InterpolationMode(interpolation))
    return transforms.Compose([resize, transforms.CenterCrop(224), transforms.ToTensor()])


def ours(name: str, image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(Preprocessing.parse(name).apply(image), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)


@pytest.mark.parametrize("name", [*NAMES, *OF_TIMM])
def test_the_pixels_are_those_of_robustbench(name):
    for size in SIZES:
        image = photograph(*size)
        assert torch.equal(ours(name, image), theirs(name)(image)), size


@pytest.mark.parametrize("name", [*NAMES, *OF_TIMM])
def test_the_pixels_of_real_photographs_are_those_of_robustbench(name):
    if "HPM_BENCH_REAL_DATA" not in os.environ:
        pytest.skip("HPM_BENCH_REAL_DATA names no folder with real photographs in imagenet_sample/")
    paths = sorted((Path(os.environ["HPM_BENCH_REAL_DATA"]) / "imagenet_sample").glob("*.png"))
    assert paths
    for path in paths:
        image = Image.open(path).convert("RGB")
        assert torch.equal(ours(name, image), theirs(name)(image)), path.name


def test_every_model_names_one_that_is_known_and_robustbench_has_no_other():
    import_robustbench()
    from robustbench.data import PREPROCESSINGS

    assert {name for name in PREPROCESSINGS if name} == set(NAMES)
    named = {spec.preprocessing for spec in robustbench_specs() if spec.dataset == "imagenet"}
    assert named == {*NAMES, *OF_TIMM}
    assert {spec.preprocessing for spec in robustbench_specs() if spec.dataset != "imagenet"} == {None}


@pytest.mark.parametrize(
    "name", ["", "res256", "Res0", "Bicubic", "BicubicCrop224", "Crop224Res256", "Res256 ", "timm"]
)
def test_another_name_is_refused(name):
    with pytest.raises(UsageProblem, match="write it like Res256Crop224"):
        Preprocessing.parse(name)


def write(folder: Path, *images: Image.Image) -> Path:
    """A folder of ImageNet's 1000 classes, of which the first few have an image."""
    for label in range(1000):
        (folder / f"{label:04d}").mkdir(parents=True)
    for label, image in enumerate(images):
        image.save(folder / f"{label:04d}" / "0.png")
    return folder


def test_a_folder_of_originals_is_served_as_the_model_wants_it(tmp_path):
    images = [photograph(400, 300), photograph(300, 400), photograph(224, 224)]
    write(tmp_path / "val", *images)
    seen = set()
    for name in NAMES:
        source = open_dataset("imagenet", data_dir=tmp_path, preprocessing=name)
        side = Preprocessing.parse(name).side
        assert source.dataset.image_shape == (3, side, side)
        examples = source.test()
        for image, label in zip(examples.images, examples.labels.tolist(), strict=True):
            assert torch.equal(image, theirs(name)(images[label]))
        seen.add(examples.fingerprint)
    assert len(seen) == len(NAMES), "images that were made otherwise must not pass for the same"


def test_only_what_is_used_is_read(tmp_path):
    write(tmp_path, *(photograph(300, 300) for _ in range(4)))
    source = open_dataset("imagenet", data=tmp_path, preprocessing="Crop288")
    [kept, *others] = source.test().labels.tolist()
    for label in others:
        (tmp_path / f"{label:04d}" / "0.png").write_bytes(b"no image")
    assert source.test(1).labels.tolist() == [kept]
    with pytest.raises(IntegrityError, match=r"0\.png"):
        source.test()


def test_images_that_are_ready_are_taken_as_they_are(tmp_path):
    images = [photograph(224, 224), photograph(224, 224)]
    write(tmp_path, *images)
    found = open_dataset("imagenet", data=tmp_path, preprocessing="Res256Crop224").test().images
    assert (found == theirs("Res224")(images[0])).flatten(1).all(dim=1).any()


def test_without_a_preprocessing_an_original_is_refused(tmp_path):
    write(tmp_path, photograph(300, 224))
    with pytest.raises(InvalidInput, match=r"224 high, 300 wide.*nothing is resized here"):
        open_dataset("imagenet", data=tmp_path).test()


def test_a_thread_of_pixels_is_refused(tmp_path):
    write(tmp_path, Image.new("RGB", (1, 4000)))
    with pytest.raises(IntegrityError, match="1 x 4000 would become 256 x 1024000"):
        open_dataset("imagenet", data=tmp_path, preprocessing="Res256Crop224").test()


def test_a_card_says_how_its_images_were_made(tmp_path):
    """Every image gets the same answer, so the only one that is evaluated needs no attack."""
    for split in ("train", "test"):
        for label in range(4):
            (tmp_path / split / f"{label}").mkdir(parents=True)
            if split == "train" or label == 3:
                Image.new("RGB", (12, 9), (9 if split == "train" else 0,) * 3).save(
                    tmp_path / split / f"{label}" / "0.png"
                )
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor([2.0, 0.0, 0.0, 0.0])
    threat, weights = ThreatModel.parse("Linf", "1/255"), WeightsRef("memory", ())
    spec = ModelSpec("Small", "photos", threat, "python:memory:model", weights, preprocessing="Res4Crop4")
    options = RunOptions(batchings=(Batching.SOLO,), data=tmp_path, output=tmp_path / "out")
    card = evaluate(spec, options, model=model).card
    assert card.clean_acc == "0.00"
    assert card.hpm_bench.notes["images"] == "Preprocessed as Res4Crop4, unless they had that size already."
