"""The command line on corrupted images: known counts, kills, and what it says when something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from hpm_robustbench.cli import cli
from hpm_robustbench.errors import HpmBenchError, InvalidInput, UsageProblem
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.threat import Corruptions

N = 12


@pytest.fixture(scope="session")
def corrupted(place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first digits under noise that grows with the severity, laid out like CIFAR-10-C."""
    folder = tmp_path_factory.mktemp("corrupted") / "digits-C"
    folder.mkdir()
    with np.load(place.data) as arrays:
        images, labels = arrays["x_test"][:N], arrays["y_test"][:N]
    rng = np.random.default_rng(0)
    for kind in Corruptions.kinds:
        levels = [images + 0.1 * severity * rng.standard_normal(images.shape) for severity in Corruptions.severities]
        pixels = (np.concatenate(levels).clip(0, 1) * 255).round().astype(np.uint8)
        np.save(folder / f"{kind}.npy", pixels.transpose(0, 2, 3, 1))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    return folder


def arguments(place, *more: str | Path) -> list[str]:
    model = ["--factory", "own:small", "--weights", place.weights, "--name", "Small", "--dataset", "digits"]
    how = ["--threat_model", "corruptions", "--n_ex", N, "--batch_size", 4, "--joint-size", 6, "--workers", 1]
    return [*map(str, ["run", *model, "--data", place.data, *how, *more])]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def right_by_hand(place, corrupted: Path) -> dict[str, list[int]]:
    scope: dict = {}
    exec((place.folder / "own.py").read_text(), scope)
    net = scope["small"]()
    net.load_state_dict(load_file(place.weights))
    labels = torch.from_numpy(np.load(corrupted / "labels.npy")[:N].astype(np.int64))
    right = {}
    for kind in Corruptions.kinds:
        x = torch.from_numpy(np.load(corrupted / f"{kind}.npy")).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            right[kind] = [int((net(part).argmax(1) == labels).sum()) for part in x.split(N)]
    return right


def test_a_table_and_a_card_come_out(place, corrupted: Path, hpm_bench: Callable, tmp_path: Path) -> None:
    given = arguments(place, "--corruptions_data_dir", corrupted.parent, "--output", tmp_path)
    result = hpm_bench(*given)
    assert result.code == 0, result.err
    card = read_card(tmp_path / "model_cards" / "digits" / "corruptions" / "Small.json")
    base = card.hpm_bench.evaluations[0]
    assert base.right == right_by_hand(place, corrupted)
    lines = result.out.splitlines()
    assert lines[0] == f"Small on {N} digits test images, corruptions"
    assert any(line.split()[:3] == ["base", base.clean.text, base.text] for line in lines)
    fog = next(line for line in lines if line.startswith("fog"))
    assert fog.split()[1:] == [f"{100 * count / N:.2f}" for count in base.right["fog"]] + [f"{base.percent('fog'):.2f}"]
    assert json.loads(hpm_bench(*given, "--format", "json").out) == card.to_json()
    assert hpm_bench("status", "--output", tmp_path).out.count("76/76  finished") == 3


def test_killed_the_same_command_gives_the_same_bytes(place, corrupted: Path, hpm_bench, tmp_path: Path) -> None:
    def given(output: str, workers: int) -> list[str]:
        return arguments(
            place,
            *("--corruptions_data_dir", corrupted, "--output", tmp_path / output),
            *("--workers", str(workers), "--batching", "solo"),
        )

    assert hpm_bench(*given("whole", 1)).code == 0
    command = [sys.executable, "-m", "hpm_robustbench", *given("killed", 2)]
    process = subprocess.Popen(command, env=place.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "killed").glob("runs/*/shards/*/[0-9]*.json"))) < 40 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    result = hpm_bench(*given("killed", 1))
    assert result.code == 0, result.err
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("more", "kind", "word"),
    [
        ([], UsageProblem, "digits-C/labels.npy"),
        (["--data_dir", "nowhere"], UsageProblem, "nowhere"),
        (["--eps", "8/255"], UsageProblem, "corruptions do not have"),
        (["--corruptions_data_dir", "broken"], InvalidInput, "snow.npy"),
    ],
)
def test_what_is_missing_is_told(
    place, corrupted: Path, tmp_path: Path, monkeypatch, more: list[str], kind: type[HpmBenchError], word: str
) -> None:
    monkeypatch.syspath_prepend(place.folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    for path in corrupted.glob("*.npy"):
        if path.name != "snow.npy":
            (tmp_path / "broken" / path.name).symlink_to(path)
    with pytest.raises(kind, match=word):
        CliRunner().invoke(cli, arguments(place, *more), obj=[], catch_exceptions=False)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_corrupted_images_may_be_the_data(place, corrupted: Path, tmp_path: Path, monkeypatch) -> None:
    """The clean images then come from where the dataset usually lies."""
    monkeypatch.syspath_prepend(place.folder)
    data = ["--data", str(corrupted.parent), "--output", str(tmp_path), "--batching", "solo"]
    done = CliRunner().invoke(cli, arguments(place, *data), obj=[], catch_exceptions=False)
    assert done.exit_code == 0
    card = read_card(tmp_path / "model_cards" / "digits" / "corruptions" / "Small.json")
    assert card.hpm_bench.evaluations[0].right == right_by_hand(place, corrupted)


def test_a_card_of_other_corrupted_images_is_not_replaced_unasked(place, corrupted, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(place.folder)
    given = arguments(place, "--corruptions_data_dir", corrupted, "--output", tmp_path, "--batching", "solo")
    assert CliRunner().invoke(cli, given, obj=[], catch_exceptions=False).exit_code == 0
    with pytest.raises(UsageProblem, match="--overwrite"):
        CliRunner().invoke(cli, [*given, "--seed", "1"], obj=[], catch_exceptions=False)
