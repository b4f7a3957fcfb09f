"""The whole circle on the command line: tried, published, loaded from a clean cache, and tried again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpm_robustbench.cli import cli

TRIAL = ["--n-ex", "2", "--batch-size", "2", "--batching", "solo", "--workers", "1", "--format", "json"]


def said(*arguments: object) -> dict[str, object]:
    given = [str(argument) for argument in arguments]
    done = CliRunner().invoke(cli, given, obj=given, catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


@pytest.mark.hub
def test_a_published_model_meets_the_same_verdicts(hub, clean_cache, tmp_path: Path):
    first = said("run", "--output", tmp_path / "one", *TRIAL)
    sent = said("push", "--repo", "me/digits", "--output", tmp_path / "one", "--format", "json")
    clean_cache("clean")
    again = said("run", "--model", f"hf:me/digits@{sent['commit']}", "--output", tmp_path / "other", *TRIAL)
    assert again["hpm_bench"]["notes"].pop("published") == f"hf:me/digits@{sent['commit']}"
    for card in (first, again):
        for evaluation in card["hpm_bench"]["evaluations"]:
            evaluation.pop("environment")
    assert again == first
