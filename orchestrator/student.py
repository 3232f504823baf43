"""Student's t distribution: tail probabilities of arrays and quantiles, from numpy alone.

P(T > t) = I_x(df/2, 1/2) / 2 for t >= 0 with x = df / (df + t^2) (Abramowitz and Stegun 1964, 26.7.1), where I is the
regularised incomplete beta function, computed by Lentz's continued fraction (Press et al., Numerical Recipes, 3rd
ed. 2007, section 6.4). Absolute error below 1e-12 for df up to 10,000.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_TERMS = 400
TINY = 1e-300


def upper_tail(t: Any, df: Any) -> Floats:
    """P(T > t) for Student's t, elementwise over broadcast arrays; NaN where `t` is NaN or `df` is not positive."""
    t_values, df_values = np.broadcast_arrays(np.asarray(t, dtype=float), np.asarray(df, dtype=float))
    sound = ~np.isnan(t_values) & (df_values > 0)
    t_safe, df_safe = np.where(sound, t_values, 0.0), np.where(sound, df_values, 1.0)
    square = np.minimum(t_safe**2, 1e200)
    half = 0.5 * _incomplete_beta(df_safe / 2, 0.5, df_safe / (df_safe + square), square / (df_safe + square))
    return np.asarray(np.where(sound, np.where(t_safe >= 0, half, 1.0 - half), np.nan), dtype=float)


@lru_cache(maxsize=4096)
def quantile(probability: float, df: float) -> float:
    """The t with P(T <= t) = `probability`.

    Newton's method from 0: the tail is convex there, so every step falls short of the root and none overshoots.

    Raises ValueError unless 0 < probability < 1 and df > 0.
    """
    if not 0 < probability < 1 or not df > 0:
        raise ValueError(f"no t quantile for probability {probability} and {df} degrees of freedom")
    if probability < 0.5:
        return -quantile(1.0 - probability, df)
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    t = 0.0
    for _ in range(MAX_TERMS):
        density = math.exp(log_scale - (df + 1) / 2 * math.log1p(t * t / df))
        step = (float(upper_tail(t, df)) - (1.0 - probability)) / density
        t += step
        if abs(step) <= 1e-12 * t:
            break
    return t


def _incomplete_beta(a: Floats, b: float, x: Floats, complement: Floats) -> Floats:
    """I_x(a, b). `complement` is 1 - x, passed because the subtraction loses the digits that a small t needs."""
    swap = x > (a + 1.0) / (a + b + 2.0)
    first, second = np.where(swap, b, a), np.where(swap, a, b)
    point = np.where(swap, complement, x)
    rest = np.where(swap, x, complement)
    kinds, where = np.unique(a, return_inverse=True)
    log_beta = np.array([math.lgamma(v) + math.lgamma(b) - math.lgamma(v + b) for v in kinds])[where].reshape(a.shape)
    with np.errstate(divide="ignore"):
        log_front = first * np.log(point) + second * np.log(rest) - log_beta
    value = np.exp(log_front) * _continued_fraction(first, second, point) / first
    return np.asarray(np.where(swap, 1.0 - value, value), dtype=float)


def _continued_fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """Lentz's method, all elements together until the last has converged."""
    c = np.ones_like(x)
    d = 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    product = d.copy()
    for m in range(1, MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + even * d)
        c = _away_from_zero(1.0 + even / c)
        product = product * (d * c)
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        d = 1.0 / _away_from_zero(1.0 + odd * d)
        c = _away_from_zero(1.0 + odd / c)
        product = product * (d * c)
        if np.all(np.abs(d * c - 1.0) < 1e-14):
            break
    return product


def _away_from_zero(value: Floats) -> Floats:
    return np.where(np.abs(value) < TINY, TINY, value)
