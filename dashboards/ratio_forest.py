"""Ratios with their intervals as a forest: a row a comparison, left of 1 less, right of 1 more."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme
from dashboards.gain_curves import error_bars


def ratio_forest(rows: pl.DataFrame, title: str, axis: str, offset: float = 0.26) -> go.Figure:
    """One mark a row with its 95 % interval; hollow marks are undecided.

    rows: verdict rows plus `label` (the place on the y axis, in the order of first appearance) and `series` (colour and
    shape). axis: what the ratio is of. offset: how far apart the series of one label lie.
    """
    known = rows.filter(pl.col("ratio").is_finite())
    if known.is_empty():
        return theme.nothing(title, "Nothing was compared yet.", bool(len(rows)) and cells.one_backend(rows))
    labels = list(dict.fromkeys(known["label"]))
    series = list(dict.fromkeys(known["series"]))
    place = {label: index for index, label in enumerate(labels)}
    margin = max(known["margin"])
    band = {
        "type": "rect", "x0": 1 - margin, "x1": 1 + margin, "y0": 0, "y1": 1, "yref": "paper", "layer": "below",
        "fillcolor": theme.NEUTRAL, "opacity": 0.16, "line": {"width": 0},
    }  # fmt: skip
    data = []
    for index, name in enumerate(series):
        dots = known.filter(pl.col("series") == name)
        shift = (index - (len(series) - 1) / 2) * offset
        symbol = theme.SYMBOLS[index % len(theme.SYMBOLS)]
        data.append(
            {
                "type": "scatter",
                "x": dots["ratio"].to_list(),
                "y": [place[label] + shift for label in dots["label"]],
                "error_x": error_bars(dots, 1.6, 3),
                "mode": "markers",
                "marker": {
                    "color": theme.MODEL_COLOURS[index % len(theme.MODEL_COLOURS)],
                    "size": 10,
                    "symbol": [symbol + ("-open" if verdict == "undecided" else "") for verdict in dots["verdict"]],
                    "line": {"width": 2},
                },
                "name": html.escape(name),
                "hovertext": [_hover(row) for row in dots.iter_rows(named=True)],
                "hoverinfo": "text",
            }
        )
    layout = {
        "xaxis": {
            "type": "log", "title": {"text": axis}, "tickformat": ".2~f", "tickprefix": "×", "nticks": 9,
            "range": _log_range(known),
        },
        "yaxis": {
            "tickvals": list(range(len(labels))), "ticktext": [html.escape(label) for label in labels],
            "range": [len(labels) - 0.4, -0.6], "zeroline": False,
        },
        "shapes": [band, theme.rule(x=1)],
        "margin": {"t": 96},
        "legend": {"y": 1.0},
        "showlegend": True,
    }  # fmt: skip
    height = 150 + (20 + 14 * len(series)) * len(labels)
    return theme.figure(title, height, _summary(known), cells.one_backend(known), data, layout)


def _log_range(known: pl.DataFrame) -> list[float]:
    """An interval of two boots can span decades and would squeeze all others; the hover text has its ends."""
    ratios, ends = known["ratio"].to_list(), []
    for name in ("ci_low", "ci_high", "ratio"):
        ends += [end for end in known[name].drop_nulls() if end > 0]
    reach = max(1.35, 1.6 * max(*ratios, 1 / min(ratios)))
    low, high = max(min(ends) / 1.05, 1 / reach), min(max(ends) * 1.05, reach)
    return [math.log10(min(low, 0.95)), math.log10(max(high, 1.05))]


def _hover(row: Mapping[str, Any]) -> str:
    return (
        f"<b>{html.escape(row['label'])}</b> · {html.escape(row['series'])}<br>{row['verdict']}:"
        f" {theme.percent(row['ratio'], 1)} [{theme.interval(row['ci_low'], row['ci_high'], 1)}], {row['boots']} boots"
    )


def _summary(known: pl.DataFrame) -> str:
    parts = [
        f"{row['label']}, {row['series']}: {theme.percent(row['ratio'], 1)}"
        f" [{theme.interval(row['ci_low'], row['ci_high'], 1)}], {row['verdict']}"
        for row in known.head(40).iter_rows(named=True)
    ]
    more = f"; {len(known) - 40} more" if len(known) > 40 else ""
    return "; ".join(parts) + more + "."
