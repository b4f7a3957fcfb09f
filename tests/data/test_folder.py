from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpm_robustbench.data import open_dataset
from hpm_robustbench.errors import IntegrityError, InvalidInput
from hpm_robustbench.threat import Dataset

RNG = np.random.default_rng(0)


def write_images(root: Path, counts: dict[str, int], shape: tuple[int, ...] = (6, 5, 3)) -> dict[bytes, str]:
    """Write random images into class folders; returns pixels -> class."""
    written = {}
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = RNG.integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
            written[pixels.tobytes()] = name
    return written


def test_every_image_comes_back_under_its_class(tmp_path):
    written = write_images(tmp_path, {"cat": 4, "ant": 3, "bee": 5})
    source = open_dataset("animals", data=tmp_path)
    assert source.dataset == Dataset("animals", 3, (3, 6, 5))
    assert source.train() is None
    examples = source.test()
    assert examples.images.is_contiguous()
    pixels = (examples.images * 255).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    found = {
        image.tobytes(): ("ant", "bee", "cat")[label] for image, label in zip(pixels, examples.labels, strict=True)
    }
    assert found == written


def test_the_order_is_fixed_and_mixes_the_classes(tmp_path):
    write_images(tmp_path, {"a": 8, "b": 8})
    source = open_dataset("letters", data=tmp_path)
    assert source.test().labels.tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1]
    assert source.test(4).fingerprint == source.test().head(4).fingerprint


def test_train_and_test_folders_are_splits(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 1})
    write_images(tmp_path / "val", {"a": 1, "b": 3})
    source = open_dataset("letters", data=tmp_path)
    assert sorted(source.test().labels.tolist()) == [0, 1, 1, 1]
    assert sorted(source.train().labels.tolist()) == [0, 0, 1]
    assert source.count_train() == 3


def test_training_classes_must_be_the_test_classes(tmp_path):
    write_images(tmp_path / "train", {"a": 1, "c": 1})
    write_images(tmp_path / "test", {"a": 1, "b": 1})
    with pytest.raises(InvalidInput, match="the same class folders"):
        open_dataset("letters", data=tmp_path)


def test_grey_images_have_one_channel_and_become_colour_where_the_first_is(tmp_path):
    write_images(tmp_path / "grey", {"a": 2, "b": 1}, shape=(6, 5))
    assert open_dataset("scans", data=tmp_path / "grey").test().images.shape == (3, 1, 6, 5)
    grey = RNG.integers(0, 256, (32, 32), np.uint8)
    for name in map(str, range(10)):
        (tmp_path / "ten" / name).mkdir(parents=True)
    Image.fromarray(grey).save(tmp_path / "ten" / "3" / "0.png")
    images = open_dataset("cifar10", data=tmp_path / "ten").test().images
    assert np.array_equal((images * 255).round().numpy()[0], np.stack([grey] * 3))


def test_a_colour_image_among_grey_ones_is_refused(tmp_path):
    write_images(tmp_path, {str(digit): 1 for digit in range(10)}, shape=(8, 8, 3))
    with pytest.raises(InvalidInput, match=r"8 wide and grey; got .*mode RGB"):
        open_dataset("digits", data=tmp_path).test()


def test_images_of_two_sizes_are_refused_by_name(tmp_path):
    write_images(tmp_path, {"a": 3})
    Image.new("RGB", (9, 6)).save(tmp_path / "a" / "odd.png")
    with pytest.raises(InvalidInput, match="nothing is resized here"):
        open_dataset("letters", data=tmp_path).test()


def test_sixteen_bit_images_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(InvalidInput, match="8-bit grey or colour"):
        open_dataset("letters", data=tmp_path)


@pytest.mark.parametrize("folders", [[], ["a", "b"]])
def test_a_folder_without_images_is_refused(tmp_path, folders):
    for name in folders:
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("no images here")
    with pytest.raises(InvalidInput, match="in one folder per class"):
        open_dataset("letters", data=tmp_path)


def test_a_known_name_needs_all_its_class_folders(tmp_path):
    write_images(tmp_path, {"a": 1, "b": 1}, shape=(32, 32, 3))
    with pytest.raises(InvalidInput, match=r"10 class folders .* as many as cifar10 has classes; got 2"):
        open_dataset("cifar10", data=tmp_path)


def test_hidden_and_other_files_are_no_images(tmp_path):
    write_images(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "a" / "readme.txt").write_text("hello")
    (tmp_path / ".cache").mkdir()
    assert len(open_dataset("letters", data=tmp_path).test()) == 2


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "PNG signature"]
)
def test_a_foreign_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a whole image .* at .*bad\.png"):
        open_dataset("letters", data=tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".ppm"])
def test_a_truncated_image_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / "a" / f"cut{suffix}"
    path.parent.mkdir()
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=rf"cut\{suffix}"):
        open_dataset("letters", data=tmp_path).test()


def test_imagenet_lies_in_val_and_its_training_images_beside_it(tmp_path, caplog):
    for label in range(1000):
        (tmp_path / "val" / f"n{label:08d}").mkdir(parents=True)
    Image.new("RGB", (224, 224), (255, 0, 0)).save(tmp_path / "val" / "n00000417" / "one.JPEG")
    examples = open_dataset("imagenet", data_dir=tmp_path).test()
    assert examples.labels.tolist() == [417]
    assert examples.images.shape == (1, 3, 224, 224)
    with pytest.raises(InvalidInput, match="between 1 and 1 examples"):
        open_dataset("imagenet", data_dir=tmp_path).test(2)
    assert open_dataset("imagenet", data_dir=tmp_path).train() is None
    for label in range(1000):
        (tmp_path / "train" / f"n{label:08d}").mkdir(parents=True)
    Image.new("RGB", (224, 224), (0, 255, 0)).save(tmp_path / "train" / "n00000003" / "two.JPEG")
    source = open_dataset("imagenet", data_dir=tmp_path)
    assert (source.test().labels.tolist(), source.train().labels.tolist()) == ([417], [3])
    (tmp_path / "test").mkdir()
    (tmp_path / "t10k-images-idx3-ubyte").touch()
    assert open_dataset("imagenet", data_dir=tmp_path).train().labels.tolist() == [3], "what else lies there is not it"
    (tmp_path / "train" / "unpacking").mkdir()
    with caplog.at_level("INFO"):
        assert open_dataset("imagenet", data_dir=tmp_path).train() is None
    assert "train is left out: its class folders are not those of" in caplog.text


@pytest.mark.skipif("HPM_BENCH_REAL_DATA" not in os.environ, reason="HPM_BENCH_REAL_DATA is not set")
def test_real_photographs(tmp_path):
    (tmp_path / "all").symlink_to(Path(os.environ["HPM_BENCH_REAL_DATA"]) / "imagenet_sample")
    source = open_dataset("photographs", data=tmp_path)
    assert source.dataset == Dataset("photographs", 1, (3, 299, 299))
    assert source.test(3).images.shape == (3, 3, 299, 299)
