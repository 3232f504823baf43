"""What GPU and engines read while one repeat of a cell was measured, arms side by side on the clock of the host."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme

ROW_PX, GAP = 92, 0.022
LONGEST = 11  # letters of a row's title in one line
# metric: words, factor, unit, whether the axis begins at zero
READINGS = {
    "output_tokens_per_s": ("output", 1.0, "tokens/s", True),
    "gpu_active_share": ("GPU active", 100.0, "%", True),
    "sm_active_share": ("SM active", 100.0, "%", True),
    "tensor_active_share": ("tensor cores", 100.0, "%", True),
    "dram_active_share": ("DRAM active", 100.0, "%", True),
    "sm_clock_mhz": ("SM clock", 1.0, "MHz", False),
    "power_w": ("power", 1.0, "W", True),
    "temperature_c": ("temperature", 1.0, "°C", False),
    "speed_mops": ("EngineCore's core", 1.0, "Mops", True),
}


def readings(samples: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    """(arm, window_index, order_index, seconds, metric, value) in order; seconds since the first window's start.

    samples: of `records`, one repeat of one cell; measured: `cells.measured` rows of it. Token counts of all engines
    become one rate over the interval that they cover; the slowest engine's core stands for all.
    """
    keys = measured.select("trial_id", "attempt_id", "window_index", "order_index", "arm", "start_ns")
    first_ns = measured["start_ns"].min() or 0
    joined = samples.join(keys, on=["trial_id", "attempt_id", "window_index"])
    window = ["arm", "order_index", "window_index"]
    rates = (
        joined.filter(pl.col("metric") == "output_tokens")
        .group_by(*window, "start_ns", "time_ns")
        .agg(pl.col("value").sum())
        .sort(*window, "time_ns")
        .with_columns(since=pl.col("time_ns").shift(1).over(window).fill_null(pl.col("start_ns")))
        .with_columns(
            value=pl.col("value") / (pl.col("time_ns") - pl.col("since")) * 1e9, metric=pl.lit("output_tokens_per_s")
        )
    )
    shown = [name for name in READINGS if name != "output_tokens_per_s"]
    others = (
        joined.filter(pl.col("metric").is_in(shown))
        .group_by(*window, "metric", "time_ns")
        .agg(pl.col("value").min())
        .sort(*window, "time_ns")
    )
    columns = [*window, pl.col("time_ns"), "metric", "value"]
    return (
        pl.concat([rates.select(columns), others.select(columns)])
        .with_columns(seconds=(pl.col("time_ns") - first_ns) / 1e9)
        .select(*window, "seconds", "metric", "value")
        .sort("metric", "order_index", "seconds")
    )


def telemetry(samples: pl.DataFrame, measured: pl.DataFrame) -> go.Figure:
    """A row a reading over the seconds of one repeat; the colour says whose window it was."""
    title = "Counters, clocks and power over one repeat"
    if measured.is_empty():
        return theme.nothing(title, "No window of this repeat was measured.")
    simulated = cells.one_backend(measured)
    seen = readings(samples, measured)
    there = [name for name in READINGS if name in set(seen["metric"])]
    if not there:
        return theme.nothing(title, "The store keeps no reading of this repeat.", simulated)
    arms = cells.arms(measured)
    colours = theme.arm_colours(arms)
    data = []
    layout: dict[str, Any] = {
        "margin": {"t": 96, "l": 84}, "legend": {"y": 1 + 12 / (ROW_PX * len(there))}, "hovermode": "x",
        "xaxis": {"title": {"text": "seconds since the first window"}, "anchor": _axis("y", len(there) - 1)},
    }  # fmt: skip
    parts = seen.partition_by("metric", "arm", as_dict=True)
    for row, name in enumerate(there):
        words, factor, unit, from_zero = READINGS[name]
        top = 1 - row / len(there)
        lines = words.rsplit(" ", 1) if len(words) > LONGEST else [words]
        layout[_axis("y", row).replace("y", "yaxis")] = {
            "domain": [top - 1 / len(there) + GAP, top],
            "title": {"text": "<br>".join([*lines, unit]), "font": {"size": 11}},
            "nticks": 4,
            "rangemode": "tozero" if from_zero else "normal",
            "tickformat": "~s",
            "anchor": "x",
        }
        for index, arm in enumerate(arms):
            mine = parts.get((name, arm))
            x, y = _broken(mine, factor) if mine is not None else ([], [])
            data.append(
                {
                    "type": "scatter",
                    "x": x,
                    "y": y,
                    "mode": "lines+markers",
                    "line": {"color": colours[arm], "width": 1.8},
                    "marker": {"size": 4, "symbol": theme.SYMBOLS[index % len(theme.SYMBOLS)]},
                    "connectgaps": False,
                    "name": html.escape(arm),
                    "legendgroup": arm,
                    "showlegend": row == 0,
                    "hovertemplate": f"{html.escape(arm)}, {words}: %{{y:.4~g}} {unit}<extra></extra>",
                    "yaxis": _axis("y", row),
                }
            )
    return theme.figure(title, 120 + ROW_PX * len(there), _summary(seen, there), simulated, data, layout)


def _broken(rows: pl.DataFrame, factor: float) -> tuple[list[float | None], list[float | None]]:
    """The points of one line, broken after each window."""
    last = pl.col("order_index") != pl.col("order_index").shift(-1)
    marked = rows.with_columns(y=(pl.col("value") * factor).round_sig_figs(5), last=last.fill_null(False))
    x: list[float | None] = []
    y: list[float | None] = []
    for seconds, value, ends in marked.select(pl.col("seconds").round(2), "y", "last").iter_rows():
        x.append(seconds)
        y.append(value)
        if ends:
            x.append(None)
            y.append(None)
    return x, y


def _axis(letter: str, index: int) -> str:
    return letter if index == 0 else f"{letter}{index + 1}"


def _summary(seen: pl.DataFrame, there: list[str]) -> str:
    parts = []
    for name in there:
        words, factor, unit, _ = READINGS[name]
        medians = seen.filter(pl.col("metric") == name).group_by("arm").agg(pl.col("value").median()).sort("arm")
        said = ", ".join(f"{arm} {value * factor:,.4g}" for arm, value in medians.iter_rows())
        parts.append(f"{words} ({unit}): {said}")
    return f"Medians of the readings. {'; '.join(parts)}."
