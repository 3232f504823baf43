"""A minute of load beside windows of a few seconds, in the same cells: rate, power and clock of both.

Drift is told from within: tokens of the last third of the long window over those of the first, by its half seconds.
"""

from __future__ import annotations

import polars as pl

from dashboards import cells
from dashboards.claim_cells import KEY
from dashboards.findings_tables import cell_words, table

SWEEP, SHORT = "sustained", "scaling-landscape"
CELL = [*KEY, "arm"]
MEANS = ("power_w", "sm_clock_mhz", "power_capped_share")
HEAD = (
    *("model", "cell, clients", "arm", "tokens/s, long", "s", "over the short windows' mean", "last third over first"),
    *("W, short and long", "MHz", "power-capped"),
)


def sustained_table(trials: pl.DataFrame, windows: pl.DataFrame, samples: pl.DataFrame) -> str | None:
    """One row a cell and arm of SWEEP; None where it was not measured. Certified windows alone; tables of `records`."""
    own = trials.filter(pl.col("sweep").is_in([SWEEP, SHORT]), outcome="ok", backend="vllm")
    joined = cells.measured(own, windows).filter("certified")
    means = joined.group_by("sweep", *CELL).agg(
        pl.col("rate", "duration_s", *MEANS[:2]).mean(), pl.col(MEANS[2]).mean() * 100
    )
    long = means.filter(sweep=SWEEP)
    if long.is_empty():
        return None
    both = (
        long.join(means.filter(sweep=SHORT), on=CELL, how="left", suffix="_short")
        .join(_drift(joined.filter(sweep=SWEEP), samples), on=CELL, how="left")
        .sort(cells.by_size(long["model"]), *CELL[1:])
    )
    rows = [
        (
            *(*cell_words(row), row["arm"], f"{row['rate']:,.0f}", f"{row['duration_s']:.0f}"),
            "-" if row["rate_short"] is None else f"{row['rate'] / row['rate_short']:.3f}",
            "-" if row["drift"] is None else f"{row['drift']:.3f}",
            *(_pair(row, name) for name in MEANS[:2]),
            f"{_pair(row, MEANS[2])} %",
        )
        for row in both.iter_rows(named=True)
    ]
    return table(HEAD, rows)


def _drift(long: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """By cell and arm: tokens of the last third of a window's bins over those of the first, all engines together."""
    bins = samples.filter(metric="output_tokens").join(
        long.select("trial_id", "attempt_id", "window_index", *CELL), on=["trial_id", "attempt_id", "window_index"]
    )
    place = pl.col("time_ns").rank("dense").over("trial_id", "window_index", *CELL)
    third = pl.len() // 3
    return (
        bins.with_columns(place=place)
        .group_by(*CELL, "place")
        .agg(pl.col("value").sum())
        .sort("place")
        .group_by(CELL)
        .agg(drift=(pl.col("value").tail(third).sum() / pl.col("value").head(third).sum()).fill_nan(None))
    )


def _pair(row: dict[str, float | None], name: str) -> str:
    return " and ".join("-" if value is None else f"{value:.0f}" for value in (row[f"{name}_short"], row[name]))
