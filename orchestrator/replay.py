"""The rules of `sequential` and `decision` on arrays, so that thousands of simulated sweeps take seconds.

Each step does what its namesake does on frames; tests/test_coverage.py holds the two against each other on the same
windows. One cell, one pair of arms, no grounds against a verdict: what is left is estimate, interval and stopping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.sequential import ALPHA, MAX_BOOTS, MIN_BOOTS, boots_to_decide, critical_value
from orchestrator.student import Floats, quantile
from orchestrator.trial import Measurement

WORDS = ("undecided", "wins", "loses", "tie")


@dataclass(frozen=True, slots=True)
class Ended:
    """How each sweep ended: arrays over sweeps. windows: of both arms, over all boots."""

    low: Floats
    high: Floats
    verdict: NDArray[np.int64]  # index into WORDS
    boots: NDArray[np.int64]
    windows: NDArray[np.int64]
    held_always: NDArray[np.bool_]  # truth inside the interval at every look up to the end

    def held(self, truth: Any) -> NDArray[np.bool_]:
        return np.asarray((self.low <= truth) & (truth <= self.high))


def rounds_taken(contrasts: Floats, look: Measurement) -> NDArray[np.int64]:
    """How many rounds `sequential.enough` asks for. contrasts: sweeps x boots x rounds, `max_windows` or more."""
    looks = max(look.max_windows - look.min_windows + 1, 1)
    taken = np.full(contrasts.shape[:2], look.max_windows)
    for k in range(look.max_windows - 1, look.min_windows - 1, -1):
        reach = quantile(1 - ALPHA / looks / 2, k - 1) / math.sqrt(k)
        taken = np.where(reach * contrasts[..., :k].std(axis=2, ddof=1) < look.interval_target, k, taken)
    return taken


def boots_of(contrasts: Floats, taken: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean and variance of the mean of each boot's first `taken` rounds."""
    use = np.arange(contrasts.shape[2]) < taken[..., None]
    mean = np.where(use, contrasts, 0.0).sum(axis=2) / taken
    squares = np.where(use, (contrasts - mean[..., None]) ** 2, 0.0).sum(axis=2)
    return mean, squares / np.maximum(taken - 1, 1) / taken


def play(
    contrasts: Floats,
    truth: Any,
    margin: float,
    max_boots: int,
    look: Measurement | None = None,
    planned: bool = False,
) -> Ended:
    """One sweep a row: boots are added one by one from three on, until its verdict is decided, `max_boots` are spent or
    the cell is given up (`sequential.boots_to_decide`).

    contrasts: log ratios of rounds, sweeps x boots x rounds. truth: planted log ratio. planned: no looks, `max_boots`
    at once. Without `look` every round of a boot is taken.
    """
    sweeps = len(contrasts)
    whole = np.full(contrasts.shape[:2], contrasts.shape[2])
    taken = whole if look is None else rounds_taken(contrasts, look)
    mean, noise = boots_of(contrasts, taken)
    upper, lower = math.log1p(margin), math.log1p(-margin)
    low, high = np.full(sweeps, -np.inf), np.full(sweeps, np.inf)
    verdict, boots = np.zeros(sweeps, np.int64), np.full(sweeps, max_boots)
    going, held = np.ones(sweeps, bool), np.ones(sweeps, bool)
    for n in range(max_boots if planned else MIN_BOOTS, max_boots + 1):
        centre, half = _interval(mean[:, :n], noise[:, :n], taken[:, :n], n if planned else None)
        held &= ~going | (np.abs(centre - truth) <= half)
        low, high = np.where(going, centre - half, low), np.where(going, centre + half, high)
        word = np.select([low > upper, high < lower, (low >= lower) & (high <= upper)], [1, 2, 3], 0)
        spread = half / critical_value(n) * math.sqrt(n)
        hopeless = np.isnan(boots_to_decide(centre, spread, np.full(sweeps, float(n)), np.full(sweeps, margin)))
        ends = going & ((word > 0) | (n == max_boots) | (hopeless & (n < MAX_BOOTS)))
        verdict, boots = np.where(ends, word, verdict), np.where(ends, n, boots)
        going &= ~ends
    spent = np.where(np.arange(contrasts.shape[1]) < boots[:, None], taken, 0).sum(axis=1)
    return Ended(low, high, verdict, boots, 2 * spent, held)


def _interval(mean: Floats, noise: Floats, taken: NDArray[np.int64], planned: int | None) -> tuple[Floats, Floats]:
    """Centre and half-width as `contrast.intervals` has them."""
    n = mean.shape[1]
    df = (taken - 1).sum(axis=1)
    kinds, where = np.unique(df, return_inverse=True)
    q = np.array([quantile(1 - ALPHA / 2, int(k)) if k > 0 else 0.0 for k in kinds])[where]
    over_boots = critical_value(n, planned) * mean.std(axis=1, ddof=1) / math.sqrt(n)
    return mean.mean(axis=1), np.maximum(over_boots, q * np.sqrt(noise.sum(axis=1)) / n)


def at_equal_speed(contrasts: Floats, candidate: Floats, baseline: Floats) -> tuple[Floats, Floats, Floats]:
    """Centre, half-width and log speed as `core_speed.at_equal_speed` has them, all boots and rounds used.

    contrasts, candidate, baseline: log ratios and log core speeds of rounds, sweeps x boots x rounds.
    """
    boots, rounds = contrasts.shape[1:]
    means = [values.mean(axis=2) for values in (contrasts, candidate, baseline)]
    y, u, v = (values - mean[..., None] for values, mean in zip((contrasts, candidate, baseline), means, strict=True))
    uu, vv, uv, uy, vy, yy = ((a * b).sum(axis=(1, 2)) for a, b in ((u, u), (v, v), (u, v), (u, y), (v, y), (y, y)))
    det = uu * vv - uv**2
    p, q = (uy * vv - vy * uv) / det, (vy * uu - uy * uv) / det
    noise = np.maximum(yy - p * uy - q * vy, 0.0) / (boots * (rounds - 1) - 2)
    middle = (means[1].mean(axis=1) + means[2].mean(axis=1)) / 2
    g, h = means[1] - middle[:, None], means[2] - middle[:, None]
    moved = means[0] - p[:, None] * g - q[:, None] * h
    g, h = g.mean(axis=1), h.mean(axis=1)
    slopes = noise * (vv * g**2 - 2 * uv * g * h + uu * h**2) / det
    error = np.sqrt(moved.var(axis=1, ddof=1) / boots + slopes)
    return moved.mean(axis=1), critical_value(boots) * error, middle
