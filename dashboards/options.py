"""What to try before a second engine, or with it: what each option gave, cell by cell, the largest first.

Options are pairs of arms that differ in one thing. Some were measured the other way round, with the option taken away:
their ratio is turned over, and so is its interval. Cells come from several sweeps; the findings page says over which
engine each was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from dashboards import cells
from dashboards.claim_cells import KEY
from dashboards.findings_tables import cell_words, interval_words, table

HEAD = ("model", "cell, clients", "option", "throughput, times", "95 % interval", "verdict", "boots", "sweep")
TURNED = {"wins": "loses", "loses": "wins"}


@dataclass(frozen=True, slots=True)
class Option:
    """away: `arm` is `baseline` without the option."""

    words: str
    arm: str
    baseline: str
    away: bool = False


SECOND_ENGINE = (
    Option("a second engine under MPS", "mps2", "single"),
    Option("a second engine, no MPS", "timesliced2", "single"),
)
OPTIONS = (
    *SECOND_ENGINE,
    Option("graphs up to the largest step", "graphs-8192", "capture-1024"),
    Option("graph sizes with little padding", "graphs-dense", "graphs-8192"),
    Option("graph sizes with little padding, one graph for every step", "full-dense", "graphs-8192"),
    Option("async scheduling", "synchronous", "capture-1024", away=True),
    Option("steps of 8,192 tokens and graphs to 1,024, from 2,048 and 512", "untuned", "capture-1024", away=True),
    Option("pinning", "single-unpinned", "single", away=True),
)


def options_table(verdicts: pl.DataFrame, sweeps: Sequence[str]) -> str:
    """Cells in which a setting of one engine and something else were measured. verdicts: throughput rows of
    `verdicts.judge`."""
    own = verdicts.filter(pl.col("sweep").is_in(sweeps), metric="throughput", backend="vllm").drop_nulls("ratio")
    found = pl.concat([option_rows(own, option) for option in OPTIONS])
    of_one_engine = ~pl.col("option").is_in([option.words for option in SECOND_ENGINE])
    several = found.filter((pl.col("option").n_unique().over(KEY) > 1) & of_one_engine.any().over(KEY))
    order = [cells.by_size(several["model"]), *KEY[1:], "ratio", "sweep"]
    ordered = several.sort(order, descending=[False] * len(KEY) + [True, False])
    rows = [
        (
            *(*cell_words(row), row["option"], f"{row['ratio']:.3f}"),
            *(interval_words(row["ci_low"], row["ci_high"]), row["verdict"]),
            *(str(row["boots"]), row["sweep"]),
        )
        for row in ordered.iter_rows(named=True)
    ]
    return table(HEAD, rows)


def option_rows(verdicts: pl.DataFrame, option: Option) -> pl.DataFrame:
    """Verdict rows of one option, turned over where it was measured by taking it away, and its `option` in words."""
    rows = verdicts.filter(arm=option.arm, baseline=option.baseline).select(
        "sweep", *KEY, "ratio", "ci_low", "ci_high", "verdict", "boots", option=pl.lit(option.words)
    )
    if not option.away:
        return rows
    return rows.with_columns(
        ratio=1 / pl.col("ratio"),
        ci_low=1 / pl.col("ci_high"),
        ci_high=1 / pl.col("ci_low"),
        verdict=pl.col("verdict").replace(TURNED),
    )
