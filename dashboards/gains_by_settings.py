"""What a second engine adds, by how well the first was set up: one landscape measured with several engine settings.

The same cells, arms, clients and rules; what differs between the stores is the CUDA graphs of every arm. Where the gain
falls from one to the next, it was the settings' and not the second engine's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from dashboards import cells
from dashboards.claim_cells import KEY
from dashboards.findings_tables import cell_words, interval_words, planned_verdicts, table
from orchestrator.errors import StoreError
from orchestrator.store import ResultStore

SWEEP = "scaling-landscape"
ARMS = ("single", "mps2")
PAIRS = {"gain": ("mps2", "single"), "host": ("timesliced2", "single"), "overlap": ("mps2", "timesliced2")}
HEAD = (
    *("model", "cell, clients", "CUDA graphs of every engine", "single, tokens/s", "mps2, tokens/s"),
    *("gain: mps2 / single", "95 % interval", "verdict", "boots", "host parallelism", "kernel overlap"),
    *("single mostly bound by", "core speed, single and mps2, Mops"),
)


def gains_by_settings(stores: Sequence[ResultStore]) -> pl.DataFrame:
    """One row a cell that every store or several have, and store: `order` of the store, its `settings` in words, KEY,
    `ratio`, `ci_low`, `ci_high`, `verdict` and `boots` of the gain, `host` and `overlap`, and by arm `rate` in tokens a
    second, `bound_by` and `speed` in Mops, means over certified windows.

    Raises StoreError where a store has the landscape with several settings.
    """
    every = [_of(store).with_columns(order=pl.lit(order)) for order, store in enumerate(stores)]
    rows = pl.concat(every).filter(pl.len().over(KEY) > 1)
    return rows.sort(cells.by_size(rows["model"]), *KEY[1:], "order")


def _of(store: ResultStore) -> pl.DataFrame:
    trials, windows = store.read("trials", [SWEEP]), store.read("windows", [SWEEP])
    seen = cells.measured(trials.filter(outcome="ok", backend="vllm"), windows).filter("certified")
    means = seen.group_by(*KEY, "arm").agg(
        pl.col("rate").mean(), pl.col("engine_core_speed_mops").mean(), pl.col("bound_by").mode().sort().first()
    )
    own = planned_verdicts(store).filter(sweep=SWEEP, backend="vllm").drop_nulls("ratio")
    found = own.filter(arm="mps2", baseline="single").select(*KEY, "ratio", "ci_low", "ci_high", "verdict", "boots")
    for name in ("host", "overlap"):
        arm, baseline = PAIRS[name]
        part = own.filter(arm=arm, baseline=baseline).select(*KEY, pl.col("ratio").alias(name))
        found = found.join(part, on=KEY, how="left")
    for arm in ARMS:
        names = {"rate": f"rate_{arm}", "bound_by": f"bound_{arm}", "engine_core_speed_mops": f"speed_{arm}"}
        found = found.join(means.filter(arm=arm).drop("arm").rename(names), on=KEY)
    return found.with_columns(settings=pl.lit(graphs_in_words(trials)))


def graphs_in_words(trials: pl.DataFrame) -> str:
    """The CUDA graphs of all these trials' engines, by what those said: up to how many tokens, and whether a step with
    a prompt in it is one graph or pieces between which the host launches attention. Raises StoreError if several."""
    facts = [json.loads(facts) for facts in trials["engine"].drop_nulls().unique()]
    found = {(fact["cudagraph_mode"], fact["max_capture_tokens"]) for fact in facts}
    if len(found) != 1:
        raise StoreError(f"the engines of {sorted(set(trials['sweep']))} had several settings of CUDA graphs: {found}")
    ((mode, largest),) = found
    return f"to {largest:,}, {'whole' if mode == 'FULL' else 'in pieces'}"


def settings_table(rows: pl.DataFrame) -> str:
    """rows: of `gains_by_settings`."""
    return table(HEAD, [_row(row) for row in rows.iter_rows(named=True)])


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *(*cell_words(row), row["settings"], *(f"{row[f'rate_{arm}']:,.0f}" for arm in ARMS)),
        *(f"{row['ratio']:.3f}", interval_words(row["ci_low"], row["ci_high"]), row["verdict"], str(row["boots"])),
        *(_number(row[part], 3) for part in ("host", "overlap")),
        *(row["bound_single"] or "-", ", ".join(_number(row[f"speed_{arm}"], 0) for arm in ARMS)),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def settings_means(rows: pl.DataFrame) -> pl.DataFrame:
    """Geometric means over the cells that every store has, one row a store: `order`, `settings`, `cells`, `models`,
    `gain`, and over the first store's the throughput of one engine, `single`, and of two under MPS, `mps2`."""
    stores = rows["order"].n_unique()
    whole = rows.filter(pl.len().over(KEY) == stores).sort("order")
    first = {arm: pl.col(f"rate_{arm}") / pl.col(f"rate_{arm}").first().over(KEY) for arm in ARMS}
    logs = whole.with_columns(gain=pl.col("ratio"), **first).with_columns(pl.col("gain", *ARMS).log())
    return (
        logs.group_by("order", "settings")
        .agg(pl.col("gain", *ARMS).mean().exp(), cells=pl.len(), models=pl.col("model").unique().sort())
        .sort("order")
    )


def means_in_words(rows: pl.DataFrame) -> str:
    """rows: of `gains_by_settings`; empty where no cell was measured with all settings."""
    means = settings_means(rows)
    if means.is_empty():
        return ""
    models = " and ".join(model.split("/")[-1] for model in cells.model_order(means["models"][0]))
    told = "; ".join(
        f"{row['settings']}: one engine {row['single']:.2f}, two {row['mps2']:.2f}, the gain {row['gain']:.2f}"
        for row in means.iter_rows(named=True)
    )
    return (
        f"Geometric means over the {means['cells'][0]} cells of {models} that were measured with all of them, rates as "
        f"multiples of those in the first row: {told}."
    )
