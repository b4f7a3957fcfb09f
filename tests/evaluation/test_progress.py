"""Who waits is told how far it is, without being flooded."""

from __future__ import annotations

import logging

import pytest

from hpm_robustbench.evaluation import progress
from hpm_robustbench.evaluation.progress import Progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[float]:
    """A clock that stands where the test puts it; its first entry is now."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    return now


def test_a_line_comes_every_few_seconds_however_often_a_model_is_called(
    seconds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("a run", total=2) as told:
        told.begin("noise")
        for _ in range(100):
            seconds[0] += 0.125
            told.tick()
    assert caplog.messages == [
        "a run: 0/2 steps written; noise, 40 model calls",
        "a run: 0/2 steps written; noise, 80 model calls",
    ]


def test_a_step_that_is_written_is_told_at_once(seconds: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with Progress("a run", total=2) as told:
        told.begin("clean")
        told.tick()
        told.finish(87.5)
    assert caplog.messages == ["a run: 1/2 steps written; clean done, 87.5 % of the shard left to attack"]
