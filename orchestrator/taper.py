"""A rate from events that come in bursts: counts weighted by a parabola over the window instead of a box.

A prefill step hands out the first tokens of all its requests at once, so a window's plain count jumps by a whole step:
8,192 tokens are 2 % of four seconds at 100,000 tokens/s. Two windows that differ by nothing differ by that, or agree to
the last digit and pretend to a precision that is not there. Weighted by

    w(t) = 6 t (T - t) / T^3,    whose integral over the window [0, T] is 1,

a burst at an edge counts for nothing and one in the middle for one and a half: the sum of weighted counts is the slope
of the line fitted by least squares to the cumulative count over the window. For n steps of equal length its error is of
the order of 1/n^2, where that of the plain count is 1/n; for events without any order its variance is 1.2 times that of
the plain count (Welch's window; its equivalent noise bandwidth is in F. J. Harris, "On the use of windows for harmonic
analysis with the discrete Fourier transform", Proc. IEEE 66 (1978) 51-83, table 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl


def tapered(
    times_ns: Sequence[int] | np.ndarray[Any, Any],
    counts: Sequence[int] | np.ndarray[Any, Any],
    start_ns: int,
    end_ns: int,
) -> float:
    """Events a second over (start_ns, end_ns], `counts` of them at `times_ns`, both of shape (arrivals,)."""
    duration_s = (end_ns - start_ns) / 1e9
    part = (np.asarray(times_ns, dtype=np.int64) - start_ns) / (end_ns - start_ns)
    inside = (part > 0) & (part <= 1)
    weights = 6.0 * part[inside] * (1.0 - part[inside])
    return float((weights * np.asarray(counts, dtype=np.float64)[inside]).sum() / duration_s)


def tapered_rate(requests: pl.DataFrame, start_ns: int, duration_s: float) -> float:
    """Prompt tokens a second over a window, from `requests` (prompt_tokens, first_token_ns; null: none came).

    A prompt counts when its first token comes, left edge open, right edge closed.
    """
    since_s = (pl.col("first_token_ns") - start_ns) / 1e9
    inside = (since_s > 0) & (since_s <= duration_s)
    weight = 6.0 * since_s * (duration_s - since_s) / duration_s**3
    return float(requests.select((pl.col("prompt_tokens") * weight).filter(inside).sum()).item())
