"""Tables of the findings page in which something is measured twice: again, elsewhere, and against itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from dashboards.agreement import agreement
from dashboards.findings_tables import cell_words, interval_words, planned_boots, table
from dashboards.noise_table import noise
from orchestrator.account import read_accounts
from orchestrator.contrast import rate
from orchestrator.self_comparison import halves
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge

# Of the rule for a verdict (docs/method.md).
FEWEST_BOOTS = 3
# No plan, whatever the trials carry: after a look at every boot.
LOOKED = pl.lit(None, pl.Int64)


def again_table(verdicts: pl.DataFrame, again: pl.DataFrame) -> str:
    """What both stores say of the same cells and pairs of arms."""
    rows = [
        (
            *(*cell_words(row), f"{row['arm']} / {row['baseline']}"),
            *(f"{row['ratio_a']:.3f} ({interval_words(row['ci_low_a'], row['ci_high_a'])})", row["verdict_a"]),
            *(f"{row['ratio_b']:.3f} ({interval_words(row['ci_low_b'], row['ci_high_b'])})", row["verdict_b"]),
            {"overlap": "yes", "apart": "no"}.get(row["word"], "-"),
            "yes" if row["ci_low_a"] <= row["ratio_b"] <= row["ci_high_a"] else "no",
        )
        for row in agreement(verdicts, again).drop_nulls(["ci_low_a", "ci_low_b"]).iter_rows(named=True)
    ]
    head = (
        "model",
        "cell, clients",
        "arms",
        "first",
        "verdict",
        "again",
        "verdict",
        "intervals overlap",
        "inside first",
    )
    return table(head, rows)


def side_by_side(store: ResultStore, sweep: str) -> str:
    """How many GPU seconds the blocks of one run took, and in how many seconds they were done."""
    accounts = read_accounts(store, sweep)
    held_s = float(accounts["held_s"].sum())
    ends = accounts["began_unix_s"] + accounts["held_s"]
    took_s = float(ends.to_numpy().max() - accounts["began_unix_s"].to_numpy().min())
    return (
        f"{accounts.height} blocks held {accounts['gpu_uuid'].n_unique()} GPUs for {held_s:.0f} s in all, within "
        f"{took_s:.0f} s from the first block's beginning to the last one's end:\n{held_s / took_s:.2f} times as fast "
        "as one after another"
    )


def noise_table(trials: pl.DataFrame, windows: pl.DataFrame) -> str:
    rows = [
        (row["sweep"], *cell_words(row), row["between"], str(row["comparisons"]), f"{100 * row['rms_log']:.2f} %")
        for row in noise(trials, windows).iter_rows(named=True)
    ]
    return table(("sweep", "model", "cell, clients", "between", "comparisons", "root mean square difference"), rows)


def gpu_table(stores: Sequence[ResultStore], cell: Mapping[str, Any]) -> str:
    """One cell on every GPU that saw it: the rate of `single`, its clock, and mps2 over it, boot by boot."""
    sides: dict[str, list[pl.DataFrame]] = {"single": [], "mps2": []}
    for store in stores:
        trials = store.read("trials").filter(residency="resident", **cell)
        seen = store.read("windows").join(
            trials.select("trial_id", "arm", "kind", "repeat_id", "gpu_uuid"), on="trial_id"
        )
        for arm, own in sides.items():
            own.append(
                seen.filter("certified", arm=arm)
                .group_by("repeat_id", "gpu_uuid", "boot_id")
                .agg(log=rate().log().mean(), clock=pl.col("sm_clock_mhz").mean())
            )
    single, pair = (pl.concat(own) for own in sides.values())
    boots = pair.join(single, on=["repeat_id", "gpu_uuid"], suffix="_single").with_columns(
        ratio=pl.col("log") - pl.col("log_single")
    )
    gpus = boots.group_by("gpu_uuid").agg(
        pl.len(), pl.col("log_single", "clock_single", "ratio").mean(), scatter=pl.col("ratio").std()
    )
    rows = [
        (
            *(row["gpu_uuid"][:12], str(row["len"]), f"{np.exp(row['log_single']):,.0f}"),
            *(f"{row['clock_single']:.0f}", f"{np.exp(row['ratio']):.4f}"),
            "-" if row["scatter"] is None else f"{100 * row['scatter']:.2f} %",
        )
        for row in gpus.sort("ratio").iter_rows(named=True)
    ]
    between = float(np.std(gpus["ratio"].to_numpy(), ddof=1))
    within = float(np.sqrt(np.nanmean(gpus["scatter"].cast(pl.Float64).to_numpy() ** 2)))
    words = (
        f"The ratio scatters by {100 * between:.2f} % from GPU to GPU and by {100 * within:.2f} % from boot to boot on "
        "one;"
        f"\nthe rate of `single` by {100 * np.std(gpus['log_single'].to_numpy(), ddof=1):.1f} % from GPU to GPU."
    )
    head = ("GPU", "boots", "single, tokens/s", "single, MHz", "mps2 / single", "from boot to boot")
    return table(head, rows) + "\n\n" + words


def false_alarms(stores: Sequence[ResultStore]) -> str:
    """How many comparisons of an arm with itself, at a margin of zero, were given a winner."""
    found = {"as shipped": [0, 0], "number of boots fixed before": [0, 0]}
    for store in stores:
        for sweep in store.sweeps():
            trials, windows = store.read("trials", [sweep]), store.read("windows", [sweep])
            twice = trials.filter(pl.col("arm").is_in(["single", "single-again"]))
            pairs = [halves(trials, windows)]
            if twice["arm"].n_unique() == 2:
                pairs.append((twice, windows))
            for words, planned in zip(found, (LOOKED, planned_boots(store, sweep, trials)), strict=True):
                for own in pairs:
                    rows = judge(*own, margin=0.0, planned_boots=planned)
                    rows = rows.filter(pl.col("metric") == "throughput", pl.col("boots") >= FEWEST_BOOTS)
                    found[words][0] += rows.height
                    found[words][1] += int(rows["verdict"].is_in(["wins", "loses"]).sum())
    counted = [(words, str(all_), str(won), f"{won / all_:.1%}") for words, (all_, won) in found.items()]
    return table(("interval", "comparisons", "winners", "share"), counted)


def residency_table(found: pl.DataFrame) -> str:
    rows = [
        (
            *(row["sweep"], *cell_words(row), row["arm"], f"{row['ratio']:.4f}"),
            interval_words(row["ci_low"], row["ci_high"], 4),
            *(f"1 ± {row['bound']:.3f}", row["verdict"], str(row["boots"])),
        )
        for row in found.iter_rows(named=True)
    ]
    head = ("sweep", "model", "cell, clients", "arm", "resident / alone", "95 % interval", "bound", "verdict", "boots")
    return table(head, rows)
