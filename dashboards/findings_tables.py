"""The tables of the findings page, each from frames of a measured store to Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from orchestrator.account import read_accounts, shares
from orchestrator.contrast import rate
from orchestrator.errors import SpecError
from orchestrator.points import points
from orchestrator.spec import parse_spec
from orchestrator.spec_sections import AXES
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge

# A line through fewer windows than this says nothing.
FEWEST_WINDOWS = 5
PARTS = {"gain": "gain", "host_parallelism": "host parallelism", "kernel_overlap": "kernel overlap"}


def planned_verdicts(store: ResultStore) -> pl.DataFrame:
    """Throughput verdicts of every sweep, by the number of boots that its file named before anything was measured."""
    found = []
    for sweep in store.sweeps():
        trials = store.read("trials", [sweep])
        found.append(judge(trials, store.read("windows", [sweep]), planned_boots=planned_boots(store, sweep, trials)))
    return pl.concat(found).filter(metric="throughput")


def planned_boots(store: ResultStore, sweep: str, trials: pl.DataFrame) -> pl.Expr:
    """`repeats` of the sweep's file, by cell, as an expression over `trials`; null where it was changed on the way,
    where the file says `stopping: open`, or where this release cannot read it. Files of before that key were fixed."""
    planned: dict[tuple[Any, ...], set[int]] = {}
    boots = pl.lit(None, pl.Int64)
    for sha in trials["spec_sha"].unique():
        try:
            spec = parse_spec(store.spec_text(sweep, sha) or "")
        except SpecError:
            return boots
        if "stopping" in spec.model_fields_set and spec.stopping == "open":
            return boots
        for point in points(spec.sweep, spec.workload):
            planned.setdefault(tuple(point.values[axis] for axis in AXES), set()).add(point.repeats or spec.repeats)
    for cell, numbers in planned.items():
        here = pl.all_horizontal(pl.col(axis) == value for axis, value in zip(AXES, cell, strict=True))
        if len(numbers) == 1:
            boots = pl.when(here).then(pl.lit(numbers.pop(), pl.Int64)).otherwise(boots)
    return boots


def verdict_table(verdicts: pl.DataFrame) -> str:
    rows = [
        (
            *(row["sweep"], *cell_words(row), f"{row['arm']} / {row['baseline']}", PARTS.get(row["part"], "ratio")),
            *(f"{row['ratio']:.3f}", interval_words(row["ci_low"], row["ci_high"])),
            *(row["verdict"], str(row["boots"]), "; ".join(row["reasons"])),
        )
        for row in verdicts.sort("sweep", "model", "kind", "prompt_tokens", "arm", "baseline").iter_rows(named=True)
    ]
    head = ("sweep", "model", "cell, clients", "arms", "part", "ratio", "95 % interval", "verdict", "boots", "reasons")
    return table(head, rows)


def time_spent(store: ResultStore) -> str:
    """Where the time went for which a GPU was held, for the sweeps that kept account of it."""
    lines = []
    for sweep in store.sweeps():
        accounts = read_accounts(store, sweep)
        if not accounts.is_empty():
            share = shares(accounts)
            parts = ", ".join(f"{name} {share[name]:.0%}" for name in ("windows", "boot", "between", "teardown"))
            lines.append(f"- `{sweep}`, {accounts.height} of its blocks, {share['held_s']:.0f} s: {parts}")
    return "\n".join(lines)


def speed_table(windows: pl.DataFrame) -> str:
    rows = []
    known = windows.filter(pl.col("engine_core_speed_mops").is_not_null()).with_columns(rate=rate())
    cell = ("sweep", "model", "kind", "context", "concurrency", "arm")
    for place, seen in sorted(known.group_by(cell), key=lambda item: item[0]):
        speed, logs = (np.log(seen[name].to_numpy()) for name in ("engine_core_speed_mops", "rate"))
        if len(speed) < FEWEST_WINDOWS:
            continue
        slope, offset = np.polyfit(speed, logs, 1)
        left = logs - slope * speed - offset
        rows.append(
            (
                *(str(part).split("/")[-1] for part in place),
                *(str(len(speed)), f"{np.exp(speed.min()):.0f} to {np.exp(speed.max()):.0f}"),
                *(f"{100 * logs.std(ddof=1):.1f} %", f"{slope:.2f}", f"{100 * left.std(ddof=2):.1f} %"),
            )
        )
    shown = ("sweep", "model", "kind", "context", "clients", "arm", "windows", "core speed, Mops")
    return table((*shown, "rate scatters by", "slope", "scatter left"), rows)


def speed_levels(core_speeds: Path | None) -> str:
    """The two levels in words: the medians on either side of the middle between the slowest and fastest tenths."""
    if core_speeds is None:
        return ""
    speeds = pl.read_parquet(core_speeds)["speed_mops"].to_numpy()
    middle = np.quantile(speeds, [0.1, 0.9]).mean()
    slow, fast = np.median(speeds[speeds < middle]), np.median(speeds[speeds >= middle])
    share = 100 * (speeds < middle).mean()
    return f", about {fast:.0f} and {slow:.0f} million interpreter turns a second ({share:.0f} % of the time the lower)"


def graph_table(windows: pl.DataFrame) -> str:
    means = (
        windows.with_columns(rate=rate())
        .group_by("sweep", "model", "kind", "arm")
        .agg(pl.col("rate", "steps_full_graph_share", "steps_piecewise_graph_share", "steps_eager_share").mean())
        .sort("sweep", "model", "kind", "arm")
    )
    rows = [
        (
            *(row["sweep"], row["model"].split("/")[-1], row["kind"], row["arm"], f"{row['rate']:,.0f}"),
            *(f"{100 * row[f'steps_{mode}_share']:.0f} %" for mode in ("full_graph", "piecewise_graph", "eager")),
        )
        for row in means.iter_rows(named=True)
    ]
    return table(("sweep", "model", "kind", "arm", "tokens/s", "full graph", "piecewise", "no graph"), rows)


def power_table(windows: pl.DataFrame) -> str:
    means = (
        windows.group_by("sweep", "model", "kind", "arm")
        .agg(
            pl.col("gpu_active_share", "sm_active_share", "tensor_active_share", "dram_active_share").mean(),
            pl.col("sm_clock_mhz", "power_w", "power_capped_share").mean(),
            pl.col("bound_by").mode().sort().first(),
        )
        .sort("sweep", "model", "kind", "arm")
    )
    active = ("gpu_active_share", "sm_active_share", "tensor_active_share", "dram_active_share")
    rows = [
        (
            *(row["sweep"], row["model"].split("/")[-1], row["kind"], row["arm"]),
            *(f"{100 * row[name]:.0f} %" for name in active),
            *(f"{row['power_w']:.0f}", f"{row['sm_clock_mhz']:.0f}", f"{100 * row['power_capped_share']:.0f} %"),
            row["bound_by"],
        )
        for row in means.iter_rows(named=True)
    ]
    engines = ("sweep", "model", "kind", "arm")
    return table((*engines, "GPU active", "SM", "tensor", "DRAM", "W", "MHz", "capped", "mostly bound by"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def cell_words(row: Mapping[str, Any]) -> tuple[str, str]:
    """Model and cell as the tables name them."""
    work = f"{row['kind']} {row['prompt_tokens']}/{row['output_tokens']}, {row['concurrency']}"
    return row["model"].split("/")[-1], work


def interval_words(low: float | None, high: float | None, digits: int = 3) -> str:
    return "-" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
