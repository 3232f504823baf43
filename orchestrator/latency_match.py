"""Throughput at one latency: each boot's ladder is read as a curve, and read between its points only.

Along the ladder an arm gives (latency, throughput) at each number of clients. Between two neighbouring points log
throughput is taken as linear in log latency; outside them nothing is said. Where the curve passes a level more than
once, the crossing at the most clients counts: the most load that still meets the level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from orchestrator.contrast import LATENCIES
from orchestrator.ladder import trial_means
from orchestrator.records import Columns
from orchestrator.trial import phase_of

STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)  # a decade of round latencies
DEFAULT = ("ttft_p50", "tpot_p50", "e2e_p50")
MOST_LEVELS = 3  # that are chosen for a latency, where none was asked for
CONTRASTS: Columns = {
    "pair_id": pl.UInt32, "metric": pl.String, "boot": pl.String, "contrast": pl.Float64, "base": pl.Float64,
    "windows": pl.Int64, "noise": pl.Float64, "noise_df": pl.Int64, "candidate_boots": pl.List(pl.String),
}  # fmt: skip

Curve = list[tuple[float, float]]  # (log latency, log throughput) by rising number of clients


def at(curve: Curve, level: float) -> float | None:
    """Log throughput where `curve` last passes the log latency `level`; None where it never does."""
    for (x0, y0), (x1, y1) in zip(curve[-2::-1], curve[:0:-1], strict=True):
        if min(x0, x1) <= level <= max(x0, x1):
            return y1 if x1 == x0 else y0 + (y1 - y0) * (level - x0) / (x1 - x0)
    return None


def matched(
    numbered: pl.DataFrame,
    windows: pl.DataFrame,
    pairs: pl.DataFrame,
    latencies: Mapping[str, Sequence[float]] | None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pairs by level (with `setting`, and `outside`: boots in which an arm's ladder does not pass the level), and the
    contrasts of their boots in the shape of `contrast.boot_contrasts`.

    numbered: trials whose cells are whole ladders, with `rung` as their number of clients.
    """
    means = trial_means(numbered.drop("trial", "cell_id"), windows)
    known = numbered.join(means.drop("trial"), on=["trial_id", "attempt_id"]).sort("rung")
    curves: dict[tuple[int, str, int], pl.DataFrame] = {
        (cell, arm, repeat): rows
        for (cell, arm, repeat), rows in known.group_by("cell_id", "arm", "repeat", maintain_order=True)
    }
    made: list[dict[str, object]] = []
    contrasts: list[tuple[object, ...]] = []
    for pair in pairs.iter_rows(named=True):
        boots = sorted({key[2] for key in curves if key[:2] == (pair["cell_id"], pair["arm"])}
                       & {key[2] for key in curves if key[:2] == (pair["cell_id"], pair["baseline"])})  # fmt: skip
        both = [tuple(curves[pair["cell_id"], pair[side], r] for side in ("arm", "baseline")) for r in boots]
        kind = numbered.filter(pl.col("cell_id") == pair["cell_id"])["kind"][0]
        for metric in latencies or DEFAULT:
            if phase_of(kind) == "prefill" and metric.startswith("tpot"):
                continue
            read = [tuple(_curve(rows, metric) for rows in sides) for sides in both]
            asked = list(latencies[metric]) if latencies else common_levels(read)
            levels: list[float | None] = [*asked] or [None]
            for level in levels:
                number = len(made)
                values = [tuple(at(c, math.log(level)) for c in sides) for sides in read] if level else []
                found = [i for i, value in enumerate(values) if None not in value]
                made.append({**pair, "pair_id": number, "setting": _setting(metric, level),
                             "outside": len(boots) - len(found), "of": len(boots)})  # fmt: skip
                contrasts += [_contrast(number, both[i], values[i]) for i in found]
    schema: Columns = {
        **dict(pairs.schema),
        "pair_id": pl.UInt32,
        "setting": pl.String,
        "outside": pl.Int64,
        "of": pl.Int64,
    }
    frame = pl.DataFrame(contrasts, schema=pl.Schema(CONTRASTS), orient="row")
    together = frame.group_by("pair_id", "metric", "boot").agg(
        pl.col("contrast", "base").mean(), pl.col("windows", "noise_df").sum(), pl.col("noise").mean(),
        pl.col("candidate_boots").list.explode(empty_as_null=True, keep_nulls=True).unique(),
    )  # fmt: skip
    return pl.DataFrame(made, schema=pl.Schema(schema), orient="row"), together


def common_levels(curves: Sequence[tuple[Curve, ...]]) -> list[float]:
    """Round latencies in seconds that every curve passes; at most MOST_LEVELS, evenly picked. It looks at latencies
    alone, never at throughput, so choosing them here does not favour an arm."""
    flat = [curve for sides in curves for curve in sides]
    if not flat or any(len(curve) < 2 for curve in flat):
        return []
    low = max(min(x for x, _ in curve) for curve in flat)
    high = min(max(x for x, _ in curve) for curve in flat)
    if not low <= high:
        return []
    decades = range(math.floor(low / math.log(10)), math.floor(high / math.log(10)) + 1)
    inside = [s * 10.0**d for d in decades for s in STEPS if low <= math.log(s * 10.0**d) <= high]
    picked = np.unique(np.linspace(0, len(inside) - 1, min(MOST_LEVELS, len(inside))).round().astype(int))
    return [round(inside[i], 12) for i in picked]


def refusals(levels: pl.DataFrame) -> pl.DataFrame:
    """Grounds against a verdict, in the shape of `grounds.GROUNDS`: leaving out the boots that do not pass a level
    would select boots by how they went."""
    none = ~pl.col("setting").str.contains("<=")
    outside = pl.format(
        "the latency is outside an arm's ladder in {} of {} boots: nothing is extrapolated", "outside", "of"
    )
    text = (
        pl.when(none).then(pl.lit("the arms' ladders have no round latency in common in every boot"))
        .when(pl.col("outside") > 0).then(outside)
    )  # fmt: skip
    return levels.select("pair_id", text=text, refuses=pl.lit(True)).drop_nulls("text")


def _curve(rows: pl.DataFrame, metric: str) -> Curve:
    assert metric in LATENCIES
    return [(x, y) for x, y in rows.select(metric, "throughput").drop_nulls().iter_rows()]


def _setting(metric: str, level: float | None) -> str:
    return f"{metric}: no level in common" if level is None else f"{metric} <= {level:g} s"


def _contrast(number: int, sides: tuple[pl.DataFrame, ...], values: tuple[float | None, ...]) -> tuple[object, ...]:
    candidate, baseline = sides
    mine, base = values
    assert mine is not None and base is not None
    windows = min(int(rows["n"].sum()) for rows in sides)
    boots = candidate["boot_id"].unique().to_list()
    return number, "throughput", baseline["boot_id"][0], mine - base, base, windows, 0.0, windows - 1, boots
