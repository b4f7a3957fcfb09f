"""Corrupted sets in their official layouts, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_arrays import HEADERS, array_file
from PIL import Image

from hpm_robustbench.data import ExampleSet, open_corrupted
from hpm_robustbench.data.corrupted import SETS
from hpm_robustbench.data.folder import open_folder
from hpm_robustbench.data.pixels import images_from_array
from hpm_robustbench.errors import HpmBenchError, IntegrityError, InvalidInput, UnknownName, UsageProblem
from hpm_robustbench.threat import Corruptions, Dataset

N = 6
CIFAR = Dataset("cifar10", 10, (3, 32, 32))
SMALL = Dataset("imagenet", 3, (3, 5, 5))
LABELS = np.array([3, 1, 4, 1, 5, 9], np.uint8)
RNG = np.random.default_rng(0)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Six images under everything, as CIFAR-10-C has 10,000."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(LABELS, 5))
    for kind in Corruptions.kinds:
        np.save(folder / f"{kind}.npy", RNG.integers(0, 256, (5 * N, 32, 32, 3), np.uint8))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two images of each of three classes, as ImageNet-C has 50 of 1,000."""
    folder = tmp_path / "ImageNet-C"
    for kind in Corruptions.kinds:
        for severity in Corruptions.severities:
            for number in range(N):
                write(folder / kind / str(severity) / f"n0{number % 3}" / f"{number}.JPEG")
    return folder


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (5, 5, 3), np.uint8)).save(path, format="PNG")


def test_the_fifteen_corruptions_are_those_that_robustbench_averages_over() -> None:
    from hpm_robustbench.robustbench_compat import import_robustbench

    import_robustbench()
    from robustbench.data import CORRUPTIONS

    assert set(Corruptions.kinds) == set(CORRUPTIONS)
    assert len(Corruptions.kinds) == 15


def test_the_sets_lie_where_robustbench_looks_for_them() -> None:
    from hpm_robustbench.robustbench_compat import import_robustbench

    import_robustbench()
    from robustbench.data import CORRUPTIONS_DIR_NAMES, ZENODO_CORRUPTIONS_LINKS
    from robustbench.model_zoo.enums import ThreatModel

    theirs = {dataset.value: names[ThreatModel.corruptions] for dataset, names in CORRUPTIONS_DIR_NAMES.items()}
    assert {name: folder for name, (folder, _) in SETS.items()} == theirs
    assert all(SETS[dataset.value][1].endswith(record) for dataset, (record, _) in ZENODO_CORRUPTIONS_LINKS.items())


@pytest.mark.parametrize("place", ["set", "parent"])
def test_every_row_of_every_severity_is_where_the_official_layout_has_it(arrays: Path, place: str) -> None:
    source = open_corrupted(CIFAR, [arrays if place == "set" else arrays.parent])
    assert len(source) == N
    stored = np.load(arrays / "fog.npy")
    for severity in Corruptions.severities:
        examples = source.take("fog", severity, [4, 0])
        block = stored[(severity - 1) * N : severity * N]
        assert torch.equal(examples.images, images_from_array(block[[4, 0]], CIFAR.image_shape))
        assert examples.labels.tolist() == [5, 3]


def test_robustbench_reads_the_same_images_from_a_set_of_official_size(tmp_path: Path) -> None:
    from hpm_robustbench.robustbench_compat import import_robustbench

    import_robustbench()
    from robustbench.data import load_corruptions_cifar
    from robustbench.model_zoo.enums import BenchmarkDataset

    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(RNG.integers(0, 10, 10_000, np.uint8), 5))
    # Mostly a hole on disk.
    array = np.lib.format.open_memmap(folder / "fog.npy", "w+", np.uint8, (50_000, 32, 32, 3))
    for severity in Corruptions.severities:
        array[(severity - 1) * 10_000 :][:4] = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)
    array.flush()
    for kind in set(Corruptions.kinds) - {"fog"}:
        (folder / f"{kind}.npy").symlink_to(folder / "fog.npy")
    ours = open_corrupted(CIFAR, [tmp_path])
    assert len(ours) == 10_000
    for severity in Corruptions.severities:
        images, labels = load_corruptions_cifar(BenchmarkDataset.cifar_10, 4, severity, str(tmp_path), ["fog"])
        examples = ours.take("fog", severity, range(4))
        assert torch.equal(examples.images, images)
        assert examples.labels.tolist() == labels.tolist()


def test_images_in_folders_have_one_order_under_every_corruption(folders: Path) -> None:
    source = open_corrupted(SMALL, [folders.parent])
    assert len(source) == N
    for kind, severity in (("snow", 2), ("fog", 5)):
        clean = open_folder("imagenet-like", folders / kind / str(severity)).test()
        assert torch.equal(source.take(kind, severity, range(N)).images, clean.images)
        assert torch.equal(source.labels, clean.labels)


