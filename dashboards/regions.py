"""What each option of dashboards/options.py gives, by what bounds the engine that lacks it.

A region is what bounds most windows of the engine without the option, in the same sweep and cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from dashboards.claim_cells import KEY
from dashboards.findings_tables import table
from dashboards.options import OPTIONS, Option, option_rows

REGIONS = {
    "engine_core": "EngineCore bounds it",
    "unknown": "EngineCore and GPU wait for each other in turn",
    "gpu_compute": "kernels fill its time",
    "gpu_memory": "device memory binds",
    "power": "the power limit binds",
}
HEAD = ("one engine without the option", "option", "throughput, times: geometric mean", "from, to", "cells", "boots")


def regions(verdicts: pl.DataFrame, trials: pl.DataFrame, windows: pl.DataFrame, sweeps: Sequence[str]) -> pl.DataFrame:
    """One row a region and option: `region`, `option`, `mean` (geometric), `low`, `high`, `cells`, `fewest` and `most`
    boots; regions in the order of REGIONS, the largest mean first. Cells bound by anything else are left out.

    verdicts: throughput rows of `verdicts.judge`; trials, windows: tables of `records`; sweeps: those that count.
    """
    own = verdicts.filter(pl.col("sweep").is_in(sweeps), metric="throughput", backend="vllm").drop_nulls("ratio")
    asked = trials.filter(outcome="ok", backend="vllm").select("trial_id", "attempt_id", "sweep", *KEY, "arm")
    sound = windows.filter("certified").select("trial_id", "attempt_id", "bound_by")
    bound = (
        sound.join(asked, on=["trial_id", "attempt_id"])
        .group_by("sweep", *KEY, without="arm")
        .agg(region=pl.col("bound_by").drop_nulls().mode().sort().first())
    )
    found = pl.concat([_without(own, option) for option in OPTIONS]).join(bound, on=["sweep", *KEY, "without"])
    means = found.group_by("region", "option").agg(
        mean=pl.col("ratio").log().mean().exp(),
        low=pl.col("ratio").min(),
        high=pl.col("ratio").max(),
        cells=pl.len(),
        fewest=pl.col("boots").min(),
        most=pl.col("boots").max(),
    )
    known = means.filter(pl.col("region").is_in(list(REGIONS)))
    place = pl.col("region").replace_strict({name: place for place, name in enumerate(REGIONS)})
    return known.sort(place, pl.col("mean"), "option", descending=[False, True, False])


def _without(verdicts: pl.DataFrame, option: Option) -> pl.DataFrame:
    """Rows of one option, with the arm that lacks it as `without`."""
    lacks = option.arm if option.away else option.baseline
    return option_rows(verdicts, option).with_columns(without=pl.lit(lacks))


def regions_table(rows: pl.DataFrame) -> str:
    """rows: of `regions`."""
    return table(HEAD, [_shown(row) for row in rows.iter_rows(named=True)])


def _shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    boots = dict.fromkeys((row["fewest"], row["most"]))
    return (
        *(REGIONS[row["region"]], row["option"], f"{row['mean']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}"),
        *(str(row["cells"]), " to ".join(map(str, boots))),
    )
