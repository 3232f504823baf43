"""The level above boots: what a ratio measured on some GPUs says of the next GPU of their kind.

Boots of one GPU agree better with each other than with those of another, so an interval over boots speaks of the GPUs
that were measured. Here a GPU counts once, by the mean of its boots, and the interval is Student's over GPUs. t on one
number a GPU needs nothing about the boots, neither equal numbers nor equal variances of them (R. Ibragimov and U. K.
Mueller, J. Bus. Econ. Stat. 28 (2010) 453-468). It stands beside the verdict and makes none: with two or three GPUs
it is very wide, and it allows for one look only.
"""

from __future__ import annotations

import polars as pl

from orchestrator.sequential import ALPHA
from orchestrator.student import quantile


def over_gpus(contrasts: pl.DataFrame, sides: pl.DataFrame) -> pl.DataFrame:
    """By pair and metric: `gpus`, and `gpus_low` and `gpus_high`, the ends of the interval of the mean log ratio over
    GPUs; null below two GPUs.

    contrasts, sides: of `contrast.boot_contrasts` and `contrast.sides`.
    """
    places = sides.select("pair_id", "gpu_uuid", boot="base_boot_id").drop_nulls().unique(["pair_id", "boot"])
    by_gpu = contrasts.join(places, on=["pair_id", "boot"]).group_by("pair_id", "metric", "gpu_uuid")
    found = (
        by_gpu.agg(pl.col("contrast").mean())
        .group_by("pair_id", "metric")
        .agg(
            gpus=pl.len().cast(pl.Int64),
            centre=pl.col("contrast").mean(),
            error=pl.col("contrast").std() / pl.len().sqrt(),
        )
    )
    reach = {n: quantile(1 - ALPHA / 2, n - 1) for n in found["gpus"].unique() if n > 1}
    half = pl.col("error") * pl.col("gpus").replace_strict(reach, default=None, return_dtype=pl.Float64)
    return found.select(
        "pair_id", "metric", "gpus", gpus_low=pl.col("centre") - half, gpus_high=pl.col("centre") + half
    )
