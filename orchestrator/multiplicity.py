"""One map, many verdicts: q-values that hold over all of them together.

A verdict's interval misses 5 times in 100, so a map of 100 cells that all sit on the margin may show five false
verdicts. The q-value answers for the map: among the verdicts with q <= 0.05 at most 5 % are expected to be false, under
any dependence, which is needed because all cells of a model share their boots (Y. Benjamini and D. Yekutieli, "The
control of the false discovery rate in multiple testing under dependency", Annals of Statistics 29 (2001) 1165-1188).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from orchestrator.sequential import ALPHA, looks_factor
from orchestrator.student import Floats, upper_tail

CLAIMS_A_CELL = 3  # wins, loses, tie: each is a hypothesis of its own,
FALSE_CLAIMS_A_CELL = 2  # and whatever the truth, one of them is right


def benjamini_yekutieli(p: Floats, hypotheses: int, true_nulls: int) -> Floats:
    """Adjusted p-values; their theorem bounds the rate by `true_nulls` / `hypotheses` of the level, so that is used.

    p: the smallest p-values. The others, up to `hypotheses` in all, are larger and can be left out: ranks do not move.
    """
    if p.size == 0:
        return p
    order = np.argsort(p)
    ranks = np.arange(1, p.size + 1)
    raised = p[order] * true_nulls * float((1.0 / np.arange(1, hypotheses + 1)).sum()) / ranks
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return adjusted


def with_q(rows: pl.DataFrame) -> pl.DataFrame:
    """Adds `p_value`, `q_value` and `map_verdict`; a family is one pair of arms and metric over a sweep's cells."""
    numbers = rows.select(pl.col("log_ratio", "se", "margin", "boots").cast(pl.Float64).fill_null(float("nan")))
    log_ratio, se, margin, boots = (numbers[name].to_numpy() for name in numbers.columns)
    factor = np.array([looks_factor(*kind) for kind in rows.select("boots", "planned").rows()])
    with np.errstate(divide="ignore", invalid="ignore"):
        above = upper_tail((log_ratio - np.log1p(margin)) / se, boots - 1)
        below = upper_tail((np.log1p(-margin) - log_ratio) / se, boots - 1)
        within = np.maximum(1.0 - above, 1.0 - below)
        p: Floats = np.minimum(np.minimum(np.minimum(above, below), within) * factor, 1.0)
    judged = rows["judged"].to_numpy() & np.isfinite(p)
    families = rows.select(family=pl.struct("sweep", "backend", "gpu_kind", "arm", "baseline", "metric").rank("dense"))
    family = families["family"].to_numpy()
    q = np.full(len(rows), np.nan)
    order = np.argsort(family, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(family[order])) + 1):
        tested = members[judged[members]]
        n = tested.size
        q[tested] = benjamini_yekutieli(p[tested], CLAIMS_A_CELL * n, FALSE_CLAIMS_A_CELL * n)
    p_value = pl.Series("p_value", np.where(judged, p, np.nan)).fill_nan(None)
    return rows.with_columns(p_value, pl.Series("q_value", q).fill_nan(None)).with_columns(
        map_verdict=pl.when(pl.col("q_value") <= ALPHA).then("verdict").otherwise(pl.lit("undecided"))
    )
