"""A screen says upper bounds, costs little, and leaves no card behind."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from hpm_robustbench.cli import cli
from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.ledger.coupling import CAN_ALSO
from hpm_robustbench.pipeline import evaluate, screen
from hpm_robustbench.report.screens import screen_rows
from hpm_robustbench.request.models import spec_to_run
from hpm_robustbench.run_options import RunOptions

MODEL = "Digits2026ResNet-Linf"


def test_a_screen_on_the_command_line(tmp_path) -> None:
    arguments = ["-q", "run", "--screen", "quick", "--n-ex", "24", "--workers", "1", "--output", str(tmp_path)]
    human = CliRunner().invoke(cli, arguments, obj=[], catch_exceptions=False)
    assert "A screen, not a result" in human.stdout
    rows = json.loads(CliRunner().invoke(cli, [*arguments, "--format", "json"], obj=[], catch_exceptions=False).stdout)
    assert [(row["target"], row["batching"]) for row in rows] == [("base", "solo"), ("hpm", "solo"), ("hpm", "joint")]
    assert all(0 < row["at_most"] < row["clean"] for row in rows)
    assert {row["protocol"] for row in rows} == {"quick"}
    assert not (tmp_path / "model_cards").exists()


@pytest.mark.parametrize("name", ["quick", "coupling", "matrix"])
def test_a_screen_that_was_not_made_cannot_be_verified(name, tmp_path) -> None:
    arguments = ["-q", "run", "--screen", name, "--verify", "--n-ex", "8", "--workers", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(cli, arguments, obj=[])
    assert isinstance(result.exception, UsageProblem)
    assert "finished run" in str(result.exception)


def test_a_screen_from_python_has_its_own_runs(tmp_path) -> None:
    spec = spec_to_run(MODEL, None, None, None)
    records = screen(spec, RunOptions(n_ex=4, output=tmp_path)).records
    assert all(record.plan.protocol == "quick" for record in records)
    with pytest.raises(UsageProblem, match=r"pipeline\.screen"):
        evaluate(spec, RunOptions(n_ex=4, output=tmp_path, screen="quick"))


def test_nothing_is_screened_under_corruptions(tmp_path) -> None:
    spec = spec_to_run(MODEL, None, "corruptions", None)
    with pytest.raises(UsageProblem, match="--screen"):
        screen(spec, RunOptions(n_ex=4, output=tmp_path))


def test_what_batch_mates_can_do_to_each_other(tmp_path) -> None:
    """Whoever can do all that another can is said to break all that the other has broken, in batches of every size."""
    spec = spec_to_run(MODEL, None, None, None)
    shown = screen_rows(screen(spec, RunOptions(n_ex=16, joint_size=16, output=tmp_path, screen="coupling")))
    assert {row["batch_size"] for row in shown} == {2, 4, 16}
    assert {row["protocol"] for row in shown} == set(CAN_ALSO)
    at_most = {(row["batch_size"], row["protocol"]): row["at_most"] for row in shown}
    for (size, attacker), left in at_most.items():
        assert all(left <= at_most[size, weaker] for weaker in CAN_ALSO[attacker])
        assert left <= shown[0]["clean"]
    assert at_most[16, "the image itself, mates clean"] < shown[0]["clean"]


def test_what_each_attack_breaks_by_itself(place, hpm_bench, tmp_path) -> None:
    """Each step of the trial meets what is right without any attack; what the trial breaks lies beside it."""
    asked = ["-q", *place.run("--n-ex", "4", "--batch-size", "4", "--joint-size", "4", "--output", tmp_path)]
    card = json.loads(hpm_bench(*asked, "--format", "json").out)
    rows = json.loads(hpm_bench(*asked, "--screen", "matrix", "--format", "json").out)
    assert "each attack by itself" in hpm_bench(*asked, "--screen", "matrix").out
    listed = hpm_bench("status", "--output", tmp_path).out
    assert "matrix: in-turns@hpm " in listed
    for lent in tmp_path.glob("runs/*/lent.json"):
        lent.unlink()
    without = json.loads(hpm_bench(*asked, "--screen", "matrix", "--format", "json").out)
    assert {row["beyond"] for row in without} == {None}, "a trial is finished when HPM has met what the base model lent"
    _, solo, joint = card["hpm_bench"]["evaluations"]
    shown = [[step["name"] for step in e["steps"] if step["attack"] == "transfer"] for e in (solo, joint)]
    assert shown == [["transfer@base", "transfer@hpm.batching-joint"], ["transfer@base"]]
    for evaluation in (solo, joint):
        own = [row for row in rows if row["batching"] == evaluation["batching"]]
        steps = [step for step in evaluation["steps"] if step["attack"] != "transfer"]
        assert [row["step"] for row in own] == [step["name"] for step in steps]
        assert all(row["only"] <= row["broken"] <= row["right"] for row in own)
        assert all(row["beyond"] is not None for row in own)
        assert [row["fooled"] is None for row in own] == [step["view"] == "hpm" for step in steps]
        assert own[0]["broken"] == steps[0]["broken"], "the first of the trial met every image, too"


def test_batches_are_composed_for_joint_alone(tmp_path) -> None:
    """The other trials are those of any other command, and are not done again."""
    arguments = ["-q", "run", "--screen", "quick", "--n-ex", "24", "--joint-size", "8", "--workers", "1"]
    arguments += ["--batches", "sorted", "--format", "json", "--output", str(tmp_path)]
    rows = json.loads(CliRunner().invoke(cli, arguments, obj=[], catch_exceptions=False).stdout)
    assert [f"{row['batching']} {row['batches']}" for row in rows] == ["solo iid", "solo iid", "joint sorted"]
    plans = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/plan.json")]
    assert [len(plan["labels"]) for plan in plans if "labels" in plan] == [24]


def test_an_unknown_screen(tmp_path) -> None:
    with pytest.raises(UnknownName, match="coupling"):
        screen(spec_to_run(MODEL, None, None, None), RunOptions(n_ex=4, output=tmp_path, screen="couple"))
