"""Frames to verdicts: `wins`, `loses`, `tie` or `undecided` for every cell, pair of arms and metric.

    python -m orchestrator.verdicts STORE [--format table|json|csv] [--sweep NAME] [--backend BACKEND]

A verdict is a pure function of the trials and windows that a store holds; docs/method.md has the reasoning.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import polars as pl
from rich.console import Console
from rich.table import Table

from orchestrator import contrast, decision, grounds, multiplicity
from orchestrator.courses import courses
from orchestrator.errors import EXIT_OK, MpscapeError
from orchestrator.records import Columns
from orchestrator.store import ResultStore

KEY = ("sweep", "backend", "gpu_kind", "gpu_name", "model", "kind", "prompt_tokens", "output_tokens", "concurrency")
COLUMNS: Columns = {
    "sweep": pl.String,
    "backend": pl.String,
    "gpu_kind": pl.String,
    "gpu_name": pl.String,
    "model": pl.String,
    "kind": pl.String,
    "prompt_tokens": pl.Int64,
    "output_tokens": pl.Int64,
    "concurrency": pl.Int64,
    "residency": pl.String,
    "arm": pl.String,
    "baseline": pl.String,
    "part": pl.String,  # what the step isolates, see contrast.pairs; null for other pairs
    "metric": pl.String,
    "better": pl.String,  # higher | lower: `wins` always means better
    "ratio": pl.Float64,  # arm / baseline, geometric mean over boots
    "ci_low": pl.Float64,  # 95 % interval of `ratio` that allows for the looks taken; null below two boots
    "ci_high": pl.Float64,
    "verdict": pl.String,
    "reasons": pl.List(pl.String),
    "margin": pl.Float64,
    "boots": pl.Int64,
    "windows": pl.Int64,  # pairs of windows
    "ratio_of_means": pl.Float64,  # of arithmetic means over boots
    "noise_share": pl.Float64,  # of the spread of boots, what the scatter of windows explains
    "p_value": pl.Float64,  # of the claim with the most support, looks allowed for
    "q_value": pl.Float64,  # the same over the map: see multiplicity
    "map_verdict": pl.String,  # the verdict where q_value <= 0.05, else undecided
    "boots_wanted": pl.Int64,  # boots in all that should decide; null where decided or out of reach
    "gpu_minutes": pl.Float64,  # for those boots
    "next_step": pl.String,
}
VERDICTS = pl.Schema(COLUMNS)


def judge(
    trials: pl.DataFrame, windows: pl.DataFrame, *, margin: float | None = None, planned_boots: int | None = None
) -> pl.DataFrame:
    """One row a cell, pair of arms and metric, with the columns of VERDICTS, sorted.

    trials, windows: tables of `records`, committed attempts only.
    margin: overrides the trials' own `tie_margin`.
    planned_boots: says that the number of boots was fixed before any result was seen; without it the interval allows
        for a look after every boot from the third on.
    Raises nothing on odd data: a cell that cannot be judged is `undecided`, and `reasons` says why.
    """
    numbered = contrast.numbered(trials)
    pairs = contrast.pairs(numbered)
    if pairs.is_empty():
        return VERDICTS.to_frame()
    sides = contrast.sides(numbered, pairs)
    logs = contrast.log_windows(numbered, windows)
    rounds = contrast.rounds(logs, sides)
    contrasts = contrast.boot_contrasts(logs, sides, rounds)
    facts = _cells(numbered, margin)
    rows = (
        pairs.join(facts, on="cell_id")
        .join(pl.DataFrame({"metric": contrast.METRICS}), how="cross")
        .filter((pl.col("kind") != "prefill") | ~pl.col("metric").str.starts_with("tpot"))
        .join(contrast.intervals(contrasts, planned_boots), on=["pair_id", "metric"], how="left")
        .with_columns(pl.col("boots", "windows").fill_null(0))
    )
    before = pl.concat([
        grounds.missing(numbered, sides), grounds.mixed(numbered, sides), grounds.uncertified(numbered, windows, pairs)
    ])  # fmt: skip
    rows = decision.with_reasons(rows, before, courses(logs, rounds, pairs, facts))
    rows = decision.with_next_step(multiplicity.with_q(decision.decide(rows), planned_boots))
    metric = pl.col("metric").cast(pl.Enum(contrast.METRICS))
    return (
        rows.select(VERDICTS.names()).cast(VERDICTS).sort(*KEY, "residency", "arm", "baseline", metric, nulls_last=True)
    )


def _cells(numbered: pl.DataFrame, margin: float | None) -> pl.DataFrame:
    """One row a cell: its key, GPU names as found, margin, and what one more repeat costs in seconds of its GPU."""
    ok = pl.col("outcome") == "ok"
    known = numbered.group_by("sweep", "backend", "gpu_kind").agg(found=pl.col("gpu_name").drop_nulls().first())
    own = pl.col("gpu_name").drop_nulls().unique().sort().str.join(" | ")
    cells = numbered.group_by("cell_id").agg(
        pl.col(contrast.CELL).first(),
        own=own,
        margin=pl.lit(margin) if margin is not None else pl.col("tie_margin").max(),
        measuring_s=pl.col("measuring_s").filter(ok).sum() / pl.col("repeat_id").filter(ok).n_unique(),
        booting_s=pl.col("boot_s").filter(ok).sum() / pl.col("repeat_id").filter(ok).n_unique(),
    )
    return (
        cells.join(known, on=["sweep", "backend", "gpu_kind"], how="left", nulls_equal=True)
        .with_columns(
            gpu_name=pl.coalesce(pl.when(pl.col("own") != "").then("own"), "found", "gpu_kind"),
            margin=pl.col("margin").fill_null(0.0).cast(pl.Float64),
        )
        .drop("own", "found")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Prints to standard output; faults of the store and errors go to standard error."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.verdicts", description=__doc__.splitlines()[0])
    parser.add_argument("store", metavar="STORE", help="folder or URL")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.add_argument("--sweep", help="only this sweep")
    parser.add_argument("--backend", choices=("vllm", "vllm-cpu", "simulated"), help="only this backend")
    parser.add_argument("--margin", type=float, help="tie margin, instead of the sweep's own")
    parser.add_argument(
        "--planned-boots", type=int, metavar="N",
        help="the number of boots was fixed before any result was seen: intervals then allow for one look only",
    )  # fmt: skip
    asked = parser.parse_args(arguments)
    if asked.margin is not None and not 0 <= asked.margin < 1:
        parser.error(f"--margin {asked.margin} is not a share from 0 to 1")
    try:
        store = ResultStore.open(asked.store, create=False)
        sweeps = None if asked.sweep is None else [asked.sweep]
        trials, windows = store.read("trials", sweeps=sweeps), store.read("windows", sweeps=sweeps)
    except MpscapeError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    for fault in store.faults:
        print(f"left out: {fault}", file=sys.stderr)
    if asked.backend:
        trials = trials.filter(backend=asked.backend)
    show(judge(trials, windows, margin=asked.margin, planned_boots=asked.planned_boots), asked.format)
    return EXIT_OK


def show(verdicts: pl.DataFrame, form: str) -> None:
    """`json`: one array of objects; `csv`: reasons joined with "; "; `table`: throughput only, for reading."""
    if form == "json":
        print(json.dumps(verdicts.to_dicts(), ensure_ascii=False, indent=1))
    elif form == "csv":
        print(verdicts.with_columns(pl.col("reasons").list.join("; ")).write_csv(), end="")
    else:
        _show_table(verdicts.filter(metric="throughput"))


def _show_table(verdicts: pl.DataFrame) -> None:
    console = Console(markup=False, highlight=False)
    for (sweep, backend, gpu), rows in verdicts.group_by("sweep", "backend", "gpu_name", maintain_order=True):
        predicted = ": predictions of a model, not measurements" if backend == "simulated" else ""
        table = Table(title=f"{sweep} on {gpu}, {backend}{predicted}", title_justify="left")
        for heading in ("model", "kind", "tokens in/out", "C", "arms", "ratio", "95 % interval", "verdict", "boots"):
            table.add_column(heading, overflow="fold")
        table.add_column("reasons and next step", overflow="fold", ratio=1)
        for row in rows.iter_rows(named=True):
            ratio = "none" if row["ratio"] is None else f"{row['ratio']:.3f}"
            interval = "none" if row["ci_low"] is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
            why = "; ".join([*row["reasons"], *([row["next_step"]] if row["next_step"] else [])])
            table.add_row(
                row["model"], row["kind"], f"{row['prompt_tokens']}/{row['output_tokens']}", str(row["concurrency"]),
                f"{row['arm']} / {row['baseline']}", ratio, interval, row["verdict"], str(row["boots"]), why,
            )  # fmt: skip
        console.print(table)
    if verdicts.is_empty():
        console.print("no verdicts: the store holds no repeat with two arms to compare")


if __name__ == "__main__":
    sys.exit(main())
