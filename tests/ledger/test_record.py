"""Shards come together whatever was left to do in each."""

from __future__ import annotations

from hpm_robustbench.ledger.record import StepResult, Verdict, merge_shards


def test_a_shard_with_nothing_left_joins_one_that_was_attacked() -> None:
    live = StepResult("a", (2, 0), (1, 2), (7, 8), (0.0, 0.1), 5, 4, (), fooled=(False, True), together=(1, 2))
    dead = StepResult("a", (1, 3), (4, 4), (None, None), (None, None))
    merged = merge_shards([live, dead])
    assert merged == merge_shards([dead, live])
    assert merged.rows == (0, 1, 2, 3)
    assert merged.verdict == (Verdict.BROKEN, Verdict.SKIPPED, Verdict.STANDING, Verdict.SKIPPED)
    assert merged.fooled == (True, None, False, None)
    assert merged.together == (Verdict.BROKEN, Verdict.SKIPPED, Verdict.STANDING, Verdict.SKIPPED)
    assert (merged.forward, merged.backward) == (5, 4)


def test_columns_that_no_shard_has_stay_empty() -> None:
    dead = StepResult("a", (1, 3), (4, 4), (None, None), (None, None))
    assert merge_shards([dead]).fooled == merge_shards([dead]).together == ()