def test_the_clean_counterpart_has_the_same_labels_in_the_same_order(arrays: Path) -> None:
    source = open_corrupted(CIFAR, [arrays])

    def clean(labels: list[int]) -> ExampleSet:
        return ExampleSet(CIFAR, "test", torch.zeros(len(labels), 3, 32, 32), torch.tensor(labels))

    assert len(source.clean_counterpart(clean([3, 1, 4]))) == 3
    assert len(source.clean_counterpart(clean([3, 1, 4, 1, 5, 9, 2, 6]))) == N
    with pytest.raises(InvalidInput, match="label 4 in row 2, where the clean image has 7"):
        source.clean_counterpart(clean([3, 1, 7]))


@pytest.mark.parametrize("layout", ["arrays", "folders"])
def test_the_fingerprint_is_of_the_images_that_are_used_and_of_no_others(
    layout: str, request: pytest.FixtureRequest
) -> None:
    folder, dataset = request.getfixturevalue(layout), CIFAR if layout == "arrays" else SMALL
    before = [open_corrupted(dataset, [folder]).fingerprint(n) for n in (2, N)]
    assert before == [open_corrupted(dataset, [folder]).fingerprint(n) for n in (2, N)]
    source = open_corrupted(dataset, [folder])
    if layout == "arrays":
        changed = np.load(folder / "frost.npy")
        changed[4 * N + 5] ^= 1
        np.save(folder / "frost.npy", changed)
    else:
        write(source._path("frost", 5, 5))
    after = [open_corrupted(dataset, [folder]).fingerprint(n) for n in (2, N)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


@pytest.mark.parametrize(
    ("name", "array", "kind", "message"),
    [
        ("fog", None, InvalidInput, r"fog\.npy"),
        ("labels", None, InvalidInput, r"labels\.npy"),
        ("fog", np.zeros((5 * N, 32, 32), np.uint8), InvalidInput, r"\(30, 32, 32\)"),
        ("fog", np.zeros((5 * N - 1, 32, 32, 3), np.uint8), InvalidInput, r"\(29, 32, 32, 3\)"),
        ("fog", np.zeros((5 * N, 32, 32, 3), np.float32), InvalidInput, "float32"),
        ("fog", np.array([{}]), IntegrityError, "fetch the set again"),
        ("labels", np.tile(LABELS, 5)[:-1], InvalidInput, "29 labels"),
        ("labels", LABELS[:0], InvalidInput, "0 labels"),
        ("labels", np.arange(30) % 10, InvalidInput, "do not repeat"),
        ("labels", np.tile(LABELS, 10), InvalidInput, r"\(60, 32, 32, 3\)"),
        ("labels", np.zeros((30, 10), np.int64), InvalidInput, "one-hot"),
    ],
)
def test_a_broken_set_of_arrays(
    arrays: Path, name: str, array: np.ndarray | None, kind: type[HpmBenchError], message: str
) -> None:
    path = arrays / f"{name}.npy"
    path.unlink()
    if array is not None:
        np.save(path, array)
    with pytest.raises(kind, match=message):
        open_corrupted(CIFAR, [arrays])


def test_a_truncated_array(arrays: Path) -> None:
    path = arrays / "snow.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"snow\.npy"):
        open_corrupted(CIFAR, [arrays])


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("name", ["labels", "snow"])
def test_a_hostile_header(arrays: Path, name: str, header: str) -> None:
    (arrays / f"{name}.npy").write_bytes(array_file(header))
    with pytest.raises(IntegrityError, match=rf"{name}\.npy.*fetch the set again"):
        open_corrupted(CIFAR, [arrays])


def test_an_archive_under_the_name_of_an_array(arrays: Path) -> None:
    with (arrays / "labels.npy").open("wb") as stream:
        np.savez(stream, labels=np.zeros(3, np.int64))
    with pytest.raises(IntegrityError, match=r"labels\.npy.*named arrays, where a single one is needed"):
        open_corrupted(CIFAR, [arrays])


def test_a_broken_set_of_folders(folders: Path) -> None:
    with pytest.raises(InvalidInput, match="1000 class folders"):
        open_corrupted(Dataset("imagenet", 1000, (3, 5, 5)), [folders])
    source = open_corrupted(SMALL, [folders])
    source._path("fog", 3, 0).write_bytes(b"no image")
    with pytest.raises(IntegrityError, match="fog/3"):
        source.take("fog", 3, [0])
    source._path("snow", 1, 1).unlink()
    with pytest.raises(IntegrityError, match=r"snow/1.*No such file"):
        source.fingerprint(2)
    (folders / "frost" / "4").rename(folders / "frost" / "6")
    with pytest.raises(InvalidInput, match=r"1 missing, the first .*frost/4"):
        open_corrupted(SMALL, [folders])


def test_nothing_there_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"CIFAR-10-C/labels\.npy") as caught:
        open_corrupted(CIFAR, [tmp_path, tmp_path / "data"])
    assert "zenodo.org/records/2535967" in caught.value.next_step
    assert str(tmp_path / "data") in caught.value.got


def test_an_unknown_corruption_or_severity(arrays: Path) -> None:
    source = open_corrupted(CIFAR, [arrays])
    with pytest.raises(UnknownName, match="did you mean fog"):
        source.take("fogg", 1, [0])
    with pytest.raises(UnknownName, match="severity"):
        source.take("fog", 6, [0])
