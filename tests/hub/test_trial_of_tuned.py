"""A published fine-tuned model on trial: nothing that its publication says is believed unseen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from click.testing import CliRunner

from hpm_robustbench.case import prepare
from hpm_robustbench.cli import cli
from hpm_robustbench.errors import HpmBenchError, IntegrityError, InvalidInput, UsageProblem
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hub import trial
from hpm_robustbench.hub.found import find
from hpm_robustbench.hub.trial import Candidate, published
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching
from hpm_robustbench.weights.trust import measure
from hpm_robustbench.zoo.builtin import DIGITS_MODEL

REPO = "me/hpm-static"
BUDGET = ["--threat-model", "Linf", "--eps", "1/2"]
"""It breaks every image at the first step, so that a whole trial takes seconds."""
TUNED = ["--recipe", "head", "--tune", "epochs=1", "--control", "static"]
TRIAL = ["--n-ex", "4", "--batch-size", "2", "--keep-images", "--format", "json"]
EMBEDDED = "hpm_robustbench.embedded.network:digits_resnet"


def asked(*given: object) -> Any:
    words = [str(word) for word in given]
    return json.loads(CliRunner().invoke(cli, words, obj=words, catch_exceptions=False).stdout)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control, trained and tried from another seed than the usual one."""
    place = tmp_path_factory.mktemp("tried")
    seed = ["--seed", 3, "--workers", 1, "--batching", "solo"]
    asked("run", *BUDGET, *TUNED, *TRIAL, *seed, "--output", place)
    return place


def push(output: Path, *more: object) -> Any:
    return asked("push", *BUDGET, *TUNED, "--repo", REPO, "--output", output, "--format", "json", *more)


def test_a_control_from_another_seed_is_tried_again_by_two_processes(output, hub, clean_cache, tmp_path):
    sent = push(output)
    assert sent["changed"]
    clean_cache("another")
    again = ["run", "--model", f"hf:{REPO}@main", *TRIAL, "--batching", "solo", "--output", tmp_path]
    bench = asked(*again, "--workers", 2)["hpm_bench"]
    first = json.loads(hub.head(REPO)["hpm_card.json"])["hpm_bench"]
    assert bench["defence"] == first["defence"]
    assert bench["defence"]["tuning"]["seed"] == 3
    assert bench["notes"]["published"] == f"hf:{REPO}@{sent['commit']}"
    told = [[(e["target"], e["state_sha256"], e["clean"]) for e in each["evaluations"]] for each in (bench, first)]
    assert told[0] == told[1]
    rows = asked(*again, "--verify")
    assert [row["target"] for row in rows] == ["base", "hpm"]
    assert all(row["broken_again"] > 0 for row in rows)


@pytest.fixture
def folder(output: Path, hub: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its publication, found where a Hub would have it."""
    push(output, "--folder", tmp_path)
    monkeypatch.setattr(trial, "on_hub", lambda *_: find(str(tmp_path / REPO)))
    return tmp_path / REPO


def found(**said: Any) -> Candidate:
    return published(f"hf:{REPO}@main", RunOptions(n_ex=4, batchings=(Batching.SOLO,)), **{"factory": None, **said})


def config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))

    return change


def base(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / "config.json").read_text())
        config(base={**told["base"], **values})(folder)

    return change


def knobs(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / "training.json").read_text())
        told["facts"]["asked"]["knobs of HPM"] |= values
        (folder / "training.json").write_text(json.dumps(told))
        config(training=measure(folder / "training.json").sha256)(folder)

    return change


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (knobs(distance="l2"), IntegrityError, "two: that of config.json, and another in training.json"),
        (config(state_sha256="0" * 64), IntegrityError, "not all equal to it"),
        (config(n_classes=7), HpmBenchError, "7"),
        (config(image_shape=[1, 9, 9]), HpmBenchError, "9, 9"),
        (config(tuned_by=None), InvalidInput, "a training, and no options"),
        (config(tuned_by=["--recipe", "head"]), IntegrityError, "two: that of config.json"),
        (config(defence={"beta": 10**400}), InvalidInput, "too large"),
        (config(defence={"\x1b[2J": 1}), InvalidInput, "unexpected keyword"),
        (base(sha256=["0" * 64] * 2), InvalidInput, "2 sha256"),
    ],
)
def test_what_it_says_wrongly_is_refused(folder, change, kind, match):
    change(folder)
    with pytest.raises(kind, match=match) as refused:
        found()
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


def test_one_that_hides_its_fine_tuning_does_not_pass_its_own_head_off_as_the_base_model(folder):
    config(tuned_by=None, training=None)(folder)
    chosen = found()
    assert chosen.ready is not None
    with pytest.raises(IntegrityError, match=r"got another backbone or FC head.*wrap the base model anew"):
        prepare(chosen.spec, chosen.options, model=chosen.ready)


def test_a_network_of_ones_own_comes_with_the_weights_of_the_base_model(folder, output, tmp_path):
    with pytest.raises(UsageProblem, match="a factory written as"):
        found(factory="nocolon")
    config_ = json.loads((folder / "config.json").read_text())
    [sha256] = config_["base"]["sha256"]
    with pytest.raises(UsageProblem, match=f"--weights with the checkpoint of .*; got --factory alone.*{sha256}"):
        found(factory=EMBEDDED)
    with pytest.raises(UsageProblem, match="as many files as it has: 1; got 2"):
        found(factory=EMBEDDED, weights="one.pt,two.pt")
    embedded = Path(trial.__file__).parents[1] / "embedded" / "digits-resnet.safetensors"
    chosen = found(factory=EMBEDDED, weights=str(embedded))
    assert chosen.options.seed == 0
    case = prepare(chosen.spec, chosen.options, train=False)
    assert state_sha256(case.wrapped.classifier) == config_["state_sha256"]
    other = tmp_path / "other.safetensors"
    shutil.copy(embedded, other)
    tensors = safetensors.torch.load_file(other)
    tensors[next(iter(tensors))] += 1
    safetensors.torch.save_file(tensors, other)
    with pytest.raises(IntegrityError, match=sha256):
        found(factory=EMBEDDED, weights=str(other))


def test_what_is_published_already_is_not_published_by_that_name(hub):
    with pytest.raises(UsageProblem, match=r"which is published already.*name its base"):
        CliRunner().invoke(cli, ["push", "--model", f"hf:{REPO}@main", "--repo", REPO], catch_exceptions=False)
    assert hub.asked == []


def test_it_can_be_published_again_from_where_it_was_found(folder, output, tmp_path):
    assert find(str(folder)).description.base.model == DIGITS_MODEL
    again = push(output, "--folder", tmp_path / "again", "--finetuned", folder)
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors", "training.json")}
    assert files == {name: (Path(again["folder"]) / name).read_bytes() for name in files}
