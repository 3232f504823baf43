"""A neighbour that works in turns is seen to cost what it was planted to cost, and nothing where that is nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from benchmarks.company import effect

SECOND = 10**9
SPELLS = [(20 * k * SECOND, (20 * k + 10) * SECOND) for k in range(40)]  # ten seconds of load, ten of rest


def frames(cost: float, scatter: float, boots: int = 2, prefill: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Windows of four seconds every five, each in one state; a boot has a speed of its own."""
    generator = np.random.default_rng(5)
    trials, windows = [], []
    for boot in range(boots):
        trial = {"trial_id": f"t{boot}", "model": "m", "kind": "prefill" if prefill else "mixed", "arm": "single"}
        trials.append(trial | {"prompt_tokens": 128, "output_tokens": 128, "concurrency": 64})
        for index in range(80):
            start = index * 5 * SECOND + 10**8
            company = start // SECOND % 20 < 6
            rate = 1000.0 * (1 + boot) * (cost if company else 1.0) * float(np.exp(generator.normal(0, scatter)))
            windows.append(
                {
                    "trial_id": f"t{boot}",
                    "boot_id": f"b{boot}",
                    "start_ns": start,
                    "duration_s": 4.0,
                    "output_tokens": 7 if prefill else round(rate * 4),
                    "prompt_tokens": 7,
                    "certified": True,
                    "prefill_tokens_s": rate if prefill else None,
                    "output_tokens_s": None if prefill else rate,
                }
            )
    schema = {"prefill_tokens_s": pl.Float64, "output_tokens_s": pl.Float64}
    return pl.DataFrame(trials), pl.DataFrame(windows, schema_overrides=schema)


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.parametrize("cost", [1.0, 0.97, 0.8])
def test_what_company_costs_comes_back_inside_a_narrow_interval(cost: float, prefill: bool) -> None:
    (row,) = effect(*frames(cost, 0.02, prefill=prefill), SPELLS).to_dicts()
    assert row["low"] < cost < row["high"]
    assert row["high"] / row["low"] < 1.03
    assert row["with_company"] > 30 and row["alone"] > 30


def test_without_scatter_the_ratio_is_exact_and_boots_of_other_speed_do_not_matter() -> None:
    (row,) = effect(*frames(0.9, 0.0), SPELLS).to_dicts()
    assert row["ratio"] == pytest.approx(0.9, rel=1e-3) and row["high"] - row["low"] < 1e-3


def test_windows_of_a_mixed_state_and_uncertified_ones_are_left_out() -> None:
    trials, windows = frames(0.9, 0.0, boots=1)
    half = [(start + 2 * SECOND, end) for start, end in SPELLS]
    (row,) = effect(trials, windows, half).to_dicts()
    assert row["with_company"] + row["alone"] < windows.height
    assert effect(trials, windows.with_columns(certified=pl.lit(value=False)), SPELLS).is_empty()


def test_a_neighbour_that_never_worked_leaves_no_ratio() -> None:
    (row,) = effect(*frames(1.0, 0.01), []).to_dicts()
    assert (row["with_company"], row["alone"], row["ratio"]) == (0, 160, None)


def test_what_a_gpu_host_runs_needs_no_plotly() -> None:
    modules = "benchmarks.company, orchestrator.sweep, orchestrator.host, orchestrator.thin, orchestrator.doctor"
    script = f"import sys; sys.modules.update(plotly=None, dash=None); import {modules}"
    subprocess.run([sys.executable, "-c", script], check=True)
