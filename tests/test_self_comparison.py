"""An arm dealt out to two: nothing of one trial is in both, nothing is lost but the last of an odd number."""

from __future__ import annotations

import numpy as np
import polars as pl

from orchestrator.self_comparison import halves
from orchestrator.verdicts import judge
from tests.planted import frames

BOOTS, WINDOWS = 4, 5


def planted(drift: float = 0.0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One cell, two arms far apart; every window a little apart from the one before it."""
    chance = np.random.default_rng(7).normal(0.0, 0.01, (1, BOOTS, 2, WINDOWS))
    log_rates = 9.0 + np.array([0.0, 0.5])[None, None, :, None] + drift * np.arange(WINDOWS) + chance
    return frames(log_rates)


def test_every_arm_is_compared_with_itself_alone():
    trials, windows = planted()
    dealt, shares = halves(trials, windows)
    assert set(dealt["sweep"]) == {"planted: single", "planted: mps2"} and set(dealt["arm"]) == {"one", "other"}
    assert shares.height == 2 * BOOTS * (WINDOWS - 1)
    assert set(shares.group_by("trial_id").len()["len"]) == {(WINDOWS - 1) // 2}
    rows = judge(dealt, shares, margin=0.0).filter(metric="throughput")
    assert rows.height == 2 and set(rows["boots"]) == {BOOTS}
    assert rows["ratio"].is_between(0.97, 1.03).all()  # and not the 1.65 between the two arms


def test_a_drift_within_boots_favours_neither():
    trials, windows = planted(drift=0.05)
    rows = judge(*halves(trials, windows), margin=0.0).filter(metric="throughput")
    assert rows["ratio"].is_between(0.99, 1.01).all()


def test_failed_trials_and_trials_with_one_window_are_left_out():
    trials, windows = planted()
    bad = trials["trial_id"][0]
    dealt, shares = halves(
        trials.with_columns(outcome=pl.when(pl.col("trial_id") == bad).then(pl.lit("failed")).otherwise("outcome")),
        windows.filter((pl.col("trial_id") != trials["trial_id"][1]) | (pl.col("window_index") == 0)),
    )
    seen = set(shares["trial_id"].str.split(" ").list.first())
    assert seen == set(trials["trial_id"][2:]) and bad not in set(dealt["trial_id"].str.split(" ").list.first())
