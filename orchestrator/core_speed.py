"""The ratio at equal core speed: throughput contrasts freed of how fast EngineCore's core happened to run.

On a shared host the core under EngineCore has two speeds, and one engine's rate follows (docs/findings.md). Within the
boots of a pair, log ratio of a round = level + p x log core speed of the candidate + q x that of the baseline, by least
squares; each boot's contrast is then moved to the mean speed of all these windows (which stands beside it: where the
arms' slopes differ, so does the ratio from speed to speed). Student's interval over boots, with the same price for
looking, gains a term for the slopes' own error (the regression estimator of W. G. Cochran, "Sampling Techniques", 3rd
ed. 1977, chapter 7, with both slopes from the differences within boots).

It answers another question than the headline. Where an arm itself slows its cores down, that is part of the headline's
ratio and not of this one; where it does not, both estimate the same, and this one is the sharper of the two. So it
stands beside the verdict and never makes one.
"""

from __future__ import annotations

import polars as pl

from orchestrator.sequential import with_reach

FEWEST_DF = 4  # windows beyond levels and slopes, below which no slope is believed


def at_equal_speed(rounds: pl.DataFrame, planned: pl.DataFrame) -> pl.DataFrame:
    """By pair: `equal_speed` (log ratio), `equal_speed_half` (half-width), and `equal_speed_mops`, the speed they are
    for; pairs without known speeds have no row.

    rounds: of `contrast.rounds`, resident arms only. planned: by `pair_id`, the number of boots fixed beforehand.
    """
    boots = ["pair_id", "base_boot_id"]
    names = {"y": "throughput", "u": "core", "v": "base_core"}
    seen = rounds.select(*boots, **names).drop_nulls().filter(pl.all_horizontal(pl.col(*names).is_finite()))
    centred = seen.with_columns((pl.col(name) - pl.col(name).mean().over(boots)).alias(f"d{name}") for name in names)
    of_boots = centred.group_by(boots).agg(pl.col(*names).mean(), n=pl.len().cast(pl.Float64))
    products = {a + b: (pl.col(f"d{a}") * pl.col(f"d{b}")).sum() for a, b in ("uu", "vv", "uv", "uy", "vy", "yy")}
    sums = centred.group_by("pair_id").agg(**products)
    counts = of_boots.group_by("pair_id").agg(
        boots=pl.len().cast(pl.Int64), df=pl.col("n").sum() - pl.len() - 2,
        at=(pl.col("u").mean() + pl.col("v").mean()) / 2,
    )  # fmt: skip
    uu, vv, uv, uy, vy, yy = (pl.col(name) for name in products)
    det = uu * vv - uv**2
    slopes = (
        sums.join(counts, on="pair_id")
        .filter(pl.col("df") >= FEWEST_DF, pl.col("boots") >= 2, det > 1e-9 * uu * vv, uu > 0, vv > 0)
        .with_columns(p=(uy * vv - vy * uv) / det, q=(vy * uu - uy * uv) / det, det=det)
        .with_columns(noise=(yy - pl.col("p") * uy - pl.col("q") * vy).clip(0.0) / pl.col("df"))
    )
    g, h = pl.col("u") - pl.col("at"), pl.col("v") - pl.col("at")
    moved = of_boots.join(slopes.select("pair_id", "p", "q", "at"), on="pair_id").with_columns(
        d=pl.col("y") - pl.col("p") * g - pl.col("q") * h, g=g, h=h
    )
    means = moved.group_by("pair_id").agg(pl.col("d", "g", "h").mean(), spread=pl.col("d").var())
    own = (vv * pl.col("g") ** 2 - 2 * uv * pl.col("g") * pl.col("h") + uu * pl.col("h") ** 2) / pl.col("det")
    found = means.join(slopes, on="pair_id").with_columns(
        error=(pl.col("spread") / pl.col("boots") + pl.col("noise") * own).sqrt()
    )
    return with_reach(found.join(planned.select("pair_id", "planned"), on="pair_id", how="left")).select(
        "pair_id",
        equal_speed="d",
        equal_speed_mops=pl.col("at").exp(),
        equal_speed_half=pl.col("error") * pl.col("reach"),
    )
