from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hpm_robustbench.data import open_dataset
from hpm_robustbench.embedded.train import STEM, Recipe, evaluate, fit, main, shifted, validate, write
from hpm_robustbench.errors import StorageProblem

TINY = Recipe(epochs=1, batch_size=50, attack_steps=2)


@pytest.fixture(scope="module")
def source():
    return open_dataset("digits")


def test_the_same_recipe_gives_the_same_bytes(source, tmp_path):
    train, test = source.train(200), source.test(50)
    first, second = (write(TINY, train, test, tmp_path / name) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".json").read_bytes() == second.with_suffix(".json").read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == [f"{STEM}.json", f"{STEM}.safetensors"]
    other = write(Recipe(seed=1, epochs=1, batch_size=50, attack_steps=2), train, test, tmp_path / "other")
    assert other.read_bytes() != first.read_bytes()


def test_the_bytes_do_not_depend_on_threads_or_the_global_generator(source, tmp_path):
    train, test = source.train(100), source.test(20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = write(TINY, train, test, tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.set_num_threads(2)
    try:
        second = write(TINY, train, test, tmp_path / "two")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert first.read_bytes() == second.read_bytes()


def test_a_trained_network_is_frozen_and_in_eval_mode(source):
    model = fit(TINY, source.train(100))
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_few_epochs_learn_something(source):
    model = fit(Recipe(eps="0.05", epochs=4, attack_steps=2), source.train(600))
    score = evaluate(model, source.test(100), "0.05")
    assert score.clean > 70
    assert 0 < score.pgd <= score.clean


def test_validation_judges_rows_that_were_not_trained_on(source):
    train = source.train(400)
    score = validate(TINY, train)
    assert score.n == 300
    assert score == evaluate(fit(TINY, train.head(100)), train.take(range(100, 400)), TINY.eps)


def test_each_image_is_shifted_by_whole_pixels_and_nothing_wraps_around():
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    moved = shifted(images, 1, torch.Generator().manual_seed(0))
    seen = set()
    for image, result in zip(images[:, 0].numpy(), moved[:, 0].numpy(), strict=True):
        padded = np.pad(image, 1)
        matches = [(i, j) for i in range(3) for j in range(3) if np.array_equal(padded[i : i + 8, j : j + 8], result)]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 9


def test_a_folder_that_cannot_be_written_is_a_storage_problem(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageProblem):
        write(TINY, source.train(50), source.test(10), tmp_path / "file")


def test_the_command_asks_what_to_do():
    outcome = CliRunner().invoke(main, [])
    assert outcome.exit_code == 2
    assert "name a folder with --output, or give --validate" in outcome.output


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch has one way to add here")
def test_a_processor_that_adds_in_another_order_gives_the_same_bytes(source, tmp_path):
    """Without vector instructions, as far as torch and its libraries let themselves be told."""
    here = write(TINY, source.train(300), source.test(20), tmp_path / "here")
    script = (
        "import sys; from pathlib import Path; from hpm_robustbench.data import open_dataset\n"
        "from hpm_robustbench.embedded.train import Recipe, write\n"
        "import torch; assert torch.backends.cpu.get_cpu_capability() == 'DEFAULT'\n"
        "source = open_dataset('digits')\n"
        f"write({TINY!r}, source.train(300), source.test(20), Path(sys.argv[1]))"
    )
    plain = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    elsewhere = tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-c", script, elsewhere], env={**os.environ, **plain}, check=True)
    assert (elsewhere / here.name).read_bytes() == here.read_bytes()


@pytest.mark.slow
def test_training_again_gives_the_same_figures_within_a_point(source, tmp_path):
    path = write(Recipe(), source.train(), source.test(), tmp_path)
    again = json.loads(path.with_suffix(".json").read_text())
    shipped = json.loads(files("hpm_robustbench.embedded").joinpath(f"{STEM}.json").read_text())
    for count in ("clean", "pgd"):
        assert again["test_score"][count] == pytest.approx(shipped["test_score"][count], abs=5)
    if again["versions"] == shipped["versions"]:
        assert again["sha256"] == shipped["sha256"]
    for machine_dependent in ("sha256", "test_score", "versions"):
        del again[machine_dependent], shipped[machine_dependent]
    assert again == shipped
