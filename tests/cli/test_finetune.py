"""``hpm-bench finetune`` as a person calls it: killed at random it ends with the same bytes; faults are told."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hpm_robustbench.cli import cli
from hpm_robustbench.errors import UsageProblem

QUICK = ("--tune", "epochs=4", "--tune", "attack_steps=2", "--tune", "batch_size=50", "--n-ex", "20")


def arguments(place, output: Path, *more: str) -> list[str]:
    own = ["--factory", "own:small", "--weights", place.weights, "--data", place.data, "--dataset", "digits"]
    return ["finetune", *map(str, own), "--eps", "0.14", *QUICK, "--output", str(output), *more]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(place, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpm_robustbench", *arguments(place, output, *more)]
    return subprocess.Popen(
        command,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background may have told its children to ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )


def wait_for_checkpoint(output: Path, process: subprocess.Popen[str]) -> None:
    """Until this process has written one of its own."""
    began = time.time_ns()
    while process.poll() is None:
        if any(path.stat().st_mtime_ns > began for path in output.glob("finetuned/*/checkpoint.safetensors")):
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_at_random_moments_the_same_command_gives_the_same_bytes(place, hpm_bench, tmp_path: Path) -> None:
    whole = hpm_bench(*arguments(place, tmp_path / "whole"))
    assert whole.code == 0, whole.err
    killed, moments = tmp_path / "killed", random.Random(0)
    for _ in range(2):
        process = start(place, killed, "--checkpoint-minutes", "0")
        wait_for_checkpoint(killed, process)
        time.sleep(moments.uniform(0, 0.2))
        assert process.poll() is None, "it was to be killed, and has finished before"
        process.kill()
        process.communicate()
    last = hpm_bench(*arguments(place, killed))
    assert last.code == 0, last.err
    assert "continuing" in last.err
    assert contents(killed) == contents(tmp_path / "whole")
    assert not list(killed.glob("finetuned/*/checkpoint.safetensors"))


def test_ctrl_c_keeps_every_finished_step_however_short_the_training(place, hpm_bench, tmp_path: Path) -> None:
    whole = hpm_bench(*arguments(place, tmp_path / "whole"))
    assert whole.code == 0, whole.err
    cut = tmp_path / "cut"
    process = start(place, cut, "--checkpoint-minutes", "60")
    assert any("epoch=1 " in line for line in process.stderr), "it ended before its first epoch did"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "every finished step is kept" in said
    assert list(cut.glob("finetuned/*/checkpoint.safetensors"))
    again = hpm_bench(*arguments(place, cut))
    assert again.code == 0, again.err
    assert "continuing" in again.err
    assert contents(cut) == contents(tmp_path / "whole")


def test_without_training_images_it_says_what_to_put_where(place, hpm_bench: Callable, tmp_path: Path) -> None:
    with np.load(place.data) as arrays:
        np.savez(tmp_path / "test.npz", x_test=arrays["x_test"], y_test=arrays["y_test"])
    result = hpm_bench(*arguments(place, tmp_path, "--data", str(tmp_path / "test.npz")))
    assert result.code == 2
    assert "x_train and y_train" in result.err
    assert "Traceback" not in result.err


def test_a_wrong_recipe_or_knob_is_told_at_once(place, hpm_bench: Callable, tmp_path: Path) -> None:
    unknown = hpm_bench(*arguments(place, tmp_path, "--recipe", "uniform"))
    assert unknown.code == 2
    assert "uniform-v1" in unknown.err


def test_a_published_model_is_refused_with_the_way_that_there_is() -> None:
    with pytest.raises(UsageProblem, match=r"name of a base model.*hf:me/one@main.*Next: fine-tune its base"):
        cli.main(["finetune", "--model", "hf:me/one@main"], standalone_mode=False)


def test_help_tells_what_each_control_is_and_which_models_are_taken() -> None:
    run, finetune = (" ".join(CliRunner().invoke(cli, [name, "--help"]).output.split()) for name in ("run", "finetune"))
    assert "fc (the FC head alone answers)" in run
    assert "hf:owner/name@revision, where" in run
    assert "hf:owner/name@revision, where" not in finetune


def test_the_result_is_printed_as_json(place, hpm_bench: Callable, tmp_path: Path) -> None:
    result = hpm_bench(*arguments(place, tmp_path, "--recipe", "head", "--tune", "epochs=1", "--format", "json"))
    assert result.code == 0, result.err
    (told,) = json.loads(result.out)
    assert Path(told["folder"], "classifier.json").is_file()
    assert len(told["curves"]) == 2


def test_a_fine_tuned_model_goes_to_trial_and_its_kept_images_are_judged_again(
    place, hpm_bench: Callable, tmp_path: Path
) -> None:
    recipe = ("--recipe", "head", "--tune", "epochs=1", "--batching", "solo", "--output", str(tmp_path))
    tried = hpm_bench(*place.run(*recipe, "--n-ex", "6", "--keep-images", "--format", "json"))
    assert tried.code == 0, tried.err
    bench = json.loads(tried.out)["hpm_bench"]
    assert bench["base_model"] == "small"
    assert bench["model_id"] == f"small_{bench['defence']['tuning']['name']}"
    assert bench["defence"]["tuning"]["options"] == ["--recipe", "head", "--tune", "epochs=1"]
    assert len(list(tmp_path.glob("finetuned/*/classifier.safetensors"))) == 1
    again = hpm_bench(*place.run(*recipe, "--n-ex", "6", "--keep-images", "--verify", "--format", "json"))
    assert again.code == 0, again.err
    assert json.loads(again.out)
    (classifier,) = tmp_path.glob("finetuned/*/classifier.safetensors")
    classifier.unlink()
    lost = hpm_bench(*place.run(*recipe, "--n-ex", "6", "--keep-images", "--verify"))
    assert lost.code == 2
    assert "nothing is trained here" in lost.err
    assert not classifier.exists()


def test_one_control_can_be_trained_alone(place, hpm_bench, tmp_path: Path) -> None:
    result = hpm_bench(*arguments(place, tmp_path, "--tune", "epochs=1", "--control", "static"))
    assert result.code == 0, result.err
    [folder] = tmp_path.glob("finetuned/*")
    assert "_static-" in folder.name
    both = hpm_bench(*arguments(place, tmp_path, "--control", "static", "--controls"))
    assert both.code == UsageProblem.exit_code
    assert "--control without --controls" in both.err
