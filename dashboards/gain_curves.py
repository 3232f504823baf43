"""The gain as a function of context: one line a model with its intervals, and the slope of a log-linear fit."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme
from orchestrator.student import quantile

SLOPES = pl.Schema(
    {"model": pl.String, "contexts": pl.Int64, "slope": pl.Float64, "low": pl.Float64, "high": pl.Float64}
)


def gain_over_context(verdicts: pl.DataFrame, parameters: Mapping[str, int] | None = None) -> go.Figure:
    """Ratio of throughput over context length, log x axis; the band around 1 is the tie margin.

    verdicts: rows of one scene and one (arm, baseline) pair. parameters: see `cells.model_order`.
    """
    rows = known(verdicts)
    if rows.is_empty():
        return theme.nothing("Gain over context", "No pair of arms has a ratio yet.")
    arm, baseline = rows["arm"][0], rows["baseline"][0]
    models = cells.model_order(rows["model"], parameters)
    labels = cells.model_labels(models)
    fits = {row["model"]: row for row in slopes(rows).iter_rows(named=True)}
    fig = theme.figure(
        f"{html.escape(arm)} against {html.escape(baseline)}: gain over context",
        470,
        summary(rows, parameters),
        cells.one_backend(rows),
    )
    margin = max(rows["margin"])
    _bands(fig, margin)
    for index, model in enumerate(models):
        line = rows.filter(pl.col("model") == model).sort("prompt_tokens")
        colour = theme.MODEL_COLOURS[index % len(theme.MODEL_COLOURS)]
        name = html.escape(labels[model])
        fit = fits.get(model)
        fig.add_scatter(
            x=line["prompt_tokens"].to_list(),
            y=line["ratio"].to_list(),
            error_y=error_bars(line),
            mode="lines+markers",
            name=f"{name} <span style='font-size:11px'>{_slope_words(fit)}</span>" if fit else name,
            line={"color": colour, "width": 2.2},
            marker={
                "color": colour,
                "size": 9,
                "symbol": [
                    theme.SYMBOLS[index % len(theme.SYMBOLS)] + ("-open" if v == "undecided" else "")
                    for v in line["verdict"]
                ],
            },
            hovertext=[
                f"{name}, {theme.tokens(r['prompt_tokens'])}: {theme.percent(r['ratio'], 1)}"
                f" [{theme.interval(r['ci_low'], r['ci_high'], 1)}], {r['verdict']}"
                for r in line.iter_rows(named=True)
            ],
            hoverinfo="text",
        )
    context_axis(fig, rows)
    fig.update_yaxes(
        title_text=f"throughput ratio (grey: tie, ±{margin * 100:.3g} %)", tickformat=".2~f", tickprefix="×"
    )
    fig.update_layout(legend={"orientation": "h", "y": -0.2, "yanchor": "top"}, margin={"t": 64, "b": 120})
    return fig


def slopes(verdicts: pl.DataFrame) -> pl.DataFrame:
    """Ordinary least squares of ratio on log2(context) a model: change of the ratio a doubling, with its 95 % interval.

    Student's interval with n - 2 degrees of freedom over the scatter of the points about the line, so what is not
    log-linear widens it. Models with fewer than three contexts have no slope.
    """
    found = []
    for (model,), rows in known(verdicts).sort("model").group_by("model", maintain_order=True):
        x, y = np.log2(rows["prompt_tokens"].to_numpy()), rows["ratio"].to_numpy()
        if len(np.unique(x)) < 3:
            continue
        centred = x - x.mean()
        slope = float(centred @ y / (centred @ centred))
        rest = y - y.mean() - slope * centred
        error = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(centred @ centred))
        half = quantile(0.975, len(x) - 2) * error
        found.append((model, len(x), slope, slope - half, slope + half))
    return pl.DataFrame(found, schema=SLOPES, orient="row")


def known(verdicts: pl.DataFrame) -> pl.DataFrame:
    """The throughput rows that have a ratio."""
    return verdicts.filter(pl.col("metric") == "throughput", pl.col("ratio").is_finite())


def error_bars(line: pl.DataFrame, thickness: float = 1.4, width: int = 4) -> dict[str, object]:
    """Each point's interval as Plotly's `error_x` or `error_y`; none where it is not known."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (line["ci_high"] - line["ratio"]).fill_null(0).to_list(),
        "arrayminus": (line["ratio"] - line["ci_low"]).fill_null(0).to_list(),
        "thickness": thickness,
        "width": width,
    }


def context_axis(fig: go.Figure, rows: pl.DataFrame) -> None:
    """A log x axis with a tick at every context that was measured."""
    contexts = sorted(set(rows["prompt_tokens"]))
    fig.update_xaxes(
        type="log",
        title_text="context (prompt tokens, log scale)",
        tickvals=contexts,
        ticktext=[theme.tokens(context) for context in contexts],
    )


def summary(rows: pl.DataFrame, parameters: Mapping[str, int] | None = None) -> str:
    """The curves in words: each model's first and last point, and its slope."""
    fits = {row["model"]: row for row in slopes(rows).iter_rows(named=True)}
    parts = []
    for model in cells.model_order(rows["model"], parameters):
        line = rows.filter(pl.col("model") == model).sort("prompt_tokens")
        ends = [f"{theme.percent(line['ratio'][i])} at {theme.tokens(line['prompt_tokens'][i])}" for i in (0, -1)]
        words = model.rsplit("/", 1)[-1] + " " + (" to ".join(ends) if len(line) > 1 else ends[0])
        parts.append(words + (f" ({_slope_words(fits[model])})" if model in fits else ""))
    return f"Throughput of {rows['arm'][0]} over {rows['baseline'][0]} by context: {'; '.join(parts)}."


def _slope_words(fit: Mapping[str, float]) -> str:
    middle, low, high = (f"{fit[k] * 100:+.1f}".replace("-", theme.MINUS) for k in ("slope", "low", "high"))
    return f"{middle} pp a doubling [{low} … {high}]"


def _bands(fig: go.Figure, margin: float) -> None:
    fig.add_hrect(y0=1 - margin, y1=1 + margin, fillcolor="#8a929d", opacity=0.16, line_width=0, layer="below")
    fig.add_hline(y=1, line={"color": "#8a929d", "width": 1.4, "dash": "dot"})
