"""What can be run, as a table for people, for pages and for machines."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from hpm_robustbench.cli import cli
from hpm_robustbench.errors import UnknownName, UsageProblem


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, obj=[], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_a_table_for_people() -> None:
    question = ["--dataset", "imagenet", "--threat_model", "corruptions", "--architecture", "deit"]
    lines = printed("list", *question).splitlines()
    assert lines[0].split()[:5] == ["model", "dataset", "threat", "architecture", "parameters"]
    assert [line.split()[0] for line in lines[2:4]] == ["Tian2022Deeper_DeiT-B", "Tian2022Deeper_DeiT-S"]
    assert lines[2].split()[1:] == ["imagenet", "corruptions", "DeiT", "Base", "86.6M", "81.38", "-", "67.55", "MIT"]
    assert lines[5] == "2 models; accuracies are published ones, in percent"


def test_a_table_for_pages() -> None:
    lines = printed("list", "--license", "apache", "--max-params", "20M", "--format", "markdown").splitlines()
    assert set(lines[1]) <= set("| -")
    assert {line.count("|") for line in lines} == {10}
    assert all("Apache-2.0" in line for line in lines[2:])
    assert any("Rebuffi2021Fixing_R18_ddpm" in line for line in lines)


def test_facts_for_machines() -> None:
    [facts] = json.loads(printed("list", "--architecture", "alexnet", "--format", "json"))
    assert facts["model"] == "AlexNet"
    assert (facts["threat_model"], facts["eps"], facts["n_params"]) == ("corruptions", None, 61_100_840)
    assert (facts["corruptions_acc"], facts["corruptions_mce"]) == ("21.12", "100.0")


def test_show_tells_everything() -> None:
    text = printed("show", "Ding2020MMA", "--threat-model", "L2")
    for fact in ("CC-BY-NC-SA-4.0", "gdrive:", "cifar10/L2/Ding2020MMA.pt", "66.09", "0.5", "WideResNet-28-4"):
        assert fact in text
    assert "package:embedded/digits-resnet.safetensors" in printed("show", "Digits2026ResNet-Linf")
    coupled = printed("show", "Kang2021Stable")
    assert re.search(r"batch_effect +3\.9e-04 of the largest logit, in a batch of 8", coupled)
    assert "batch_effect" not in text


def test_nothing_found_is_said() -> None:
    assert printed("list", "--architecture", "nothing like it").splitlines()[-1].startswith("0 models")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--dataset", "cifar11"], UnknownName),
        (["--threat_model", "Lin"], UnknownName),
        (["--max_params", "big"], UsageProblem),
    ],
)
def test_slips_are_told(arguments: list[str], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        CliRunner().invoke(cli, ["list", *arguments], obj=[], catch_exceptions=False)
