"""One landscape seen by four matching rules: what must be equal for two arms to be compared.

    judge_views(trials, windows)     # rows of `verdicts` with `view` and `setting`

equal_total     as many clients on the GPU in every arm: the headline, `verdicts.judge` as it is
per_engine      as many clients an engine: n engines at n C against one at C
own_peak        every arm at its own best number of clients, which is chosen in other boots than it is measured in
equal_latency   throughput at one TTFT, TPOT or end-to-end latency, interpolated along each boot's ladder

Every view has the same interval over boots, rule of three boots, grounds and reasons. The matching rule can turn the
sign of a comparison, so none of them is *the* answer; equal_total is the headline because it needs no model of load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from orchestrator import contrast, ladder, latency_match
from orchestrator.records import Columns
from orchestrator.verdicts import COLUMNS, ORDER, VERDICTS, PlannedBoots, assemble, cells, judge

VIEWS = ("equal_total", "per_engine", "own_peak", "equal_latency")
VIEW_COLUMNS: Columns = {
    "view": pl.String,  # one of VIEWS
    "setting": pl.String,  # what is equal: "64 clients per engine", "peak over 16, 64", "e2e_p50 <= 8 s"; else null
    **COLUMNS,  # `concurrency`: null for own_peak and equal_latency, the baseline's for per_engine
}
VIEW_VERDICTS = pl.Schema(VIEW_COLUMNS)


def judge_views(
    trials: pl.DataFrame,
    windows: pl.DataFrame,
    requests: pl.DataFrame | None = None,
    *,
    views: Sequence[str] = VIEWS,
    latencies: Mapping[str, Sequence[float]] | None = None,
    margin: float | None = None,
    planned_boots: PlannedBoots = None,
) -> pl.DataFrame:
    """Verdicts by view, with the columns of VIEW_VERDICTS, sorted by view and then as `judge` sorts.

    trials, windows: tables of `records`, committed attempts only. requests: not needed, windows carry the latencies.
    latencies: levels in seconds by metric (`e2e_p50`, ...) for equal_latency; without them round levels are taken that
        both arms pass in every boot.
    Raises ValueError for a view or latency that does not exist; nothing on odd data, which is `undecided` with reasons.
    """
    if unknown := {*views} - {*VIEWS}:
        raise ValueError(f"no view {sorted(unknown)[0]!r}: there are {', '.join(VIEWS)}")
    if unknown := {*(latencies or {})} - {*contrast.LATENCIES}:
        raise ValueError(f"no latency {sorted(unknown)[0]!r}: there are {', '.join(contrast.LATENCIES)}")
    # Views lay trials out anew, in cells that no sweep file has: whose boots were planned is settled before.
    if isinstance(planned_boots, pl.Expr):
        trials, planned_boots = trials.with_columns(planned_boots=planned_boots), pl.col("planned_boots")
    by_total = {"equal_total", "per_engine"} & {*views}  # the two others are judged by frames of their own
    total = judge(trials, windows, margin=margin, planned_boots=planned_boots) if by_total else VERDICTS.to_frame()
    rungs = ladder.settled(trials)
    made = {
        "equal_total": lambda: _shown(total, "equal_total", pl.lit(None, pl.String)),
        "per_engine": lambda: _per_engine(rungs, windows, total, margin, planned_boots),
        "own_peak": lambda: _own_peak(rungs, windows, margin, planned_boots),
        "equal_latency": lambda: _equal_latency(rungs, windows, latencies, margin, planned_boots),
    }
    frames = [made[view]() for view in VIEWS if view in views]
    rows = pl.concat(frames) if frames else VIEW_VERDICTS.to_frame()
    view = pl.col("view").cast(pl.Enum(VIEWS))
    return rows.select(VIEW_VERDICTS.names()).cast(VIEW_VERDICTS).sort(view, *ORDER, "setting", nulls_last=True)


def _shown(rows: pl.DataFrame, view: str, setting: pl.Expr) -> pl.DataFrame:
    return rows.with_columns(view=pl.lit(view), setting=setting).select(VIEW_VERDICTS.names())


def _per_engine(
    rungs: pl.DataFrame, windows: pl.DataFrame, total: pl.DataFrame, margin: float | None, planned_boots: PlannedBoots
) -> pl.DataFrame:
    """Arms with unlike numbers of engines by boots; those with as many meet at equal total anyway, pairing kept."""
    cells_of = ladder.per_engine(rungs)
    rows = _judged(cells_of, windows, margin, planned_boots)
    where = [name for name in contrast.CELL if name != "residency"]
    engines = rungs.group_by(*ladder.RUNGS, "arm").agg(pl.col("engines").first())
    on = [*ladder.RUNGS]
    count = engines.rename({"arm": "baseline", "engines": "base_engines"})
    settings = cells_of.select(*where, residency="residency_found", setting="setting").unique()
    by_boot = (
        rows.join(engines, on=[*on, "arm"], nulls_equal=True)
        .join(count, on=[*on, "baseline"], nulls_equal=True)
        .filter(pl.col("engines") != pl.col("base_engines"))
        .join(settings, on=list(contrast.CELL), nulls_equal=True)
    )
    by_round = (
        total.join(engines, on=[*on, "arm"], nulls_equal=True)
        .join(count, on=[*on, "baseline"], nulls_equal=True)
        .filter(pl.col("engines") == pl.col("base_engines"))
        .with_columns(
            setting=pl.format("{} clients per engine", pl.col("concurrency") / pl.col("engines")).str.replace(
                r"\.0 ", " "
            )
        )
    )
    return pl.concat([_shown(frame, "per_engine", pl.col("setting")) for frame in (by_boot, by_round)])


def _own_peak(
    rungs: pl.DataFrame, windows: pl.DataFrame, margin: float | None, planned_boots: PlannedBoots
) -> pl.DataFrame:
    peaks = ladder.own_peak(rungs, windows)
    rows = _judged(peaks, windows, margin, planned_boots)
    said = ladder.peak_remarks(peaks)
    names = peaks.select(*ladder.RUNGS[:-1], "ladder", "setting", residency="residency_found").unique()
    rows = rows.join(names, on=ladder.RUNGS, nulls_equal=True)
    remarks = [
        [said[row["ladder"], arm] for arm in (row["arm"], row["baseline"]) if (row["ladder"], arm) in said]
        for row in rows.iter_rows(named=True)
    ]
    told = rows.with_columns(
        reasons=pl.concat_list("reasons", pl.Series("told", remarks, dtype=pl.List(pl.String))),
    )
    return _shown(told, "own_peak", pl.col("setting"))


def _judged(
    arranged: pl.DataFrame, windows: pl.DataFrame, margin: float | None, planned_boots: PlannedBoots
) -> pl.DataFrame:
    """`judge` on rearranged trials, resident and alone ones apart; rows carry the residency as it was."""
    parts = [VERDICTS.to_frame()]
    for (residency,), cells_of in arranged.group_by("residency_found", maintain_order=True):
        rows = judge(cells_of, windows, margin=margin, planned_boots=planned_boots)
        parts.append(rows.with_columns(residency=pl.lit(residency, pl.String)))
    return pl.concat(parts)


def _equal_latency(
    rungs: pl.DataFrame,
    windows: pl.DataFrame,
    latencies: Mapping[str, Sequence[float]] | None,
    margin: float | None,
    planned_boots: PlannedBoots,
) -> pl.DataFrame:
    whole = rungs.with_columns(concurrency=pl.lit(None, pl.Int64))
    numbered = contrast.numbered(whole)
    pairs = contrast.pairs(numbered)
    if pairs.is_empty():
        return VIEW_VERDICTS.to_frame()
    levels, contrasts = latency_match.matched(numbered, windows, pairs, latencies)
    sides = contrast.sides(numbered, levels)
    steady = levels.select(
        "pair_id", drift=pl.lit(None, pl.Float64), course=pl.lit(None, pl.List(pl.String))
    )  # fmt: skip
    rows = assemble(
        numbered, windows, levels, sides, contrasts, steady, cells(numbered, margin, planned_boots),
        ["throughput"], latency_match.refusals(levels),
    )  # fmt: skip
    return _shown(rows.select("setting", *VERDICTS.names()).cast(VERDICTS), "equal_latency", pl.col("setting"))
