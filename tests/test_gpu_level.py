"""The interval over GPUs against one worked by hand, and against what it claims where GPUs differ."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from orchestrator.student import quantile
from orchestrator.verdicts import judge
from tests.planted import frames

WITHIN, BETWEEN, GAIN = 0.001, 0.02, 0.1


def planted(cells: int, gpus: int, boots_a_gpu: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A gain that differs from GPU to GPU by BETWEEN and from boot to boot of a GPU by WITHIN."""
    rng = np.random.default_rng([cells, gpus])
    own = GAIN + rng.normal(0.0, BETWEEN, (cells, gpus, 1)) + rng.normal(0.0, WITHIN, (cells, gpus, boots_a_gpu))
    log_rates = np.full((cells, gpus * boots_a_gpu, 2, 2), 7.0)
    log_rates[:, :, 1] += own.reshape(cells, -1, 1)
    trials, windows = frames(log_rates)
    place = pl.format("GPU-{}", pl.col("repeat") // boots_a_gpu)
    return trials.with_columns(gpu_uuid=place), windows


def test_the_interval_is_students_over_the_means_of_gpus() -> None:
    trials, windows = planted(cells=1, gpus=3, boots_a_gpu=2)
    row = judge(trials, windows).filter(metric="throughput").row(0, named=True)
    rates = windows.join(trials.select("trial_id", "repeat", "arm"), on="trial_id").with_columns(
        log=(pl.col("output_tokens") / pl.col("duration_s")).log()
    )
    by_gpu = rates.group_by(pl.col("repeat") // 2, "arm").agg(pl.col("log").mean()).pivot("arm", values="log")
    ratios = (by_gpu["mps2"] - by_gpu["single"]).to_numpy()
    half = quantile(0.975, 2) * ratios.std(ddof=1) / math.sqrt(3)
    assert (row["boots"], row["gpus"]) == (6, 3)
    assert row["gpus_low"] == pytest.approx(math.exp(ratios.mean() - half), rel=1e-6)
    assert row["gpus_high"] == pytest.approx(math.exp(ratios.mean() + half), rel=1e-6)


def test_it_holds_the_mean_over_gpus_where_boots_alone_do_not() -> None:
    rows = judge(*planted(cells=600, gpus=3, boots_a_gpu=4), planned_boots=12).filter(metric="throughput")
    truth = math.exp(GAIN)
    held = rows.select((pl.col("gpus_low") <= truth) & (truth <= pl.col("gpus_high"))).to_series().mean()
    by_boots = rows.select((pl.col("ci_low") <= truth) & (truth <= pl.col("ci_high"))).to_series().mean()
    assert isinstance(held, float) and isinstance(by_boots, float)
    assert held >= 0.93 and by_boots < 0.90


def test_one_gpu_has_none() -> None:
    trials, windows = planted(cells=1, gpus=1, boots_a_gpu=3)
    row = judge(trials, windows).filter(metric="throughput").row(0, named=True)
    assert (row["gpus"], row["gpus_low"], row["gpus_high"]) == (1, None, None)
