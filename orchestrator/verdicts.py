"""Frames to verdicts: `wins`, `loses`, `tie` or `undecided` for every cell, pair of arms and metric.

    python -m orchestrator.verdicts STORE [--format table|json|csv] [--sweep NAME] [--backend BACKEND]
    python -m orchestrator.verdicts STORE --view own_peak           # another matching rule, see orchestrator.views
    python -m orchestrator.verdicts STORE --view equal_latency --latency e2e_p50=8

A verdict is a pure function of the trials and windows that a store holds; docs/method.md has the reasoning.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence

import polars as pl

from orchestrator import contrast, decision, grounds, multiplicity
from orchestrator.core_speed import at_equal_speed
from orchestrator.courses import courses
from orchestrator.errors import EXIT_OK, MpscapeError
from orchestrator.gpu_level import over_gpus
from orchestrator.records import Columns
from orchestrator.store import ResultStore
from orchestrator.verdict_table import print_verdicts

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
    "gpus": pl.Int64,  # GPUs that the boots are from
    "gpus_low": pl.Float64,  # 95 % interval over GPUs instead of boots, see gpu_level; null below two; never a verdict
    "gpus_high": pl.Float64,
    # throughput only: the ratio if EngineCore's core had run equally fast in both arms, see core_speed; never a verdict
    "equal_speed_mops": pl.Float64,
    "equal_speed_ratio": pl.Float64,
    "equal_speed_low": pl.Float64,
    "equal_speed_high": pl.Float64,
}
VERDICTS = pl.Schema(COLUMNS)
SPEEDS = [name for name in COLUMNS if name.startswith("equal_speed")]
# The number of boots where it was fixed before any result was seen: for all cells, or by an expression over `trials`.
PlannedBoots = int | pl.Expr | None
ORDER = (*KEY, "residency", "arm", "baseline", pl.col("metric").cast(pl.Enum(contrast.METRICS)))


def judge(
    trials: pl.DataFrame, windows: pl.DataFrame, *, margin: float | None = None, planned_boots: PlannedBoots = None
) -> pl.DataFrame:
    """One row a cell, pair of arms and metric, with the columns of VERDICTS, sorted.

    trials, windows: tables of `records`, committed attempts only.
    margin: overrides the trials' own `tie_margin`.
    planned_boots: says that the number of boots was fixed before any result was seen, where the trials do not say it
        (`stopping: fixed` in a sweep file); without it, or with another number of boots than that, the interval
        allows for a look after every boot from the third on.
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
    facts = cells(numbered, margin, planned_boots)
    course = courses(logs, rounds, pairs, facts)
    rows = assemble(numbered, windows, pairs, sides, contrasts, course, facts)
    return (
        _beside(rows, at_equal_speed(rounds, pairs.join(facts, on="cell_id")))
        .select(VERDICTS.names())
        .cast(VERDICTS)
        .sort(*ORDER, nulls_last=True)
    )


def _beside(rows: pl.DataFrame, at_speed: pl.DataFrame) -> pl.DataFrame:
    """Adds the columns of `core_speed` to the throughput rows that have a ratio, and says so where its interval would
    have given another word."""
    known = (pl.col("metric") == "throughput") & pl.col("ratio").is_not_null()
    ratio = pl.when(known).then("equal_speed")
    low, high = ratio - pl.col("equal_speed_half"), ratio + pl.col("equal_speed_half")
    word = decision.word(low, high, pl.col("margin"))
    told = pl.format(
        "at equal core speed ({} Mops) the ratio is {} ({} to {})",
        pl.col("equal_speed_mops").round(1), *(value.exp().round(3) for value in (ratio, low, high)),
    )  # fmt: skip
    other = known & pl.col("judged") & low.is_finite() & (word != pl.col("verdict"))
    return (
        rows.drop(SPEEDS)
        .join(at_speed, on="pair_id", how="left")
        .with_columns(
            equal_speed_mops=pl.when(known).then("equal_speed_mops"),
            equal_speed_ratio=ratio.exp(),
            equal_speed_low=low.exp(),
            equal_speed_high=high.exp(),
            reasons=pl.concat_list("reasons", pl.concat_list(pl.when(other).then(told)).list.drop_nulls()),
        )
    )


