"""The slope of a gain over context, and the shape that predicts best, against planted truth and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dashboards.context_fit import best_share, left_out_errors, slope

CONTEXTS = 2.0 ** np.arange(7, 15)
DOUBLINGS = np.log2(CONTEXTS)
SHAPES = {
    "log-linear": 2.0 - 0.15 * (DOUBLINGS - 7),
    "linear": 2.0 - CONTEXTS / 16384,
    "step": np.where(CONTEXTS <= 1024, 2.0, 1.0),
}
# What a boot does to its cells, by context.
BOOTS = {
    "each cell apart": np.eye(8),
    "all alike": np.ones((1, 8)),
    "short contexts alone": (CONTEXTS <= 1024).astype(float)[None],
    "tilted": (DOUBLINGS - DOUBLINGS.mean())[None] / 3.5,
}


def test_the_slope_carries_the_cells_uncertainty() -> None:
    """Worked by hand: x = 0, 1, 2, so the slope is (y_2 - y_0) / 2 and its half-width (h_0 + h_2) / 2."""
    line = slope([128, 256, 512], [1.5, 9.0, 1.1], [0.3, 7.0, 0.4])
    assert line.value == pytest.approx(-0.2)
    assert (line.low, line.high) == pytest.approx((-0.55, 0.15))


@pytest.mark.parametrize("boot", BOOTS)
def test_the_slopes_interval_holds_the_truth_as_often_as_it_says(boot: str) -> None:
    """Three boots of which each does something to its cells, besides a little noise of each cell."""
    rng = np.random.default_rng(5)
    pattern = BOOTS[boot]
    effects = np.einsum("srk,kc->scr", rng.normal(0, 0.05, (2000, 3, len(pattern))), pattern)
    seen = effects + rng.normal(0, 0.005, effects.shape) + SHAPES["log-linear"][:, None]
    half = 4.302653 * seen.std(axis=2, ddof=1) / np.sqrt(3)
    lines = [slope(CONTEXTS, *each) for each in zip(seen.mean(axis=2), half, strict=True)]
    share = np.mean([line.low <= -0.15 <= line.high for line in lines])
    assert share >= 0.94  # 0.95 less two standard errors of 2,000 draws


@pytest.mark.parametrize("shape", ["log-linear", "linear", "step"])
def test_left_out_cells_are_predicted_by_the_planted_shape(shape: str) -> None:
    gains = SHAPES[shape]
    errors = left_out_errors(CONTEXTS, gains)
    assert min(errors, key=lambda name: errors[name]) == shape
    if shape != "step":  # the cells beside the step are in its gap when they are left out
        assert errors[shape] == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(1)
    several = left_out_errors(CONTEXTS, gains + rng.normal(0, 0.01, (5, 8)))
    assert all(error.shape == (5,) for error in several.values())
    share = best_share(CONTEXTS, gains, np.full(8, 0.01), np.full(8, 3))
    assert share > 0.95 if shape == "log-linear" else share < 0.025


def test_lines_left_out_are_those_of_fitting_without_them() -> None:
    gains = np.random.default_rng(2).normal(1, 0.3, 8)
    for shape, x in (("log-linear", np.log2(CONTEXTS)), ("linear", CONTEXTS)):
        left = [
            gains[i] - np.polyval(np.polyfit(np.delete(x, i), np.delete(gains, i), 1), x[i]) for i in range(gains.size)
        ]
        assert left_out_errors(CONTEXTS, gains)[shape] == pytest.approx(np.sqrt(np.mean(np.square(left))))
    with pytest.raises(ValueError, match="too few"):
        left_out_errors(CONTEXTS[:3], gains[:3])
