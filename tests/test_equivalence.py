"""Residency against truths that were planted: contrasts of known mean and spread, one a boot."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from orchestrator.equivalence import residency
from orchestrator.verdicts import judge
from tests.planted import frames

ROUNDS = 3


def both_ways(contrasts: list[float]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """An arm among residents and alone in the same boots; the boots themselves differ widely."""
    boots = 10.0 + np.linspace(-1.0, 1.0, len(contrasts))
    logs = np.stack([boots + np.array(contrasts), boots], axis=1)[None, :, :, None] + np.zeros(ROUNDS)
    trials, windows = frames(logs, arms=(("single", "single", 1), ("alone", "single", 1)))
    lone = pl.col("arm") == "alone"
    trials = trials.with_columns(
        residency=pl.when(lone).then(pl.lit("alone")).otherwise(pl.lit("resident")),
        boot_id=pl.format("boot{}", "repeat"),
        repeat_id=pl.when(lone).then(pl.format("{}-alone", "repeat_id")).otherwise("repeat_id"),
        arm=pl.lit("single"),
        concurrency=pl.lit(8, pl.Int64),
    )
    return trials, windows


@pytest.mark.parametrize(
    ("contrasts", "verdict"),
    [
        ([0.001, -0.001, 0.0005], "harmless"),
        ([-0.05, -0.051, -0.049], "harmful"),
        ([0.05, 0.051, 0.049], "harmful"),
        ([-0.03, 0.03, 0.0], "undecided"),
        ([0.0], "undecided"),
    ],
)
def test_the_verdict_follows_the_interval(contrasts: list[float], verdict: str) -> None:
    row = residency(*both_ways(contrasts)).row(0, named=True)
    assert (row["verdict"], row["boots"], row["bound"]) == (verdict, len(contrasts), 0.015)
    assert row["ratio"] == pytest.approx(math.exp(np.mean(contrasts)), rel=1e-5)
    if len(contrasts) == 3:
        reach = 4.302653 * np.std(contrasts, ddof=1) / math.sqrt(3)
        assert row["ci_low"] == pytest.approx(math.exp(np.mean(contrasts) - reach), rel=1e-4)
        assert row["ci_high"] == pytest.approx(math.exp(np.mean(contrasts) + reach), rel=1e-4)


def test_a_boot_that_was_measured_one_way_only_says_nothing() -> None:
    trials, windows = both_ways([0.0, 0.001, -0.001])
    less = trials.filter(~((pl.col("residency") == "alone") & (pl.col("repeat") == 1)))
    assert residency(less, windows)["boots"].to_list() == [2]
    assert residency(trials.filter(residency="resident"), windows).is_empty()


def test_windows_without_certificate_do_not_count() -> None:
    trials, windows = both_ways([0.0, 0.001, -0.001])
    alone = trials.filter(pl.col("residency") == "alone", pl.col("repeat") == 2)["trial_id"]
    spoilt = windows.with_columns(certified=~pl.col("trial_id").is_in(alone.to_list()))
    assert residency(trials, spoilt)["boots"].to_list() == [2]


def test_arms_that_were_measured_alone_in_turn_are_not_compared_with_each_other() -> None:
    logs = np.zeros((1, 4, 2, ROUNDS)) + 10.0
    arms = (("timesliced2", "timesliced", 2), ("mps2", "mps", 2))
    trials, windows = frames(logs, arms=arms, baseline="single", residency="alone")
    together = judge(trials, windows)
    assert set(together["arm"]) == {"mps2", "timesliced2"} and together.height > 0
    apart = trials.with_columns(repeat_id=pl.format("{}-{}", "repeat_id", "arm"))
    assert judge(apart, windows).is_empty()