def assemble(
    numbered: pl.DataFrame,
    windows: pl.DataFrame,
    pairs: pl.DataFrame,
    sides: pl.DataFrame,
    contrasts: pl.DataFrame,
    course: pl.DataFrame,
    facts: pl.DataFrame,
    metrics: Sequence[str] = contrast.METRICS,
    more_grounds: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """From the contrasts of boots to verdicts: one row a pair and metric, `pair_id` and the columns of VERDICTS.

    The frames are those of `contrast` and `courses`. The grounds against a verdict that lie in the tables are found
    here; `more_grounds` has others, in the shape of `grounds.GROUNDS`.
    """
    known = pairs.join(facts, on="cell_id")
    contrasts = contrasts.join(known.select("pair_id", "planned"), on="pair_id")
    rows = (
        known.join(pl.DataFrame({"metric": list(metrics)}), how="cross")
        .filter(~contrast.is_prefill() | ~pl.col("metric").str.starts_with("tpot"))
        .join(contrast.intervals(contrasts), on=["pair_id", "metric"], how="left")
        .join(over_gpus(contrasts, sides), on=["pair_id", "metric"], how="left")
        .with_columns(pl.col("boots", "windows", "gpus").fill_null(0), pl.col("gpus_low", "gpus_high").exp())
    )
    before = pl.concat([
        grounds.missing(numbered, sides), grounds.mixed(numbered, sides), grounds.uncertified(numbered, windows, pairs),
        grounds.GROUNDS.to_frame() if more_grounds is None else more_grounds,
    ])  # fmt: skip
    rows = decision.with_reasons(rows, before, course)
    rows = decision.with_next_step(multiplicity.with_q(decision.decide(rows)))
    return rows.with_columns(pl.lit(None, pl.Float64).alias(name) for name in SPEEDS)


def cells(numbered: pl.DataFrame, margin: float | None, planned_boots: PlannedBoots = None) -> pl.DataFrame:
    """One row a cell: its key, GPU names as found, margin, repeats so far, boots planned, and what one more repeat
    costs its GPU in seconds.

    Engines that are resident together boot together: one boot time a repeat, not one an arm.
    """
    ok = pl.col("outcome") == "ok"
    if planned_boots is None and "planned_boots" in numbered.columns:
        planned_boots = pl.col("planned_boots")
    planned = planned_boots if isinstance(planned_boots, pl.Expr) else pl.lit(planned_boots, pl.Int64)
    known = numbered.group_by("sweep", "backend", "gpu_kind").agg(found=pl.col("gpu_name").drop_nulls().first())
    own = pl.col("gpu_name").drop_nulls().unique().sort().str.join(" | ")
    spent = numbered.filter(ok).group_by("cell_id", "repeat").agg(
        booting_s=pl.when(pl.col("together").first()).then(pl.col("boot_s").max()).otherwise(pl.col("boot_s").sum()),
        measuring_s=pl.col("measuring_s").sum(),
    )  # fmt: skip
    cost = spent.group_by("cell_id").agg(pl.col("booting_s", "measuring_s").mean())
    found = numbered.group_by("cell_id").agg(
        pl.col(contrast.CELL).first(),
        own=own,
        repeats=pl.col("repeat").max() + 1,
        planned=pl.when(planned.n_unique() == 1).then(planned.first()).cast(pl.Int64),
        margin=pl.lit(margin) if margin is not None else pl.col("tie_margin").max(),
    )
    return (
        found.join(cost, on="cell_id", how="left")
        .join(known, on=["sweep", "backend", "gpu_kind"], how="left", nulls_equal=True)
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
    views = ("equal_total", "per_engine", "own_peak", "equal_latency", "all")
    parser.add_argument("--view", choices=views, help="what is equal between the arms (default: equal_total)")
    parser.add_argument(
        "--latency", action="append", default=[], type=_level, metavar="METRIC=SECONDS",
        help="a level for equal_latency, such as e2e_p50=8; may be given again",
    )  # fmt: skip
    asked = parser.parse_args(arguments)
    if asked.latency and asked.view not in ("equal_latency", "all"):
        parser.error("--latency goes with --view equal_latency")
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
    rows = _asked_for(asked, trials, windows)
    show(rows.with_columns(pl.col("next_step").str.replace("--store STORE", f"--store {asked.store}")), asked.format)
    return EXIT_OK


def _asked_for(asked: argparse.Namespace, trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Without `--view` the rows of `judge` as they are; with it, those of `views.judge_views`."""
    if asked.view is None:
        return judge(trials, windows, margin=asked.margin, planned_boots=asked.planned_boots)
    from orchestrator.views import VIEWS, judge_views  # it builds on this module

    levels: dict[str, list[float]] = {}
    for metric, level in asked.latency:
        levels.setdefault(metric, []).append(level)
    wanted = VIEWS if asked.view == "all" else [asked.view]
    return judge_views(
        trials, windows, views=wanted, latencies=levels or None, margin=asked.margin, planned_boots=asked.planned_boots
    )


def _level(text: str) -> tuple[str, float]:
    """`e2e_p50=8` as metric and seconds."""
    metric, _, seconds = text.partition("=")
    try:
        level = float(seconds)
    except ValueError:
        level = math.nan
    if metric not in contrast.LATENCIES or not 0 < level < math.inf:
        known = ", ".join(contrast.LATENCIES)
        raise argparse.ArgumentTypeError(f"{text!r} is not METRIC=SECONDS with one of {known}")
    return metric, level


def show(verdicts: pl.DataFrame, form: str) -> None:
    """`json`: one array of objects; `csv`: reasons joined with "; "; `table`: throughput only, for reading."""
    if form == "json":
        print(json.dumps(verdicts.to_dicts(), ensure_ascii=False, indent=1))
    elif form == "csv":
        print(verdicts.with_columns(pl.col("reasons").list.join("; ")).write_csv(), end="")
    else:
        print_verdicts(verdicts.filter(metric="throughput"))


if __name__ == "__main__":
    sys.exit(main())
