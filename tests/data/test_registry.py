from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hpm_robustbench import data
from hpm_robustbench.data import open_dataset
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.errors import UnknownName, UsageProblem


def test_what_is_known_is_read_without_torch():
    code = "import sys, hpm_robustbench.data.known; print({'torch', 'numpy', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_known_datasets_are_listed_under_their_names():
    assert {name: (known.n_classes, known.image_shape) for name, known in KNOWN.items()} == {
        "digits": (10, (1, 8, 8)),
        "mnist": (10, (1, 28, 28)),
        "cifar10": (10, (3, 32, 32)),
        "cifar100": (100, (3, 32, 32)),
        "imagenet": (1000, (3, 224, 224)),
    }
    assert all(known.name == name for name, known in KNOWN.items())


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_opening_reads_nothing(name, tmp_path):
    assert open_dataset(name, data_dir=tmp_path).dataset == KNOWN[name]
    assert list(tmp_path.iterdir()) == []


def test_the_package_offers_its_names_and_no_others():
    names = [
        "CorruptedSource",
        "DataSource",
        "ExampleSet",
        "corrupted_folder",
        "holds_clean",
        "open_corrupted",
        "open_dataset",
        "select",
    ]
    assert [getattr(data, name).__name__ for name in data.__all__] == names
    with pytest.raises(AttributeError, match="no attribute 'load_dataset'"):
        data.load_dataset  # noqa: B018


@pytest.mark.parametrize(("name", "near"), [("cifar-10", "cifar10"), ("MNIST", "mnist"), ("digit", "digits")])
def test_an_unknown_dataset_shows_the_nearest_names_and_the_way_out(name, near):
    with pytest.raises(UnknownName, match=f"did you mean {near}.*--data PATH, which makes any name usable") as caught:
        open_dataset(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["../digits", "", "a/b", "digits\n", ".hidden"])
def test_an_unsafe_name_is_refused_even_with_data(name, tmp_path):
    with pytest.raises(UsageProblem, match="a dataset name of letters"):
        open_dataset(name, data=tmp_path)


def test_data_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageProblem, match="which is not there, or may not be read"):
        open_dataset("flowers", data=tmp_path / "nowhere.npz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["set.npz", "folder"])
def test_data_that_may_not_be_read_is_refused(tmp_path, name):
    path = tmp_path / name
    path.mkdir(mode=0) if name == "folder" else path.touch(mode=0)
    with pytest.raises(UsageProblem, match="which is not there, or may not be read"):
        open_dataset("flowers", data=path)


def test_data_of_another_kind_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("1,2,3")
    with pytest.raises(UsageProblem, match="which is a file of another kind"):
        open_dataset("flowers", data=tmp_path / "set.csv")


@pytest.mark.parametrize(("name", "needed"), [("mnist", "t10k-images-idx3-ubyte"), ("imagenet", "validation images")])
def test_images_that_cannot_be_downloaded_say_what_to_put_where(name, needed, tmp_path):
    with pytest.raises(UsageProblem, match=f"{needed}.*{tmp_path}.*--data"):
        open_dataset(name, data_dir=tmp_path)
