"""The tapered rate against streams of bursts whose rate is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from orchestrator.taper import tapered_rate

WINDOW_S = 4.0


def bursts(times_s: np.ndarray, tokens_each: int = 8192) -> pl.DataFrame:
    """Sixteen requests a burst, half a millisecond from the first to the last, as a step hands them out."""
    spread_s = np.linspace(0.0, 0.0005, 16)
    first_ns = ((times_s[:, None] + spread_s).ravel() * 1e9).astype(np.int64)
    return pl.DataFrame({"prompt_tokens": np.full(first_ns.size, tokens_each // 16), "first_token_ns": first_ns})


@pytest.mark.parametrize("step_s", [0.0131, 0.0413, 0.083, 0.31])
def test_the_phase_of_the_steps_hardly_shows(step_s: float) -> None:
    truth = 8192 / step_s
    found = [
        tapered_rate(bursts(np.arange(phase * step_s - 2.0, 8.0, step_s)), 0, WINDOW_S)
        for phase in np.linspace(0, 1, 21)
    ]
    plain = []
    for phase in np.linspace(0, 1, 21):
        times = np.arange(phase * step_s - 2.0, 8.0, step_s)
        plain.append(((times > 0) & (times <= WINDOW_S)).sum() * 8192 / WINDOW_S)
    steps = WINDOW_S / step_s
    assert np.max(np.abs(np.array(found) / truth - 1)) < 1.1 / steps**2 + 2e-4
    assert np.ptp(plain) / truth > 0.5 / steps


def test_random_arrivals_have_the_right_rate_and_a_variance_of_six_fifths() -> None:
    rng = np.random.default_rng(7)
    tapered, plain = [], []
    for _ in range(2000):
        times_s = rng.uniform(-1.0, 5.0, rng.poisson(6.0 * 50))
        rows = pl.DataFrame({"prompt_tokens": np.full(times_s.size, 10), "first_token_ns": (times_s * 1e9).astype(int)})
        tapered.append(tapered_rate(rows, 0, WINDOW_S))
        plain.append(10 * ((times_s > 0) & (times_s <= WINDOW_S)).sum() / WINDOW_S)
    assert np.mean(tapered) == pytest.approx(500.0, rel=0.01)
    assert np.var(tapered) / np.var(plain) == pytest.approx(1.2, abs=0.15)


def test_what_lies_outside_or_never_came_counts_for_nothing() -> None:
    rows = pl.DataFrame({"prompt_tokens": [512] * 4, "first_token_ns": [None, -5, int(9e9), int(2e9)]})
    assert tapered_rate(rows, 0, WINDOW_S) == pytest.approx(512 * 1.5 / WINDOW_S)
    assert tapered_rate(rows.head(1), 0, WINDOW_S) == 0.0
