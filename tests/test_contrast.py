"""The interval holds the planted ratio at its stated rate, whatever the noise."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from orchestrator import contrast
from orchestrator.sequential import critical_value
from orchestrator.student import quantile
from tests.planted import ARMS, THREE_ARMS, Floats, frames, noisy


def intervals(trials: pl.DataFrame, windows: pl.DataFrame, planned_boots: int | None = None) -> pl.DataFrame:
    numbered = contrast.numbered(trials)
    pairs = contrast.pairs(numbered)
    sides = contrast.sides(numbered, pairs)
    logs = contrast.log_windows(numbered, windows)
    boots = contrast.boot_contrasts(logs, sides, contrast.rounds(logs, sides))
    cells = numbered.group_by("cell_id").agg(pl.col("concurrency").first())
    return (
        contrast.intervals(boots.with_columns(planned=pl.lit(planned_boots, pl.Int64)))
        .join(pairs, on="pair_id")
        .join(cells, on="cell_id")
        .sort("concurrency", "arm", "baseline", "metric")
    )


def planted(seed: int, boots: int, noise: str, cells: int = 2000, boot_sd: float = 0.02) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    rates = noisy(rng, (cells, boots, 2, 6), noise, boot_sd) + 7.0
    truth = rng.uniform(math.log(0.7), math.log(2.5), cells)
    rates[:, :, 1] += truth[:, None, None]
    return rates, truth


def coverage(found: pl.DataFrame, truth: Floats) -> float:
    rows = found.filter(metric="throughput")
    return float(np.mean(np.abs(rows["log_ratio"].to_numpy() - truth) <= rows["half_width"].to_numpy()))


@pytest.mark.parametrize("noise", ["gauss", "ar1", "t3", "modes"])
@pytest.mark.parametrize("boot_sd", [0.0, 0.05])
def test_three_boots_hold_the_planted_ratio(noise: str, boot_sd: float) -> None:
    rates, truth = planted(1, 3, noise, boot_sd=boot_sd)
    assert coverage(intervals(*frames(rates)), truth) >= 0.94


@pytest.mark.parametrize(("noise", "boots"), [("gauss", 3), ("ar1", 5), ("t3", 4), ("modes", 3)])
def test_a_planned_number_of_boots_holds_it_with_the_plain_interval(noise: str, boots: int) -> None:
    rates, truth = planted(2, boots, noise)
    assert coverage(intervals(*frames(rates), planned_boots=boots), truth) >= 0.94


def test_arms_alone_hold_it_though_they_share_no_round() -> None:
    rates, truth = planted(3, 3, "gauss")
    assert coverage(intervals(*frames(rates, residency="alone")), truth) >= 0.94


def test_variances_pooled_over_cells_that_share_their_boots_would_not_hold_it() -> None:
    """Why no cell borrows variance from another: boot effects common to ten cells give pooling ten times the same two
    degrees of freedom, and a normal quantile on them misses one time in six."""
    rng = np.random.default_rng(4)
    boot = rng.normal(0, 0.03, (4000, 3, 1)) + rng.normal(0, 0.003, (4000, 3, 10))
    error = np.sqrt(boot.var(axis=1, ddof=1).mean(axis=1, keepdims=True) / 3)
    assert np.mean(np.abs(boot.mean(axis=1)) <= 1.96 * error) < 0.90
    own = np.sqrt(boot.var(axis=1, ddof=1) / 3)
    assert np.mean(np.abs(boot.mean(axis=1)) <= quantile(0.975, 2) * own) >= 0.94


def test_one_cell_by_hand() -> None:
    rates = np.zeros((1, 3, 2, 2))
    rates[0, :, 1] = [[0.10, 0.12], [0.20, 0.22], [0.30, 0.32]]
    row = intervals(*frames(rates + 8.0)).filter(metric="throughput").row(0, named=True)
    assert row["log_ratio"] == pytest.approx(0.21, abs=1e-6)
    assert row["half_width"] == pytest.approx(critical_value(3) * 0.1 / math.sqrt(3), rel=1e-4)
    assert row["ratio_of_means"] == pytest.approx(np.exp([0.11, 0.21, 0.31]).mean(), rel=1e-6)
    assert (row["boots"], row["windows"]) == (3, 6)


def test_boots_that_agree_by_luck_do_not_shrink_the_interval_below_the_windows_scatter() -> None:
    rates = np.zeros((1, 3, 2, 4)) + 8.0
    rates[:, :, 1] += np.array([-0.1, 0.1, -0.1, 0.1])
    row = intervals(*frames(rates)).filter(metric="throughput").row(0, named=True)
    variance = 4 * 0.01 / 3
    assert row["half_width"] == pytest.approx(quantile(0.975, 9) * math.sqrt(variance / 12), rel=1e-3)


def test_drift_common_to_the_arms_leaves_no_trace() -> None:
    still = np.random.default_rng(5).normal(8, 0.01, (1, 3, 2, 6))
    moving = still + np.linspace(0, -0.4, 6)
    one, two = (intervals(*frames(rates)).filter(metric="throughput") for rates in (still, moving))
    for column in ("log_ratio", "half_width"):
        assert one[column].item() == pytest.approx(two[column].item(), abs=1e-5)


def test_the_steps_multiply_to_the_gain() -> None:
    found = intervals(*frames(noisy(np.random.default_rng(6), (1, 3, 3, 4)) + 8.0, THREE_ARMS))
    ratios = {row["part"]: row["log_ratio"] for row in found.filter(metric="throughput").iter_rows(named=True)}
    assert set(ratios) == {"gain", "host_parallelism", "kernel_overlap"}
    assert ratios["host_parallelism"] + ratios["kernel_overlap"] == pytest.approx(ratios["gain"], abs=1e-9)


def test_mps_of_one_engine_is_its_own_cost_and_other_sizes_are_not_paired() -> None:
    arms = (("single", "single", 1), ("mps1", "mps", 1), ("timesliced2", "timesliced", 2), ("mps3", "mps", 3))
    pairs = contrast.pairs(contrast.numbered(frames(np.zeros((1, 1, 4, 1)), arms)[0]))
    assert {(row["arm"], row["baseline"]): row["part"] for row in pairs.iter_rows(named=True)} == {
        ("mps1", "single"): "mps_cost",
        ("timesliced2", "single"): "host_parallelism",
        ("mps3", "single"): "gain",
    }


def test_a_window_that_is_not_certified_takes_its_round_with_it() -> None:
    rates = np.full((1, 3, 2, 4), 8.0)
    rates[0, 0, 1, 2] = 20.0
    trials, windows = frames(rates)
    torn = pl.col("output_tokens") > 10**9
    row = intervals(trials, windows.with_columns(certified=~torn)).filter(metric="throughput").row(0, named=True)
    assert row["windows"] == 11
    assert row["log_ratio"] == pytest.approx(0.0, abs=1e-9)


def test_repeats_in_one_boot_of_the_baseline_are_one_boot() -> None:
    trials, windows = frames(noisy(np.random.default_rng(7), (1, 4, 2, 4)) + 8.0)
    shared = pl.when(pl.col("repeat") < 2).then(pl.format("shared-{}", "arm")).otherwise("boot_id")
    assert intervals(trials.with_columns(boot_id=shared), windows)["boots"].unique().to_list() == [3]


def test_prefill_counts_prompt_tokens() -> None:
    trials, windows = frames(np.zeros((1, 3, 2, 2)) + 8.0, kind="prefill")
    mps = trials.filter(arm="mps2")["trial_id"].to_list()
    twice = pl.when(pl.col("trial_id").is_in(mps)).then(2 * pl.col("prompt_tokens")).otherwise("prompt_tokens")
    found = intervals(trials, windows.with_columns(prompt_tokens=twice)).filter(metric="throughput")
    assert math.exp(found["log_ratio"].item()) == pytest.approx(2.0, rel=1e-6)


def test_latencies_are_ratios_of_their_columns() -> None:
    rates = np.zeros((1, 3, len(ARMS), 2)) + 8.0
    rates[:, :, 1] += math.log(1.25)
    found = intervals(*frames(rates)).filter(pl.col("metric") != "throughput")
    assert len(found) == 6
    assert found["log_ratio"].exp().to_list() == pytest.approx([0.8] * 6, rel=1e-9)
