"""From a file that is trusted once to a checksum that everything else is held against."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from hpm_robustbench.architectures import build
from hpm_robustbench.cli import cli
from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.weights import Trust, load_weights, locate
from hpm_robustbench.weights.locks import locked
from hpm_robustbench.weights.pin import pin
from hpm_robustbench.weights.transfer import Partial
from hpm_robustbench.weights.trust import measure
from hpm_robustbench.weights.web import Web
from hpm_robustbench.zoo.builtin import DIGITS_MODEL
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.checksums import Checksum, checksums_json, read_checksums
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

STATE = {"weight": torch.eye(2), "bias": torch.ones(2)}


class Never:
    def fetch(self, locator: str, partial: Partial) -> None:
        raise AssertionError(f"{locator} must not be fetched")


@pytest.fixture
def spec(server, monkeypatch, tmp_path) -> ModelSpec:
    """A model whose weights the server offers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "pinned_nets.py").write_text("import torch\ndef linear(): return torch.nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    weights = WeightsRef("upstream", (f"{server.address}/net.pth",))
    return ModelSpec("Small", "digits", ThreatModel.parse("Linf", "0.1"), "python:pinned_nets:linear", weights)


def test_what_was_pinned_is_what_loads(spec, server, torch_bytes, tmp_path, leftovers, caplog):
    pins = tmp_path / "checksums.json"
    server.content = torch_bytes(STATE)
    entries = pin(spec, tmp_path / "models", pins, Web())
    [locator] = spec.weights.full_locators
    content = torch_bytes(STATE)
    assert entries == {locator: Checksum(hashlib.sha256(content).hexdigest(), len(content))}
    with caplog.at_level(logging.INFO):
        loaded = load_weights(spec, tmp_path / "models", Never(), Trust(pins))
    assert torch.equal(loaded.model.weight, torch.eye(2))
    assert caplog.text == ""

    server.content = torch_bytes({"weight": torch.zeros(2, 2), "bias": torch.ones(2)})
    with pytest.raises(IntegrityError, match="it was not kept") as caught:
        load_weights(spec, tmp_path / "elsewhere", Web(), Trust(pins))
    assert caught.value.exit_code == 4
    assert leftovers(tmp_path / "elsewhere") == []


def test_the_unpinned_is_told_in_one_line(spec, server, torch_bytes, tmp_path, caplog):
    server.content = torch_bytes(STATE)
    with caplog.at_level(logging.INFO):
        load_weights(spec, tmp_path, Web())
    [line] = [record.getMessage() for record in caplog.records if record.name == "hpm_robustbench.weights.load"]
    assert spec.weights.full_locators[0] in line
    assert "hpm-bench weights pin" in line


def test_the_right_sha256_with_another_size_is_not_the_file(spec, server, torch_bytes, tmp_path):
    server.content = torch_bytes(STATE)
    pins = tmp_path / "checksums.json"
    pin(spec, tmp_path / "models", pins, Web())
    entries = json.loads(pins.read_text())
    next(iter(entries.values()))["size"] += 1
    pins.write_text(json.dumps(entries))
    with pytest.raises(IntegrityError, match=f"{len(torch_bytes(STATE)) + 1} bytes of"):
        locate(spec, tmp_path / "models", Never(), Trust(pins))


def test_a_description_does_not_overrule_what_was_pinned(spec, server, torch_bytes, tmp_path):
    server.content = torch_bytes(STATE)
    pins = tmp_path / "checksums.json"
    pin(spec, tmp_path / "models", pins, Web())
    [trusted] = Trust(pins).expected(spec.weights)
    described = replace(spec.weights, sha256=(trusted.sha256,))
    assert [each.sha256 for each in Trust(pins).expected(described)] == [trusted.sha256]
    with pytest.raises(IntegrityError, match=f"{trusted.sha256}.*as you or this package trust it; got a description"):
        Trust(pins).expected(replace(spec.weights, sha256=("0" * 64,)))


def test_a_file_that_changed_is_not_pinned_again(spec, server, torch_bytes, tmp_path):
    server.content = torch_bytes(STATE)
    pins = tmp_path / "checksums.json"
    pin(spec, tmp_path / "models", pins, Web())
    before = pins.read_text()
    server.content = torch_bytes()
    with pytest.raises(IntegrityError):
        pin(spec, tmp_path / "elsewhere", pins, Web())
    assert pins.read_text() == before


def test_a_state_dict_put_there_by_hand_is_not_what_is_pinned(tmp_path):
    wong = catalog().find("Wong2020Fast")
    original = tmp_path / wong.weights.cache
    original.parent.mkdir(parents=True)
    torch.save(build(wong).state_dict(), original)
    safetensors.torch.save_file({"other": torch.ones(1)}, original.with_suffix(".safetensors"))
    assert list(pin(wong, tmp_path, fetcher=Never()).values()) == [measure(original)]


@pytest.mark.parametrize("kind", ["web page", "empty", "other network"])
def test_what_is_no_checkpoint_of_the_network_is_not_pinned(kind, tmp_path, torch_bytes):
    """Also where it lies in RobustBench's own folder, and nobody has looked at it on its way here."""
    wong, pins = catalog().find("Wong2020Fast"), tmp_path / "checksums.json"
    original = tmp_path / wong.weights.cache
    original.parent.mkdir(parents=True)
    original.write_bytes({"web page": b"<html>Sign in</html>", "empty": b"", "other network": torch_bytes(STATE)}[kind])
    with pytest.raises(IntegrityError) as caught:
        pin(wong, tmp_path, pins, Never())
    assert caught.value.exit_code == 4
    assert not pins.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_pins_do_not_go_into_a_device(spec, server, torch_bytes, tmp_path):
    server.content = torch_bytes(STATE)
    with pytest.raises(UsageProblem, match="no regular file"):
        pin(spec, tmp_path / "models", Path("/dev/full"), Web())


def test_pins_of_several_models_come_together(tmp_path):
    one, two = catalog().find("Wong2020Fast"), catalog().find("Rice2020Overfitting")
    for spec in (one, two):
        path = tmp_path / spec.weights.cache
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(build(spec).state_dict(), path)
        arguments = ["weights", "pin", "--model", spec.name, "--model_dir", str(tmp_path)]
        arguments += ["--output", str(tmp_path / "checksums.json")]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        assert json.loads(done.stdout) == {str(spec.weights): vars(measure(path))}
    assert json.loads((tmp_path / "checksums.json").read_text()).keys() == {str(one.weights), str(two.weights)}


def written_meanwhile(spec, tmp_path, pins, text) -> list[Exception]:
    """Pin while another one holds the file, which changes before it is free; returns what went wrong."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            pin(spec, tmp_path / "models", pins, Web())
        except IntegrityError as error:
            errors.append(error)

    with locked(pins):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "it did not wait"
        pins.write_text(text)
    thread.join(30)
    assert not thread.is_alive()
    return errors


def test_no_pin_is_lost_where_two_are_at_work(spec, server, torch_bytes, tmp_path):
    server.content, pins = torch_bytes(STATE), tmp_path / "checksums.json"
    others = {"gdrive:another": Checksum("0" * 64, 7)}
    assert written_meanwhile(spec, tmp_path, pins, checksums_json(others)) == []
    assert read_checksums(pins).keys() == {*others, *spec.weights.full_locators}


def test_two_that_pin_different_files_under_one_name_are_told(spec, server, torch_bytes, tmp_path):
    server.content, pins = torch_bytes(STATE), tmp_path / "checksums.json"
    others = {spec.weights.full_locators[0]: Checksum("0" * 64, 7)}
    [error] = written_meanwhile(spec, tmp_path, pins, checksums_json(others))
    assert "as another process has just pinned" in str(error)
    assert read_checksums(pins) == others


def test_what_is_ones_own_needs_no_pin(tmp_path):
    with pytest.raises(UsageProblem, match="a model whose weights are fetched"):
        pin(catalog().find(DIGITS_MODEL), tmp_path)
    own = replace(catalog().find(DIGITS_MODEL), weights=WeightsRef("file", ("x.pt",)))
    with pytest.raises(UsageProblem, match=r"from file:x\.pt"):
        pin(own, tmp_path)
