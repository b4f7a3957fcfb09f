"""Bad input: a clear error, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hpm_robustbench.cli import cli, main
from hpm_robustbench.errors import (
    HeadNotFound,
    HpmBenchError,
    IntegrityError,
    InvalidInput,
    StorageProblem,
    UnknownName,
    UnsafePickle,
    UsageProblem,
)


def failure(arguments: list[str]) -> HpmBenchError:
    """The error that a command line ends with."""
    with pytest.raises(HpmBenchError) as caught:
        CliRunner().invoke(cli, arguments, obj=arguments, catch_exceptions=False)
    for part in (caught.value.wanted, caught.value.got, caught.value.next_step):
        assert part.strip()
    return caught.value


@pytest.fixture(autouse=True)
def importable(place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(place.folder)
    monkeypatch.chdir(tmp_path)


def nothing_written(folder: Path) -> bool:
    return not list(folder.glob("runs/*/shards/**/*.json")) and not (folder / "model_cards").exists()


def test_an_unknown_model_shows_the_nearest_names(tmp_path: Path) -> None:
    error = failure(["run", "--model", "Carmon2019Unlabelled"])
    assert isinstance(error, UnknownName)
    assert "Carmon2019Unlabeled" in str(error)
    assert error.exit_code == 2
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--dataset", "cifar11"], "cifar10"),
        (["--threat-model", "L7"], "L2"),
        (["--eps", "tiny"], "8/255"),
        (["--eps", "0"], "positive"),
        (["--eps", "nan"], "positive"),
        (["--eps", "8/0"], "positive"),
        (["--eps", "8"], "write --eps 8/255"),
        (["--eps", "1"], "eps below 1 under Linf"),
        (["--threat-model", "L2", "--eps", "8"], "eps below 8 under L2"),
        (["--hpm", "bta=0.5"], "beta"),
        (["--hpm", "foo=1"], "tau, temperature"),
        (["--hpm", "beta=much"], "beta"),
        (["--hpm", "beta=1.5"], "[0, 1]"),
        (["--device", "abacus"], "cpu"),
        (["--name", "../escape"], "letters"),
        (["--factory", "own"], "package.module:function"),
        (["--factory", "own:smal"], "small"),
        (["--factory", "nowhere:small"], "PYTHONPATH"),
        (["--data", "missing.npz"], "not there"),
        (["--weights", "missing.safetensors"], "no readable file"),
        (["--weights", "hf:owner/name"], "hf:owner/name@revision"),
        (["--weights", "hf:owner/name@main:../../x.safetensors"], "of that repository"),
        (["--checksums", "missing.json"], "a file of checksums at missing.json"),
    ],
)
def test_usage_problems(place, tmp_path: Path, arguments: list[str], word: str) -> None:
    unnamed = place.run()
    if arguments[0] == "--dataset":
        unnamed = [a for pair in zip(unnamed[1::2], unnamed[2::2], strict=True) if pair[0] != "--data" for a in pair]
        unnamed.insert(0, "run")
    error = failure([*unnamed, *arguments])
    assert isinstance(error, UsageProblem)
    assert word in str(error)
    assert nothing_written(tmp_path)


def test_missing_weights_are_told_before_the_images_are_read(place) -> None:
    assert "no readable file" in str(failure(place.run("--weights", "missing.safetensors", "--data", "missing.npz")))


@pytest.mark.parametrize("option", ["--weights", "--name", "--head"])
def test_what_belongs_to_a_model_of_ones_own_needs_one(option: str) -> None:
    assert f"--factory beside {option}" in str(failure(["run", option, "x"]))


def test_a_pickle_that_needs_more_than_tensors_needs_leave(place, tmp_path: Path) -> None:
    import argparse

    import torch
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(place.weights), "args": argparse.Namespace(lr=0.1)}, tmp_path / "own.pt")
    refused = failure(place.run("--weights", tmp_path / "own.pt"))
    assert isinstance(refused, UnsafePickle)
    assert "--allow-global argparse.Namespace" in str(refused)
    allowed = ["--allow-global", "argparse.Namespace", "--head", "nowhere"]
    error = failure(place.run("--weights", tmp_path / "own.pt", *allowed))
    assert "nowhere" in str(error), "the weights were loaded, and only then was the head looked for"
    assert nothing_written(tmp_path)


def test_a_factory_without_weights_says_what_is_missing() -> None:
    assert "--weights" in str(failure(["run", "--factory", "own:small"]))


def test_a_factory_without_a_budget_says_what_is_missing(place) -> None:
    given = ["run", "--factory", "own:small", "--weights", str(place.weights), "--dataset", "digits"]
    assert "a budget for Linf" in str(failure(given))


@pytest.mark.parametrize(
    ("factory", "kind", "word"),
    [
        ("Probabilities", InvalidInput, "probabilities"),
        ("NotANumber", InvalidInput, "NaN"),
        ("CutOff", InvalidInput, "logits without a gradient"),
        ("seven_classes", InvalidInput, "[8, 7]"),
        ("NoHead", HeadNotFound, "net.6 (24 -> 10)"),
        ("text", InvalidInput, "a str"),
    ],
)
def test_a_model_that_breaks_its_contract(place, tmp_path: Path, factory: str, kind: type, word: str) -> None:
    weights = tmp_path / "weights.safetensors"
    import own
    from safetensors.torch import save_file

    built = getattr(own, factory)()
    if not isinstance(built, str):
        save_file(built.state_dict(), weights)
    else:
        weights.write_bytes(place.weights.read_bytes())
    error = failure(place.run("--weights", weights, factory=factory))
    assert isinstance(error, kind)
    assert word in str(error)
    assert error.exit_code == 5
    assert nothing_written(tmp_path)


def spoiled(place, tmp_path: Path, **changes: np.ndarray) -> Path:
    with np.load(place.data) as arrays:
        content = {**arrays, **changes}
    np.savez(tmp_path / "spoiled.npz", **content)
    return tmp_path / "spoiled.npz"


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [("x_test", np.nan, "row 3"), ("x_test", 1.5, "row 3"), ("x_test", -0.1, "row 3"), ("y_test", 12, "12 in row 3")],
)
def test_images_and_labels_outside_their_range(place, tmp_path: Path, name: str, value: float, word: str) -> None:
    with np.load(place.data) as arrays:
        changed = arrays[name].copy()
    changed[3] = value
    error = failure(place.run("--data", spoiled(place, tmp_path, **{name: changed})))
    assert isinstance(error, InvalidInput)
    assert word in str(error)


def test_no_images_left_for_prototypes(place, tmp_path: Path) -> None:
    with np.load(place.data) as arrays:
        np.savez(tmp_path / "test_only.npz", x=arrays["x_test"][:100], y=arrays["y_test"][:100])
    error = failure(place.run("--data", tmp_path / "test_only.npz", "--n-ex", "100"))
    assert "no training images" in str(error)


def test_truncated_and_foreign_weights(place, tmp_path: Path) -> None:
    truncated, page = tmp_path / "truncated.safetensors", tmp_path / "page.pt"
    truncated.write_bytes(place.weights.read_bytes()[:1000])
    page.write_text("<html>Too many users have viewed or downloaded this file recently</html>")
    for path in (truncated, page):
        error = failure(place.run("--weights", path))
        assert isinstance(error, IntegrityError)
        assert error.exit_code == 4
        assert nothing_written(tmp_path)


def test_an_unwritable_output_folder(place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = failure(place.run("--output", tmp_path / "file"))
    assert isinstance(error, StorageProblem)
    assert "--output" in str(error)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpm_robustbench.ledger import atomic

    (tmp_path / "kept.json").write_text("old")

    def on_a_full_device(**_: object) -> tuple[int, str]:
        name = tmp_path / ".kept.json.partial"
        name.write_text("")
        return os.open("/dev/full", os.O_WRONLY), str(name)

    monkeypatch.setattr(atomic.tempfile, "mkstemp", on_a_full_device)
    with pytest.raises(StorageProblem, match="No space left"):
        atomic.write_atomic(tmp_path / "kept.json", "new")
    assert (tmp_path / "kept.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def test_about_must_be_known_facts(place, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text('{"licence": "MIT"}')
    assert "license" in str(failure(place.run("--about", tmp_path / "about.json")))
    (tmp_path / "about.json").write_text("[]")
    assert "JSON object" in str(failure(place.run("--about", tmp_path / "about.json")))


@pytest.mark.parametrize(
    ("fact", "word"),
    [
        ('{"clean_acc": "91.7 %"}', "'clean_acc'"),
        ('{"autoattack_acc": "-1"}', "'autoattack_acc'"),
        ('{"reported": "about 50"}', "'reported"),
        ('{"corruptions_mce": "high"}', "'corruptions_mce'"),
        ('{"number_forward_passes": 0}', "'number_forward_passes'"),
        ('{"clean_acc": 91.7}', "clean_acc of type"),
    ],
)
def test_facts_that_no_card_can_hold_are_told_before_the_trial(place, tmp_path: Path, fact: str, word: str) -> None:
    (tmp_path / "about.json").write_text(fact)
    error = failure(place.run("--about", tmp_path / "about.json", "--weights", "missing.pt"))
    assert isinstance(error, UsageProblem)
    assert word in str(error)
    assert str(tmp_path / "about.json") in str(error)


def test_facts_that_are_not_known_may_be_written_as_robustbench_does(place, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text('{"clean_acc": "", "reported": "null", "external": null, "venue": ""}')
    error = failure(place.run("--about", tmp_path / "about.json", "--weights", "missing.pt"))
    assert "no readable file" in str(error), "the facts were read, and only then were the weights looked for"


def test_a_process_ends_with_the_code_and_without_a_traceback(hpm_bench) -> None:
    result = hpm_bench("run", "--model", "Nobody2026")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: wanted a known model")
    assert "Traceback" not in result.err


def test_click_reports_its_own_usage_errors(hpm_bench) -> None:
    result = hpm_bench("run", "--n-ex", "0")
    assert result.code == 2
    assert "--n-ex" in result.err


@pytest.mark.parametrize("with_images", [True, False], ids=["weights", "images"])
def test_without_a_network_it_says_what_was_tried_and_where_a_file_may_be_put(
    hpm_bench, tmp_path: Path, with_images: bool
) -> None:
    np.savez(tmp_path / "images.npz", x=np.zeros((200, 32, 32, 3), np.uint8), y=np.zeros(200, np.int64))
    images = ["--data", tmp_path / "images.npz"] if with_images else []
    folders = ["--model_dir", tmp_path / "models", "--data_dir", tmp_path / "data", "--output", tmp_path]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    result = hpm_bench("run", "--model", "Wong2020Fast", "--n-ex", "20", *folders, *images, **nowhere)
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    assert ("Wong2020Fast.pt" if with_images else "--data") in result.err
    assert not list(tmp_path.rglob("*.pt"))
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("command", [["list"], ["show", "Carmon2019Unlabeled"]])
def test_an_unknown_threat_model_is_refused_everywhere(command: list[str]) -> None:
    assert "Linf" in str(failure([*command, "--threat-model", "Lin"]))


@pytest.mark.parametrize("command", [["run"], ["finetune"], ["push", "--repo", "me/mine", "--dry-run"]])
def test_a_known_model_and_a_factory_are_two_models(command: list[str]) -> None:
    error = failure([*command, "--model", "Wong2020Fast", "--factory", "own:small"])
    assert isinstance(error, UsageProblem)
    assert "--model Wong2020Fast with --factory own:small" in str(error)


def test_a_dataset_without_a_models_name_tells_how_to_name_one() -> None:
    error = failure(["run", "--dataset", "cifar10"])
    assert isinstance(error, UsageProblem)
    for word in (
        "a model of cifar10",
        "--model",
        "Digits2026ResNet-Linf, is a model of digits",
        "list --dataset cifar10",
    ):
        assert word in str(error)


def test_a_file_of_checksums_that_is_not_there_is_refused_for_the_embedded_model_too(tmp_path: Path) -> None:
    error = failure(["run", "--n-ex", "2", "--checksums", "missing.json"])
    assert isinstance(error, UsageProblem)
    assert "a file of checksums at missing.json" in str(error)
    assert nothing_written(tmp_path)


def test_every_card_is_looked_at_before_one_that_is_not_valid_is_told(tmp_path: Path) -> None:
    good = Path(__file__).parents[1] / "ledger/golden/model_cards/cifar10/Linf/Carmon2019Unlabeled.json"
    (tmp_path / "bad.json").write_text("{}")
    paths = [str(path) for path in (tmp_path / "bad.json", good, tmp_path / "missing.json")]
    done = CliRunner().invoke(cli, ["card", "validate", *paths], obj=[])
    bad, valid, missing = done.stdout.splitlines()
    assert bad.startswith(f"{paths[0]}: wanted")
    assert valid.startswith(f"{good}: ") and valid.endswith(": valid")
    assert "No such file" in missing
    assert isinstance(done.exception, InvalidInput)
    assert f"2 that are not: {paths[0]}, {paths[2]}" in str(done.exception)
    alone = CliRunner().invoke(cli, ["card", "validate", str(good)], obj=[])
    assert (alone.exit_code, alone.stdout.strip()) == (0, valid)


@pytest.mark.parametrize("field", ["name", "eps"])
def test_a_strangers_card_does_not_steer_the_terminal(tmp_path: Path, field: str) -> None:
    card = json.loads((Path(__file__).parents[2] / "model_cards/mnist/Linf/MnistLeNet5-Standard.json").read_text())
    card[field] = "\x1b]0;owned\x07"
    (tmp_path / "card.json").write_text(json.dumps(card))
    command = [sys.executable, "-m", "hpm_robustbench", "card", "validate", str(tmp_path / "card.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "owned" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x07" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("knob", "value", "told"),
    [("beta", 7, "got 7 where it wants beta in [0, 1]"), ("gamma", 1, "gamma"), ("beta", 10**400, "too large")],
)
def test_a_card_of_another_defence_is_not_valid(tmp_path: Path, knob: str, value: float, told: str) -> None:
    card = json.loads((Path(__file__).parents[2] / "model_cards/mnist/Linf/MnistLeNet5-Standard.json").read_text())
    path = tmp_path / "card.json"
    for knobs, code in (({}, 0), ({knob: value}, InvalidInput.exit_code)):
        card["hpm_bench"]["defence"].update(knobs)
        path.write_text(json.dumps(card))
        done = CliRunner().invoke(cli, ["card", "validate", str(path)], obj=[])
        assert getattr(done.exception, "exit_code", done.exit_code) == code
        assert (told in done.stdout) == bool(knobs)


def test_a_published_model_is_named_with_its_revision() -> None:
    error = failure(["run", "--model", "hf:nope/none"])
    assert isinstance(error, UsageProblem)
    assert "a model on the Hub written as hf:owner/name@revision; got 'nope/none' at the revision ''" in str(error)


@pytest.mark.parametrize(
    "options",
    [["--repo", "mex"], ["--repo", "me/x", "--samples", "mex"], ["--repo", "me/x", "--eval-dataset", "mex:task"]],
    ids=["repo", "samples", "eval-dataset"],
)
def test_a_repository_has_an_owner(options: list[str]) -> None:
    error = failure(["push", "--dry-run", *options])
    assert isinstance(error, UsageProblem)
    assert "a repository on the Hub written as owner/name; got 'mex'" in str(error)


def test_own_weights_need_a_factory(place) -> None:
    assert "--factory" in str(failure(["run", "--weights", str(place.weights)]))


def test_a_card_of_another_trial_is_not_replaced_unasked(place, tmp_path: Path) -> None:
    broken = ["--eps", "0.5"]
    for arguments in ([], ["--overwrite"]):
        done = CliRunner().invoke(cli, place.run(*broken, *arguments), obj=[], catch_exceptions=False)
        assert done.exit_code == 0
    (card,) = tmp_path.glob("model_cards/digits/Linf/*.json")
    before = card.read_bytes()
    assert "--overwrite" in str(failure(place.run(*broken, "--seed", "1")))
    assert card.read_bytes() == before


LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--weights", LONG],
        ["run", "--model", "Carmon2019Unlabeled", "--model_dir", LONG],
        ["run", "--output", LONG, "--n-ex", "2"],
        ["run", "--data", LONG],
        ["weights", "mirror", "--model", "Digits2026ResNet-Linf", "--folder", LONG],
        ["leaderboard", "build", "--output", LONG],
        ["status", "--output", LONG],
        ["run", "--seed", "9" * 20],
        ["run", "--device", "meta"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_value_that_nobody_expects_is_no_traceback(arguments: list[str], tmp_path: Path, capfd) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as left:
            main(arguments)
    finally:
        signal.signal(signal.SIGTERM, handler)
    told = capfd.readouterr().err
    assert left.value.code in (1, 2, 3)
    assert "rror" in told
    assert "Traceback" not in told
    assert nothing_written(tmp_path)
