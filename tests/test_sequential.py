"""Stopping when the answer is in must not cost the answer its truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from orchestrator.boundary import boundary
from orchestrator.sequential import (
    BOUNDARY,
    MAX_BOOTS,
    boots_to_decide,
    critical_value,
    enough,
    looks_factor,
    spent,
)
from orchestrator.student import quantile
from orchestrator.trial import Measurement
from orchestrator.verdicts import judge
from tests.planted import Floats, frames, noisy

LAST = 8


def until_decided(log_rates: Floats, margin: float) -> pl.DataFrame:
    """The sequential rule on many cells at once: look after 3, 4, ... boots, keep each cell's first decision."""
    open_cells = np.arange(len(log_rates))
    final = []
    for boots in range(3, log_rates.shape[1] + 1):
        verdicts = judge(*frames(log_rates[open_cells, :boots]), margin=margin).filter(metric="throughput")
        verdicts = verdicts.sort("concurrency").with_columns(cell=pl.Series(open_cells))
        done = (pl.col("verdict") != "undecided") | (boots == log_rates.shape[1])
        final.append(verdicts.filter(done))
        open_cells = verdicts.filter(~done)["cell"].to_numpy()
    return pl.concat(final).sort("cell")


def test_the_final_interval_holds_its_rate_when_it_was_a_verdict_that_stopped() -> None:
    rng = np.random.default_rng(20)
    rates = noisy(rng, (1000, 6, 2, 4)) + 7.0
    truth = rng.uniform(math.log(0.9), math.log(1.15), 1000)
    rates[:, :, 1] += truth[:, None, None]
    found = until_decided(rates, 0.03).with_columns(truth=np.exp(truth))
    assert found["boots"].n_unique() > 2
    assert found.select(pl.col("truth").is_between("ci_low", "ci_high").mean()).item() >= 0.94


@pytest.mark.parametrize("noise", ["gauss", "t3"])
def test_equal_arms_at_no_margin_seldom_have_a_winner_however_often_one_looks(noise: str) -> None:
    found = until_decided(noisy(np.random.default_rng(21), (1000, LAST, 2, 4), noise) + 7.0, 0.0)
    assert found.select(pl.col("verdict").is_in(["wins", "loses"]).mean()).item() <= 0.05


@pytest.mark.parametrize(("gain", "verdict", "spread"), [(1.08, "wins", 1.0), (0.92, "loses", 1.0), (1.0, "tie", 0.5)])
def test_what_lies_beyond_the_margin_is_decided_in_eight_boots(gain: float, verdict: str, spread: float) -> None:
    """Boots 1 % apart, windows 2 %, six windows a boot and arm: a contrast varies by 1.8 % from boot to boot.

    A tie needs an interval narrower than the whole margin, so it takes half that spread to be said within the budget.
    """
    rates = noisy(np.random.default_rng(22), (300, LAST, 2, 6), boot_sd=0.01 * spread, sd=0.02 * spread) + 7.0
    rates[:, :, 1] += math.log(gain)
    found = until_decided(rates, 0.03)
    decided = found.select((pl.col("verdict") == verdict).mean()).item()
    wrong = found.select((~pl.col("verdict").is_in([verdict, "undecided"])).mean()).item()
    assert wrong <= 0.05
    assert decided >= 0.9


def test_the_boundary_spends_what_it_says() -> None:
    rng = np.random.default_rng(23)
    series = rng.standard_normal((16, 200_000))
    sums, squares = series.cumsum(0), (series**2).cumsum(0)
    alive = np.ones(200_000, bool)
    for boots in range(3, 17):
        mean = sums[boots - 1] / boots
        error = np.sqrt((squares[boots - 1] - boots * mean**2) / (boots - 1) / boots)
        alive &= np.abs(mean) < BOUNDARY[boots] * error
        assert 1 - alive.mean() == pytest.approx(0.05 * spent(boots), abs=0.0012)


def test_the_boundary_can_be_made_again() -> None:
    found = boundary(400_000, seed=7)
    assert list(found) == list(BOUNDARY)
    assert list(found.values()) == pytest.approx(list(BOUNDARY.values()), rel=0.03)


