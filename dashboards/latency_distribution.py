"""How token and request latencies are distributed, from the requests themselves: cumulative shares by arm."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme

PANELS = {"ttft_s": "TTFT (s)", "tpot_s": "TPOT (s)", "e2e_s": "request latency (s)"}
GAP = 0.03
MOST_TICKS = 3
# Every half percent up to 99, then finer: tails are what people ask about.
SHARES = [*(i / 200 for i in range(1, 199)), 0.9925, 0.995, 0.9975, 0.999]


def latencies(requests: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    """(arm, ttft_s, tpot_s, e2e_s) of whole requests of full length in certified windows.

    A client's first request has a random residual length, which says nothing of latency. TPOT is over the tokens after
    the first; null where there is none. requests: of `records`; measured: `cells.measured` rows of the same cell.
    """
    keys = measured.filter("certified").select(
        "trial_id", "attempt_id", "window_index", "arm", asked=pl.col("output_tokens")
    )
    whole = requests.filter(pl.col("status") == "ok", pl.col("first_token_ns").is_not_null())
    after = pl.col("output_tokens") - 1
    return (
        whole.join(keys, on=["trial_id", "attempt_id", "window_index"])
        .filter(pl.col("output_tokens_asked") >= pl.col("asked"))
        .select(
            "arm",
            ttft_s=(pl.col("first_token_ns") - pl.col("sent_ns")) / 1e9,
            tpot_s=pl.when(after > 0).then((pl.col("last_token_ns") - pl.col("first_token_ns")) / 1e9 / after),
            e2e_s=(pl.col("last_token_ns") - pl.col("sent_ns")) / 1e9,
        )
    )


def quantiles(seen: pl.DataFrame) -> pl.DataFrame:
    """(arm, requests, then p50, p90, p99 of each latency in s) of `latencies`."""
    return (
        seen.group_by("arm")
        .agg(
            pl.len().alias("requests"),
            *(
                pl.col(name).quantile(share, "linear").alias(f"{name.removesuffix('_s')}_p{share * 100:.0f}_s")
                for name in PANELS
                for share in (0.5, 0.9, 0.99)
            ),
        )
        .sort("arm")
    )


def latency_distribution(requests: pl.DataFrame, measured: pl.DataFrame) -> go.Figure:
    """Share of requests at or below a latency, log x axis: a panel a latency, a line an arm; dotted at p50 and p99."""
    title = "Latencies of tokens and requests"
    if measured.is_empty():
        return theme.nothing(title, "No window of this cell was measured.")
    seen = latencies(requests, measured)
    simulated = cells.one_backend(measured)
    if seen.is_empty():
        return theme.nothing(title, "No whole request of a certified window was kept in the store.", simulated)
    there = [name for name in PANELS if seen[name].is_not_null().any()]
    arms = {arm: mode for arm, mode in cells.arms(measured).items() if arm in set(seen["arm"])}
    colours = theme.arm_colours(arms)
    data = []
    layout: dict[str, Any] = {"margin": {"t": 116}, "legend": {"y": 1.12}, "annotations": [], "shapes": []}
    wide = (1 - GAP * (len(there) - 1)) / len(there)
    for column, name in enumerate(there):
        mark = "" if column == 0 else str(column + 1)
        left = column * (wide + GAP)
        layout |= {
            f"xaxis{mark}": {
                "type": "log", "tickvals": _ticks(seen[name]), "tickformat": "~g", "tickangle": 0, "anchor": f"y{mark}",
                "domain": [left, left + wide],
            },
            f"yaxis{mark}": {
                "range": [0, 101], "ticksuffix": " %", "anchor": f"x{mark}", "showticklabels": column == 0
            } | ({"matches": "y"} if column else {}),
        }  # fmt: skip
        layout["annotations"].append(
            {"text": PANELS[name], "x": left + wide / 2, "y": 1, "xref": "paper", "yref": "paper", "showarrow": False,
             "yanchor": "bottom"}
        )  # fmt: skip
        for arm in arms:
            values = seen.filter(pl.col("arm") == arm)[name].drop_nulls().to_numpy()
            points = np.quantile(values, SHARES) if len(values) else np.empty(0)
            data.append(
                {
                    "type": "scatter",
                    "x": [float(f"{point:.5g}") for point in points],
                    "y": [100 * share for share in SHARES[: len(points)]],
                    "mode": "lines",
                    "line": {"color": colours[arm], "width": 2.2},
                    "name": html.escape(arm),
                    "legendgroup": arm,
                    "showlegend": column == 0,
                    "hovertemplate": f"{html.escape(arm)}: %{{y:.3~g}} % within %{{x:.3~g}} s<extra></extra>",
                    "xaxis": f"x{mark}",
                    "yaxis": f"y{mark}",
                }
            )
    layout["shapes"] = [theme.rule(y=share) for share in (50, 99)]
    return theme.figure(title, 380, _summary(seen, there), simulated, data, layout)


def _ticks(values: pl.Series) -> list[float]:
    """At most three round numbers within nearly all of `values`: more would not stand side by side."""
    known = values.drop_nulls()
    low, high = float(known.quantile(0.01) or 1e-3), float(known.quantile(0.999) or 1.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{step * 10.0**decade:.3g}") for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= MOST_TICKS:
            break
    return inside[:: 1 + len(inside) // (MOST_TICKS + 1)]


def _summary(seen: pl.DataFrame, there: list[str]) -> str:
    parts = []
    for row in quantiles(seen).iter_rows(named=True):
        said = ", ".join(
            f"{PANELS[name].removesuffix(' (s)')} p50 {row[name.replace('_s', '_p50_s')]:.3g} s"
            f" and p99 {row[name.replace('_s', '_p99_s')]:.3g} s"
            for name in there
            if row[name.replace("_s", "_p50_s")] is not None
        )
        parts.append(f"{row['arm']}, {row['requests']:,} requests: {said}")
    return f"{'; '.join(parts)}."
