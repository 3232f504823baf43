"""The windows of one cell in the order they were measured: what drifted, what scattered, what was not believed."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme
from orchestrator.trial import phase_of


def window_trace(measured: pl.DataFrame) -> go.Figure:
    """Raw rate of every window of one cell in order, repeats side by side; hollow crosses are not certified.

    measured: `cells.measured` rows of one cell, all arms and repeats.
    """
    if measured.is_empty():
        return theme.nothing("Windows in order", "No window of this cell was measured.")
    rows = _in_order(measured)
    arms = cells.arms(rows)
    colours = theme.arm_colours(arms)
    bad = int((~rows["certified"]).sum())
    unit = "prompt" if phase_of(rows["kind"][0]) == "prefill" else "output"
    data = []
    for index, arm in enumerate(arms):
        for certified in (True, False):
            part = rows.filter(pl.col("arm") == arm, pl.col("certified") == certified)
            if part.is_empty():
                continue
            marker = {
                "color": colours[arm],
                "size": 9 if certified else 11,
                "symbol": theme.SYMBOLS[index % len(theme.SYMBOLS)] if certified else "x-thin",
                "line": {"width": 0 if certified else 2.4, "color": colours[arm]},
            }
            data.append(
                {
                    "type": "scatter",
                    "x": part["place"].to_list(),
                    "y": part["rate"].round(1).to_list(),
                    "mode": "markers",
                    "marker": marker,
                    "name": html.escape(arm) + ("" if certified else ", not certified"),
                    "legendgroup": arm,
                    "hovertext": [_hover(row) for row in part.iter_rows(named=True)],
                    "hoverinfo": "text",
                }
            )
    ticks, labels, shapes = [], [], []
    for (repeat,), part in rows.group_by("repeat", maintain_order=True):
        first, last = min(part["place"]), max(part["place"])
        ticks.append((first + last) / 2)
        labels.append(f"repeat {repeat}")
        if first > 0:
            shapes.append(theme.rule(x=first - 1))
    layout = {
        "xaxis": {
            "title": {"text": "windows in the order they were measured"}, "tickvals": ticks, "ticktext": labels,
            "showgrid": False, "zeroline": False, "ticks": "",
        },
        "yaxis": {"title": {"text": f"{unit} tokens/s"}, "tickformat": "~s", "rangemode": "normal"},
        "margin": {"t": 88},
        "legend": {"y": 1.0},
        "shapes": shapes,
    }  # fmt: skip
    return theme.figure(
        f"{html.escape(cells.cell_label(rows.row(0, named=True)))}: windows in order",
        430,
        f"{len(rows)} windows over {rows['repeat'].n_unique()} repeats in the order measured, {bad} not certified. "
        + _medians(rows, unit),
        cells.one_backend(rows),
        data,
        layout,
    )


def _medians(rows: pl.DataFrame, unit: str) -> str:
    medians = rows.group_by("arm").agg(pl.col("rate").median()).sort("arm")
    return "; ".join(f"{arm}: median {rate:,.0f} {unit} tokens/s" for arm, rate in medians.iter_rows()) + "."


def _hover(row: Mapping[str, Any]) -> str:
    where = f"{html.escape(row['arm'])}, repeat {row['repeat']}, round {row['round_index']}"
    why = [html.escape(failure) for failure in row["certificate_failures"] or ()]
    return "<br>".join([f"{where}: {row['rate']:,.0f} tokens/s", *why])


def _in_order(measured: pl.DataFrame) -> pl.DataFrame:
    """Adds `place`, the running number over repeats with a gap between them; a null certificate is a failed one."""
    return (
        measured.with_columns(pl.col("certified").fill_null(False))
        .sort("repeat", "order_index")
        .with_row_index("number")
        .with_columns(place=pl.col("number").cast(pl.Int64) + 2 * (pl.col("repeat").rank("dense").cast(pl.Int64) - 1))
    )
