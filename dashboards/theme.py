"""How things look: colours that survive colour blindness and both page backgrounds, and words for numbers.

Traces take their colours from here, of middle luminance, so that a figure reads on white and on near-black alike; what
must differ (text, grid, the diverging scale's middle) comes from the template, which a page may swap at run time.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io

# Pages add LIGHT or DARK to figures that carry none; the library's own would be copied with each figure, 10 ms a time.
plotly.io.templates.default = None

SIMULATED = "SIMULATED — a prediction, not a measurement"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
NEUTRAL = "#8a929d"  # lines and marks that belong to no series, on both page backgrounds
MINUS, NBSP = "\u2212", "\u00a0"

# Blue for a gain, orange for a loss: apart for all common colour-vision deficiencies (Okabe and Ito, 2008).
GAIN_LIGHT = ["#8f3a00", "#d97a2e", "#f4cfa8", "#f1f2f4", "#b4d3ee", "#3f8bca", "#0b4682"]
GAIN_DARK = ["#ffb26b", "#c06f2c", "#6a4527", "#2b3038", "#284e72", "#3f83c2", "#8cc6ff"]

SHARING_COLOURS = {
    "single": ("#858c96", "#a67f52", "#5f7f78", "#a2779c"),
    "timesliced": ("#d9822b", "#b8622f", "#e0a458"),
    "mps": ("#2f7fc4", "#1f9e89", "#8a6fc9", "#c25d92"),
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")
MODEL_COLOURS = ("#4477aa", "#22a0bd", "#2c8f45", "#b39800", "#e0696f", "#aa3f86", "#7d7f86", "#8c5a3c")  # after P. Tol
# Dark enough for white words (4.5:1 at least), light enough for a near-black page.
BOUND_COLOURS = {
    "engine_core": "#ad5a16",
    "frontend": "#8a6d00",
    "gpu_compute": "#2469a8",
    "gpu_memory": "#157a69",
    "power": "#a8437a",
    "kv": "#6f54b0",
    "unknown": "#6b727c",
}
BOUND_WORDS = {
    "engine_core": "EngineCore CPU",
    "frontend": "frontend CPU",
    "gpu_compute": "GPU compute",
    "gpu_memory": "GPU memory traffic",
    "power": "power",
    "kv": "KV space",
    "unknown": "unknown",
}
VERDICT_MARKS = {"wins": "▲", "loses": "▼", "tie": "=", "undecided": "?"}
METRIC_WORDS = {
    "throughput": "throughput",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "tpot_p50": "TPOT p50",
    "tpot_p99": "TPOT p99",
    "e2e_p50": "latency p50",
    "e2e_p99": "latency p99",
}


def _template(text: str, muted: str, grid: str, surface: str, scale: list[str]) -> go.layout.Template:
    axis = {
        "gridcolor": grid,
        "zerolinecolor": grid,
        "linecolor": muted,
        "tickcolor": muted,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": text},
            "title": {"x": 0, "xref": "container", "xanchor": "left", "font": {"size": 15}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "coloraxis": {"colorscale": [[i / (len(scale) - 1), colour] for i, colour in enumerate(scale)]},
            "hoverlabel": {"bgcolor": surface, "bordercolor": muted, "font": {"family": FONT, "color": text}},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "shapedefaults": {"line": {"color": muted}},
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": muted, "activecolor": text},
        }
    )


LIGHT = _template("#1d232b", "#5d6672", "#e3e6ea", "#ffffff", GAIN_LIGHT)
DARK = _template("#e7eaee", "#9aa4b1", "#2f353d", "#1b2027", GAIN_DARK)


def figure(
    title: str,
    height: int,
    summary: str,
    simulated: bool,
    data: Sequence[Mapping[str, Any]] = (),
    layout: Mapping[str, Any] | None = None,
) -> go.Figure:
    """A figure in the house style, empty or of `data` and `layout`, which are quicker to give at once than to add.

    It carries no template: a page sets LIGHT or DARK. `summary` is its text alternative, kept in
    `layout.meta["summary"]`.
    """
    words = title
    if simulated:
        words += f"<br><span style='font-size:11px;color:#c2690c'><b>{SIMULATED}</b></span>"
        summary = f"{SIMULATED}. {summary}"
    head = {
        "height": height,
        "meta": {"summary": summary, "simulated": simulated},
        "title": {"text": words, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 18}},
    }
    return go.Figure({"data": list(data), "layout": {**head, **(layout or {})}})


def rule(x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """A dotted line across the whole figure at x or at y of the first axes, as a layout shape."""
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"} if y is None else {"x0": 0, "x1": 1, "y0": y, "y1": y}
    across = {} if y is None else {"xref": "paper"}
    return {"type": "line", "line": {"color": NEUTRAL, "width": 1.4, "dash": "dot"}, "layer": "below", **ends, **across}


def grid_axes(fig: go.Figure, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Named columns and rows at whole numbers, the first row on top, without lines: the axes of every grid of cells."""
    for update, names, limits in (
        (fig.update_xaxes, columns, [-0.5, len(columns) - 0.5]),
        (fig.update_yaxes, rows, [len(rows) - 0.5, -0.5]),
    ):
        update(
            tickvals=list(range(len(names))),
            ticktext=[html.escape(name) for name in names],
            range=limits,
            showgrid=False,
            zeroline=False,
            ticks="",
        )


def said(fig: go.Figure) -> str:
    """The figure's text alternative."""
    return str(fig.layout.meta["summary"])


def nothing(title: str, why: str, simulated: bool = False) -> go.Figure:
    """A figure that says in words why there is nothing to draw."""
    fig = figure(title, 180, f"{title}: nothing to draw. {why}", simulated)
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    fig.add_annotation(text=html.escape(why), x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return fig


def percent(ratio: float, digits: int = 0) -> str:
    """A ratio as a change: 1.42 -> `+42 %`. Below -99.5 % or above +1000 % the multiple is printed instead."""
    if not math.isfinite(ratio):
        return "n/a"
    if ratio >= 11 or ratio < 0.005:
        return f"×{ratio:.3g}"
    change = round((ratio - 1) * 100, digits)
    sign = MINUS if change < 0 else "+" if change > 0 else "±"
    return f"{sign}{abs(change):.{digits}f}{NBSP}%"


def interval(low: float | None, high: float | None, digits: int = 0) -> str:
    """The interval of a ratio as changes in percent: `+38 … +46`; an open end prints as `?`."""
    ends = ["?" if end is None else percent(end, digits).removesuffix(f"{NBSP}%") for end in (low, high)]
    return " … ".join(ends)


def tokens(count: int) -> str:
    """A context length as people say it: 128, 1k, 16k; others in full."""
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else f"{count:,}"


def arm_colours(sharing: dict[str, str]) -> dict[str, str]:
    """A colour an arm, from the family of its sharing mode; `sharing` maps arm name to mode, in drawing order."""
    used: dict[str, int] = {}
    colours = {}
    for arm, mode in sharing.items():
        family = SHARING_COLOURS[mode]
        colours[arm] = family[used.get(mode, 0) % len(family)]
        used[mode] = used.get(mode, 0) + 1
    return colours
