"""Which arm to run for a model, a context and a latency: what was measured, the verdict on it, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from dashboards import theme

LIMITS = {
    "ttft_p50_s": "TTFT p50",
    "ttft_p99_s": "TTFT p99",
    "tpot_p50_s": "TPOT p50",
    "tpot_p99_s": "TPOT p99",
    "e2e_p50_s": "latency p50",
    "e2e_p99_s": "latency p99",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """arm: what to run, None where nothing meets the limit. sure: how sure the gain is, in words. options: every point
    of `points`, best first."""

    arm: str | None
    concurrency: int | None
    sentence: str
    sure: str
    options: pl.DataFrame


def points(measured: pl.DataFrame) -> pl.DataFrame:
    """(arm, concurrency, tokens_per_s, the columns of LIMITS, boots): means over boots of certified windows.

    measured: `cells.measured` rows of one model, workload and residency, with any number of concurrencies.
    """
    values = ["rate", *LIMITS]
    boots = measured.filter("certified").group_by("arm", "sharing", "engines", "concurrency", "boot_id")
    return (
        boots.agg(pl.col(values).mean())
        .group_by("arm", "sharing", "engines", "concurrency")
        .agg(pl.col(values).mean(), boots=pl.len())
        .rename({"rate": "tokens_per_s"})
        .sort("tokens_per_s", descending=True)
    )


def advise(
    measured: pl.DataFrame, verdicts: pl.DataFrame, limit: str | None = None, most_s: float | None = None
) -> Advice:
    """The arm with the most tokens/s within the limit whose gain is decided; else the baseline, which is simplest.

    verdicts: throughput rows at equal total concurrency of the same model and workload. limit: a column of LIMITS, and
    the most seconds that it may be; None: no limit.
    """
    options = points(measured)
    if options.is_empty():
        return Advice(None, None, "No certified window of this workload is in the store.", "", options)
    within = options
    words = ""
    if limit is not None and most_s is not None:
        within = options.filter(pl.col(limit) <= most_s)
        words = f" with {LIMITS[limit]} at most {most_s:g} s"
        if within.is_empty():
            low = float(min(options[limit].drop_nulls(), default=float("nan")))
            return Advice(
                None, None, f"Nothing that was measured keeps {LIMITS[limit]} at or below {most_s:g} s;"
                f" the lowest is {low:.3g} s.", "", options,
            )  # fmt: skip
    baseline = str(measured["baseline"][0])
    single = within.filter(arm=baseline)
    for row in within.iter_rows(named=True):
        if row["arm"] == baseline:
            return _baseline(row, within, verdicts, words, options)
        verdict = _verdict(verdicts, row["arm"], baseline, row["concurrency"])
        best_single = single["tokens_per_s"].max()
        if verdict is not None and verdict["verdict"] == "wins":
            return Advice(row["arm"], row["concurrency"], _gain(row, verdict, words), _sure(verdict), options)
        if best_single is None:
            return Advice(
                row["arm"], row["concurrency"],
                f"{_run(row)}{words}. {baseline} has no measured point within the limit.",
                "There is no ratio to be sure of: only this arm meets the limit.", options,
            )  # fmt: skip
    return _baseline(single.row(0, named=True), within, verdicts, words, options)


def _baseline(
    row: dict[str, Any], within: pl.DataFrame, verdicts: pl.DataFrame, words: str, options: pl.DataFrame
) -> Advice:
    others = within.filter(pl.col("arm") != row["arm"])
    why = "no other arm was measured within the limit"
    if len(others):
        best = others.row(0, named=True)
        verdict = _verdict(verdicts, best["arm"], row["arm"], best["concurrency"])
        if verdict is None:
            why = f"{best['arm']} was not compared with it at {best['concurrency']} requests in flight"
        elif verdict["verdict"] == "undecided":
            why = (
                f"{best['arm']} shows {theme.percent(verdict['ratio'])} but is undecided:"
                f" {'; '.join(verdict['reasons'])}" + (f" ({verdict['next_step']})" if verdict["next_step"] else "")
            )
        else:
            bounds = theme.interval(verdict["ci_low"], verdict["ci_high"])
            why = f"{best['arm']} gives {theme.percent(verdict['ratio'])} [{bounds}]: {verdict['verdict']}"
    return Advice(
        row["arm"], row["concurrency"], f"{_run(row)}{words}.", f"Nothing is known to beat it: {why}.", options
    )


def _run(row: dict[str, Any]) -> str:
    return f"Run {row['arm']} at {row['concurrency']} requests in flight: {row['tokens_per_s']:,.0f} tokens/s"


def _gain(row: dict[str, Any], verdict: dict[str, Any], words: str) -> str:
    return f"{_run(row)}{words}, {theme.percent(verdict['ratio'])} over {verdict['baseline']} at the same concurrency."


def _sure(verdict: dict[str, Any]) -> str:
    bounds = theme.interval(verdict["ci_low"], verdict["ci_high"])
    kept = "still stands" if verdict["map_verdict"] == verdict["verdict"] else "does not stand"
    return (
        f"95 % interval [{bounds}] over {verdict['boots']} sets of boots and {verdict['windows']} pairs of windows;"
        f" it {kept} when the whole map is allowed for (false discovery rate 5 %)."
    )


def _verdict(verdicts: pl.DataFrame, arm: str, baseline: str, concurrency: int) -> dict[str, Any] | None:
    rows = verdicts.filter(
        pl.col("metric") == "throughput", arm=arm, baseline=baseline, concurrency=concurrency
    ).filter(pl.col("ratio").is_finite())
    return rows.row(0, named=True) if len(rows) else None
