"""When to stop looking, and what an interval costs for having looked before.

Two levels, two rules. Windows within a repeat stop on precision: `enough`. Boots stop on the verdict: an undecided cell
gets one more, so the verdict is looked at after 3, 4, 5, ... boots and a plain 95 % interval would miss more
often than 5 % at the look that ended it. `critical_value` therefore spends the error over the looks (K. K. G. Lan and
D. L. DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70 (1983) 659-663): the share `spent`
grows with the root of the looks up to MAX_BOOTS, and LATER of it is kept for looks beyond. The intervals it makes are
repeated confidence intervals (C. Jennison and B. W. Turnbull, J. R. Stat. Soc. B 51 (1989) 305-361): all of them
together hold the true ratio with 95 %, so any stopping rule is allowed, also one made up on the way, and giving up too.

Why the root: with two degrees of freedom error is worth little, at three boots one pays dearly for it and decides the
same large gains without; spending evenly would make three boots useless, spending early leaves nothing for the small
gains that need many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import polars as pl

from orchestrator.student import Floats, quantile
from orchestrator.trial import Measurement

ALPHA = 0.05
MIN_BOOTS = 3
MAX_BOOTS = 16
LATER = 0.02
GIVE_UP_FROM = 5  # boots: below, their spread is known too poorly to call a cell hopeless

# |t| after n boots that a paired series without any effect first passes here with the probability spent at n, by
# `python -m orchestrator.boundary` (standard error of each spent share below 0.0001); rounded up.
BOUNDARY = {
    3: 8.64, 4: 6.18, 5: 5.00, 6: 4.38, 7: 4.01, 8: 3.75, 9: 3.57,
    10: 3.44, 11: 3.33, 12: 3.25, 13: 3.18, 14: 3.12, 15: 3.07, 16: 3.02,
}  # fmt: skip


def enough(log_ratio_rounds: Mapping[str, Sequence[float]], measurement: Measurement) -> bool:
    """Whether every candidate's mean log ratio is known within this repeat to `measurement.interval_target`.

    log_ratio_rounds: by candidate arm, the log ratio of each round so far; a candidate without any is left out (it
    failed: waiting for it would only spend the budget). The half-width is Student's, with the 5 % split evenly over
    the looks from `min_windows` to `max_windows` (Bonferroni), so it holds at the look that stops. What ends a repeat
    is its noise and not its mean, so the mean stays unbiased; rounds that follow each other closely are correlated,
    which makes this interval too narrow and costs windows, not truth: verdicts rest on the boots alone.
    """
    looks = max(measurement.max_windows - measurement.min_windows + 1, 1)
    for series in log_ratio_rounds.values():
        known = np.asarray(series, dtype=float)
        if known.size == 0:
            continue
        if known.size < max(measurement.min_windows, 2):
            return False
        reach = quantile(1 - ALPHA / looks / 2, known.size - 1)
        half_width = reach * float(known.std(ddof=1)) / math.sqrt(known.size)
        if not half_width < measurement.interval_target:
            return False
    return True


def spent(boots: int) -> float:
    """Share of alpha spent once `boots` boots have been looked at; the first look is at three."""
    if boots < MIN_BOOTS:
        return 0.0
    if boots > MAX_BOOTS:
        return 1.0 - LATER * (MAX_BOOTS / boots) ** 2
    return (1.0 - LATER) * math.sqrt((boots - 2) / (MAX_BOOTS - 2))


@lru_cache(maxsize=1024)
def critical_value(boots: int, planned_boots: int | None = None) -> float:
    """Half-width of the interval in standard errors, for a mean over `boots` boots.

    planned_boots: the number of boots, where it was fixed before the first result was seen: one look, hence Student's
    97.5 % point. Otherwise the spending boundary; past the table each look's own share is used without the credit for
    its correlation with earlier looks, which is wider. Two boots get Student's value: no verdict hangs on them.
    """
    if boots < 2:
        return math.inf
    if boots < MIN_BOOTS or boots == planned_boots:
        return quantile(1 - ALPHA / 2, boots - 1)
    if boots in BOUNDARY:
        return BOUNDARY[boots]
    return quantile(1 - ALPHA * (spent(boots) - spent(boots - 1)) / 2, boots - 1)


def with_reach(rows: pl.DataFrame) -> pl.DataFrame:
    """Adds `reach`, the `critical_value` of `boots` and `planned` (both Int64), null below two boots."""
    kinds = rows.select("boots", "planned").unique().filter(pl.col("boots") > 1)
    reach = pl.Series("reach", [critical_value(*kind) for kind in kinds.rows()], dtype=pl.Float64)
    return rows.join(kinds.with_columns(reach), on=["boots", "planned"], how="left", nulls_equal=True)


def looks_factor(boots: int, planned_boots: int | None = None) -> float:
    """What a p-value after `boots` boots is multiplied with to hold over all looks: one over the share spent there.

    A union bound over the looks, valid at every level and not at 5 % only.
    """
    if boots < MIN_BOOTS:
        return math.inf
    return 1.0 if boots == planned_boots else 1.0 / (spent(boots) - spent(boots - 1))


def boots_to_decide(log_ratio: Floats, boot_sd: Floats, boots: Floats, margin: Floats) -> Floats:
    """Boots in all after which each verdict is expected, at most MAX_BOOTS; NaN where it is given up.

    boot_sd: standard deviation of the boots' log ratios. Takes the estimate for the truth: the interval has to clear
    the nearest end of the margin, from the side that it is on. With no margin a tie cannot be said. A cell out of reach
    gets the whole budget while it has fewer than GIVE_UP_FROM boots or would be in reach were the ratio two standard
    errors further from the margin; after that it is given up.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.minimum(np.abs(log_ratio - np.log1p(margin)), np.abs(log_ratio - np.log1p(-margin)))
        reached = distance / boot_sd
        hoped = reached + 2.0 / np.sqrt(boots)
    totals = np.arange(MIN_BOOTS, MAX_BOOTS + 1)
    needed = np.array([critical_value(int(total)) / math.sqrt(total) for total in totals])
    hopeful = (boots < MAX_BOOTS) & np.isfinite(reached) & ((boots < GIVE_UP_FROM) | (needed[-1] < hoped))
    wanted = np.where(hopeful, float(MAX_BOOTS), np.nan)
    for total, half_width in zip(totals[::-1], needed[::-1], strict=True):
        wanted = np.where((half_width < reached) & (total > boots), float(total), wanted)
    return wanted