def test_critical_values_of_the_edges() -> None:
    assert critical_value(1) == math.inf
    assert critical_value(2) == pytest.approx(12.706, abs=1e-3)
    assert critical_value(3, planned_boots=3) == pytest.approx(4.303, abs=1e-3)
    assert critical_value(4, planned_boots=3) == BOUNDARY[4]
    assert critical_value(17) > BOUNDARY[16]
    assert spent(2) == 0.0 and spent(10**6) == pytest.approx(1.0)
    assert sum(1 / looks_factor(boots) for boots in range(3, 200)) < 1.0
    assert looks_factor(5, planned_boots=5) == 1.0


def rounds(sd: float, count: int) -> list[float]:
    """A series whose sample standard deviation is exactly `sd`."""
    values = np.linspace(-1, 1, count)
    return list(0.2 + values * sd / values.std(ddof=1))


def test_enough_is_the_half_width_with_the_looks_paid_for() -> None:
    look = Measurement(min_windows=4, max_windows=8, interval_target=0.02)
    limit = 0.02 * math.sqrt(6) / quantile(1 - 0.05 / 5 / 2, 5)
    assert enough({"mps2": rounds(0.999 * limit, 6)}, look)
    assert not enough({"mps2": rounds(1.001 * limit, 6)}, look)
    assert not enough({"mps2": rounds(0.1 * limit, 6), "timesliced2": rounds(2 * limit, 6)}, look)


def test_enough_needs_the_least_number_of_windows_and_leaves_out_the_failed() -> None:
    look = Measurement(min_windows=4, max_windows=8, interval_target=0.02)
    assert not enough({"mps2": rounds(1e-6, 3)}, look)
    assert enough({"mps2": rounds(1e-6, 4), "failed": []}, look)
    assert not enough({"mps2": [0.1, math.nan, 0.1, 0.1]}, look)
    assert enough({"mps2": rounds(1e-6, 2)}, Measurement(min_windows=1, max_windows=1, interval_target=0.02))


def simulated_stop(width: Callable[[int], float], rng: np.random.Generator) -> bool:
    """Whether the interval at the stop holds the true 0; `width` is in standard errors."""
    series = list(rng.normal(0, 0.02, 4))
    while len(series) < 8 and not enough({"a": series}, Measurement()):
        series.append(float(rng.normal(0, 0.02)))
    return abs(np.mean(series)) <= width(len(series)) * float(np.std(series, ddof=1)) / math.sqrt(len(series))


def test_the_interval_within_a_repeat_holds_where_the_rounds_stop() -> None:
    rng = np.random.default_rng(24)
    held = [simulated_stop(lambda n: quantile(1 - 0.05 / 5 / 2, n - 1), rng) for _ in range(400)]
    assert np.mean(held) >= 0.95


def test_boots_to_decide_is_the_first_that_clears_the_margin() -> None:
    wanted = boots_to_decide(*(np.array(v) for v in ([0.1, 0.1, 0.0], [0.02, 0.06, 0.01], [3.0] * 3, [0.03] * 3)))
    distance = 0.1 - math.log1p(0.03)
    assert wanted[0] == 4
    total = int(wanted[1])
    assert (
        critical_value(total) * 0.06 / math.sqrt(total)
        < distance
        <= critical_value(total - 1) * 0.06 / math.sqrt(total - 1)
    )
    assert wanted[2] == 5


def test_a_cell_on_the_margin_is_given_up_once_its_spread_is_known() -> None:
    edge, spread, boots = [0.0296] * 4 + [0.1], [0.02] * 4 + [np.nan], [3.0, 4.0, 12.0, 16.0, 1.0]
    wanted = boots_to_decide(*(np.array(v) for v in (edge, spread, boots, [0.03] * 5)))
    assert wanted[:2].tolist() == [MAX_BOOTS, MAX_BOOTS]
    assert np.isnan(wanted[2:]).all()
    hoped = boots_to_decide(*(np.array([v]) for v in (0.0296 + 0.01, 0.02, 12.0, 0.03)))
    assert hoped.item() == MAX_BOOTS
