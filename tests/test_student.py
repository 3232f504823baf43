"""Published values of Student's t: NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.student import quantile, upper_tail

TABLE = {  # degrees of freedom: 0.90, 0.95, 0.975, 0.99, 0.995, 0.999
    1: (3.078, 6.314, 12.706, 31.821, 63.657, 318.309),
    2: (1.886, 2.920, 4.303, 6.965, 9.925, 22.327),
    3: (1.638, 2.353, 3.182, 4.541, 5.841, 10.215),
    5: (1.476, 2.015, 2.571, 3.365, 4.032, 5.893),
    10: (1.372, 1.812, 2.228, 2.764, 3.169, 4.144),
    30: (1.310, 1.697, 2.042, 2.457, 2.750, 3.385),
    100: (1.290, 1.660, 1.984, 2.364, 2.626, 3.174),
}


@pytest.mark.parametrize("df", TABLE)
def test_quantiles_are_the_published_ones(df: int) -> None:
    for probability, published in zip((0.90, 0.95, 0.975, 0.99, 0.995, 0.999), TABLE[df], strict=True):
        assert quantile(probability, df) == pytest.approx(published, abs=6e-4)
        assert quantile(1 - probability, df) == -quantile(probability, df)


def test_tails_have_their_closed_forms() -> None:
    t = np.array([-50.0, -3.0, -1e-6, 0.0, 1e-9, 0.5, 4.3, 1e5])
    assert upper_tail(t, 1) == pytest.approx(0.5 - np.arctan(t) / math.pi, abs=1e-12)
    assert upper_tail(t, 2) == pytest.approx(0.5 - t / (2 * np.sqrt(2 + t**2)), abs=1e-12)


def test_tails_of_odd_arguments() -> None:
    found = upper_tail([np.inf, -np.inf, np.nan, 1.0, 1.0], [3, 3, 3, 0, -1])
    assert found[:2] == pytest.approx([0.0, 1.0])
    assert np.isnan(found[2:]).all()
    assert upper_tail(np.zeros(0), 3).shape == (0,)


def test_quantile_and_tail_are_inverse() -> None:
    for df in (1, 2.5, 7, 400):
        assert float(upper_tail(quantile(0.9975, df), df)) == pytest.approx(0.0025, rel=1e-8)


@pytest.mark.parametrize(("probability", "df"), [(0.0, 3), (1.0, 3), (0.5, 0), (math.nan, 3), (0.9, math.nan)])
def test_no_quantile_where_there_is_none(probability: float, df: float) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        quantile(probability, df)
