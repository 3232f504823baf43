"""Two sweeps side by side, cell by cell: what both say of the same cell, and where they part."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme

MATCH = ["model", "kind", "prompt_tokens", "output_tokens", "concurrency", "arm", "baseline", "metric"]
SAID = ["ratio", "ci_low", "ci_high", "verdict", "boots"]


def agreement(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """Throughput verdicts of cells that both have: MATCH, SAID of each with `_a` and `_b`, `b_over_a`, and `word`.

    word: `apart` where both intervals are known and do not overlap, `overlap` where they do, else `open`.
    """
    sides = [
        frame.filter(pl.col("metric") == "throughput", pl.col("ratio").is_finite())
        .unique(MATCH, keep="first", maintain_order=True)
        .select(*MATCH, *(pl.col(name).alias(name + mark) for name in SAID))
        for frame, mark in ((one, "_a"), (other, "_b"))
    ]
    bounds = [f"ci_{end}{mark}" for end in ("low", "high") for mark in ("_a", "_b")]
    known = pl.all_horizontal(pl.col(name).is_not_null() for name in bounds)
    apart = (pl.col("ci_low_a") > pl.col("ci_high_b")) | (pl.col("ci_low_b") > pl.col("ci_high_a"))
    return (
        sides[0]
        .join(sides[1], on=MATCH)
        .with_columns(
            b_over_a=pl.col("ratio_b") / pl.col("ratio_a"),
            word=pl.when(~known).then(pl.lit("open")).when(apart).then(pl.lit("apart")).otherwise(pl.lit("overlap")),
        )
        .sort(MATCH)
    )


def agreement_figure(rows: pl.DataFrame, names: tuple[str, str], simulated: tuple[bool, bool]) -> go.Figure:
    """Ratio of the one over ratio of the other, both with intervals; on the diagonal they agree.

    rows: of `agreement`; names: of both sides, and whether each is a prediction, which its axis then says.
    """
    title = "The same cells, twice"
    if rows.is_empty():
        return theme.nothing(title, "The two have no cell and pair of arms in common.", any(simulated))
    words = [
        f"{name} ({theme.SIMULATED})" if predicted else f"{name} (measured)"
        for name, predicted in zip(names, simulated, strict=True)
    ]
    fig = theme.figure(title, 560, _summary(rows, words), all(simulated))
    ratios = [*rows["ratio_a"], *rows["ratio_b"]]
    low, high = min(*ratios, 0.97) / 1.06, max(*ratios, 1.03) * 1.06
    fig.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": "#8a929d", "width": 1.4, "dash": "dot"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for index, ((arm, baseline), part) in enumerate(rows.group_by("arm", "baseline", maintain_order=True)):
        colour = theme.MODEL_COLOURS[index % len(theme.MODEL_COLOURS)]
        symbol = theme.SYMBOLS[index % len(theme.SYMBOLS)]
        fig.add_scatter(
            x=part["ratio_a"].to_list(),
            y=part["ratio_b"].to_list(),
            error_x=_bars(part, "_a"),
            error_y=_bars(part, "_b"),
            mode="markers",
            marker={
                "size": 10,
                "color": colour,
                "symbol": [symbol if word == "apart" else f"{symbol}-open" for word in part["word"]],
                "line": {"width": 2},
            },
            name=html.escape(f"{arm} / {baseline}"),
            hovertext=[_hover(row, names) for row in part.iter_rows(named=True)],
            hoverinfo="text",
        )
    axis = {"type": "log", "tickprefix": "×", "tickformat": ".2~f", "range": [math.log10(low), math.log10(high)]}
    fig.update_xaxes(title_text=html.escape(words[0]), nticks=8, **axis)
    fig.update_yaxes(title_text=html.escape(words[1]), nticks=8, **axis)
    fig.update_layout(margin={"t": 92}, legend={"y": 1.0})
    return fig


def _bars(part: pl.DataFrame, mark: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (part[f"ci_high{mark}"] - part[f"ratio{mark}"]).fill_null(0).to_list(),
        "arrayminus": (part[f"ratio{mark}"] - part[f"ci_low{mark}"]).fill_null(0).to_list(),
        "thickness": 1,
        "width": 0,
    }


def _hover(row: Mapping[str, Any], names: tuple[str, str]) -> str:
    lines = [f"<b>{html.escape(cells.cell_label(row))}</b>, {row['kind']}, {row['concurrency']} in flight"]
    for name, mark in zip(names, ("_a", "_b"), strict=True):
        bounds = theme.interval(row[f"ci_low{mark}"], row[f"ci_high{mark}"], 1)
        lines.append(
            f"{html.escape(name)}: {theme.percent(row[f'ratio{mark}'], 1)} [{bounds}], {row[f'verdict{mark}']}"
        )
    return "<br>".join(lines)


def _summary(rows: pl.DataFrame, words: list[str]) -> str:
    counts = dict(rows["word"].value_counts().iter_rows())
    middle = pl.Series(rows["b_over_a"]).log().median()
    return (
        f"{len(rows)} comparisons that both have: x is {words[0]}, y is {words[1]}. Intervals overlap in"
        f" {counts.get('overlap', 0)}, lie apart in {counts.get('apart', 0)}, are not known in {counts.get('open', 0)};"
        f" the second over the first is {math.exp(float(str(middle))):.3f} in the median."
    )
