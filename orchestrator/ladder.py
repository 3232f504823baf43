"""Trials along the concurrency ladder, rearranged so that `verdicts` can judge arms at unlike numbers of clients.

A ladder is the same (sweep, backend, GPU kind, model, workload, residency) at several concurrencies. Its cells are
measured in the same boots but not in the same rounds, so arms at unlike concurrencies are paired boot by boot, by the
means of their windows: the drift within a boot that pairing by rounds would cancel is part of these intervals.
"""

from __future__ import annotations

import polars as pl

from orchestrator.contrast import CELL, LATENCIES, log_windows, numbered

RUNGS = [name for name in CELL if name != "concurrency"]


def settled(trials: pl.DataFrame) -> pl.DataFrame:
    """`trials` with `residency` filled, a number for each ladder and `together`, see `contrast.numbered`."""
    return (
        numbered(trials)
        .drop("cell_id", "trial")
        .with_columns(ladder=pl.struct(pl.col(RUNGS)).rank("dense"), rung="concurrency")
    )


def per_engine(ladder: pl.DataFrame) -> pl.DataFrame:
    """Cells in which every arm has as many clients an engine as the baseline has.

    ladder: of `settled`. `concurrency` is the baseline's; an arm without a cell at its own concurrency is left out.
    """
    engines = ladder.group_by("ladder", "arm").agg(pl.col("engines").first())
    base = (
        ladder.filter(pl.col("arm") == pl.col("baseline"))
        .select("ladder", "rung", "baseline", base_engines="engines")
        .unique()
    )
    wanted = (
        base.join(engines, on="ladder")
        .filter(pl.col("rung") * pl.col("engines") % pl.col("base_engines") == 0)
        .select(
            "ladder", "baseline", "arm", anchor="rung",
            rung=pl.col("rung") * pl.col("engines") // pl.col("base_engines"),
            setting=pl.format("{} clients per engine", pl.col("rung") / pl.col("base_engines")),
        )
    )  # fmt: skip
    whole = wanted.with_columns(pl.col("setting").str.replace(r"\.0 ", " "))
    cells = ladder.join(whole, on=["ladder", "baseline", "arm", "rung"])
    both = cells.group_by("ladder", "anchor").agg(arms=pl.col("arm").n_unique()).filter(pl.col("arms") > 1)
    return _alone(cells.join(both.drop("arms"), on=["ladder", "anchor"]), "anchor")


def own_peak(ladder: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Each arm in each boot at the concurrency that was its best in the *other* boots.

    A maximum over noisy cells is biased upwards in the boots it was found in; in a boot that had no part in finding it,
    it is not (D. R. Cox, "A note on data-dependent selection of hypotheses by split", Biometrika 62 (1975) 441-444; for
    all folds in turn, H. van Hasselt, "Estimating the maximum expected value: an analysis of (nested) cross validation
    and the maximum sample average", arXiv:1302.7175). What is estimated is the ratio at the peaks that the other boots
    name: never more than an arm's true peak, and the true one wherever the choice is stable.
    """
    ok, means = ladder.filter(outcome="ok"), trial_means(ladder, windows).drop_nulls("throughput")
    key = ["ladder", "arm", "repeat"]
    levels = ok.join(means, on=["trial_id", "attempt_id"]).group_by(*key, "rung").agg(pl.col("throughput").mean())
    others = levels.rename({"repeat": "other", "throughput": "seen"})
    best = (
        levels.join(others, on=["ladder", "arm", "rung"])
        .filter(pl.col("other") != pl.col("repeat"))
        .group_by(*key, "rung")
        .agg(pl.col("seen").mean())
        .sort("seen", "rung", descending=[True, False])
        .group_by(key, maintain_order=True)
        .agg(pl.col("rung").first())
    )
    climbed = ladder.group_by("ladder").agg(
        rungs=pl.col("rung").unique().sort(),
    ).filter(pl.col("rungs").list.len() > 1).select(
        "ladder", top=pl.col("rungs").list.max(),
        setting=pl.format("peak over {}", pl.col("rungs").cast(pl.List(pl.String)).list.join(", ")),
    )  # fmt: skip
    never = ladder.join(ok, on=["ladder", "arm"], how="anti").sort("rung").unique(key, keep="first")
    cost = ok.group_by(key).agg(measuring_s=pl.col("measuring_s").sum())
    chosen = ladder.join(best, on=[*key, "rung"]).drop("measuring_s").join(cost, on=key, how="left")
    rows = pl.concat([chosen.select(ladder.columns), never]).join(climbed, on="ladder")
    return _alone(rows.with_columns(anchor=pl.lit(None, pl.Int64)), "anchor")


def peak_remarks(peaks: pl.DataFrame) -> dict[tuple[int, str], str]:
    """By ladder and arm: where its peak lay, and whether that is the end of the ladder. peaks: of `own_peak`."""
    found = peaks.filter(outcome="ok").group_by("ladder", "arm").agg(
        pl.col("rung").unique().sort(), top=pl.col("top").first()
    )  # fmt: skip
    return {(row["ladder"], row["arm"]): _peak_text(**row) for row in found.iter_rows(named=True)}


def _peak_text(ladder: int, arm: str, rung: list[int], top: int) -> str:
    where = " or ".join(str(clients) for clients in rung)
    end = ", the end of its ladder: it may do better beyond" if top in rung else ""
    return f"{arm} peaks at {where} clients{end}"


def trial_means(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Mean log of every metric over a trial's certified windows: (trial_id, attempt_id, trial, metrics, n)."""
    known = numbered(trials)
    logs = log_windows(known, windows).filter("certified")
    metrics = ["throughput", *LATENCIES]
    ids = known.select("trial", "trial_id", "attempt_id")
    return logs.group_by("trial").agg(pl.col(metrics).mean(), n=pl.len()).join(ids, on="trial")


def _alone(cells: pl.DataFrame, concurrency: str) -> pl.DataFrame:
    """Rows of a view: one cell an anchor, one repeat a boot, arms paired by the means of their windows."""
    return cells.with_columns(
        concurrency=concurrency,
        repeat_id=pl.format("{}/{}/{}", "ladder", pl.col(concurrency).fill_null(-1), "repeat"),
        residency=pl.lit("alone"),
        residency_found="residency",
    )
