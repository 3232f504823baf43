"""How much one and the same arm differs from itself: between windows, between two engines of a boot, between boots."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl

CELL = ("sweep", "model", "kind", "prompt_tokens", "output_tokens", "concurrency")
SETTING = ("sharing", "engines", "engine_args", "cores_per_engine", "pinned")


def noise(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """One row a cell and comparison: `between`, how many `comparisons`, and the root mean square of their log ratios.

    between: `windows`, two of one arm in one boot, next to each other; `arms`, two of one boot that differ in name
    alone, by their means; `boots`, one arm in two boots, by its means. windows: with `rate` in tokens/s. Only what was
    resident counts.
    """
    resident = trials.filter(pl.col("residency") == "resident", pl.col("outcome") == "ok")
    rates = windows.filter("certified").select("trial_id", "window_index", log=pl.col("rate").log())
    joined = rates.join(resident.select("trial_id", "repeat", "arm", *CELL, *SETTING), on="trial_id")
    rows = []
    for cell, seen in sorted(joined.group_by(CELL), key=lambda item: item[0]):
        means = seen.group_by("repeat", "arm", *SETTING).agg(pl.col("log").mean()).sort("repeat", "arm")
        steps = seen.sort("window_index").select(step=pl.col("log").diff().over("trial_id"))["step"].drop_nulls()
        for name, differences in (
            ("windows", steps.to_numpy()),
            ("arms", _differences(means, ("repeat", *SETTING))),
            ("boots", _differences(means, ("arm",))),
        ):
            if len(differences):
                rows.append((*cell, name, len(differences), float(np.sqrt(np.mean(differences**2)))))
    kinds = {name: trials.schema[name] for name in CELL}
    schema = kinds | {"between": pl.String, "comparisons": pl.Int64, "rms_log": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _differences(means: pl.DataFrame, alike: tuple[str, ...]) -> np.ndarray:
    """Of every two rows that are alike in these columns."""
    found = [
        one - other
        for _, rows in means.group_by(alike, maintain_order=True)
        for one, other in combinations(rows["log"].to_list(), 2)
    ]
    return np.array(found, dtype=float)
