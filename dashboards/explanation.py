"""Why: what bounded the windows of each arm, and how busy the GPU was meanwhile."""

from __future__ import annotations

import html
from collections.abc import Mapping

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from dashboards import cells, theme

GAP = 0.04
COUNTERS = {
    "sm_active_share": ("SM active", 100.0, "%"),
    "tensor_active_share": ("tensor cores active", 100.0, "%"),
    "dram_active_share": ("DRAM active", 100.0, "%"),
    "engine_core_cpu_max": ("busiest EngineCore", 100.0, "% of a core"),
    "power_w": ("power", 1.0, "W"),
}


def bound_by(measured: pl.DataFrame, parameters: Mapping[str, int] | None = None) -> go.Figure:
    """What bounded the windows: a panel an arm, models by contexts; each cell is divided by share of its windows.

    measured: `cells.measured` rows of one scene; windows that are not certified do not count.
    """
    shares = bound_shares(measured)
    if shares.is_empty():
        return theme.nothing("What bounded the windows", "There is no certified window.")
    arms = [arm for arm in cells.arms(measured) if arm in set(shares["arm"])]
    models = cells.model_order(shares["model"], parameters)
    contexts = sorted(set(shares["prompt_tokens"]))
    labels = cells.model_labels(models)
    height = 40 * len(models) + 62
    fig = theme.figure(
        "What bounded the windows", 146 + height * len(arms), _bound_summary(shares), cells.one_backend(measured)
    )
    fig.set_subplots(
        rows=len(arms),
        cols=1,
        shared_xaxes=False,
        vertical_spacing=min(0.9 / max(1, len(arms) - 1), 54 / (height * len(arms))),
        subplot_titles=[html.escape(arm) for arm in arms],
    )
    for bound in theme.BOUND_COLOURS:
        for panel, arm in enumerate(arms, start=1):
            rows = shares.filter(bound_by=bound, arm=arm)
            width = 1 - 2 * GAP
            fig.add_bar(
                orientation="h",
                y=[models.index(model) for model in rows["model"]],
                x=(rows["share"] * width).to_list(),
                base=[
                    contexts.index(context) - width / 2 + before * width
                    for context, before in rows.select("prompt_tokens", "before").iter_rows()
                ],
                width=0.86,
                marker={"color": theme.BOUND_COLOURS[bound], "line": {"width": 0}, "cornerradius": 2},
                text=[theme.BOUND_WORDS[bound] if share >= 0.6 else "" for share in rows["share"]],
                textposition="inside",
                insidetextanchor="middle",
                constraintext="inside",
                textfont={"size": 11, "color": "#ffffff"},
                hovertext=[
                    f"{html.escape(arm)}, {html.escape(cells.cell_label(row))}: {theme.BOUND_WORDS[bound]} in"
                    f" {row['share']:.0%} of {row['windows']} windows"
                    for row in rows.iter_rows(named=True)
                ],
                hoverinfo="text",
                name=theme.BOUND_WORDS[bound],
                legendgroup=bound,
                showlegend=panel == 1 and bound in set(shares["bound_by"]),
                row=panel,
                col=1,
            )
    theme.grid_axes(fig, [theme.tokens(c) for c in contexts], [labels[model] for model in models])
    fig.update_xaxes(title_text="context (prompt tokens)", row=len(arms), col=1)
    fig.update_layout(barmode="overlay", margin={"t": 136}, legend={"y": 1 + 38 / (height * len(arms))})
    return fig


def bound_shares(measured: pl.DataFrame) -> pl.DataFrame:
    """Share of the certified windows by (arm, model, prompt_tokens, bound_by), and `before`: the shares left of it."""
    cell = ["arm", "model", "prompt_tokens"]
    named = measured.filter("certified").with_columns(pl.col("bound_by").fill_null("unknown"))
    order = pl.Enum(list(theme.BOUND_COLOURS))
    return (
        named.group_by(*cell, "bound_by")
        .agg(count=pl.len())
        .with_columns(windows=pl.col("count").sum().over(cell))
        .with_columns(share=pl.col("count") / pl.col("windows"), bound_by=pl.col("bound_by").cast(order))
        .sort(*cell, "bound_by")
        .with_columns(before=pl.col("share").cum_sum().over(cell) - pl.col("share"))
        .with_columns(pl.col("bound_by").cast(pl.String))
    )


def activity(measured: pl.DataFrame, parameters: Mapping[str, int] | None = None) -> go.Figure:
    """SM, tensor-core and DRAM activity, the busiest EngineCore and power over context: a column a model."""
    return curves(measured, COUNTERS, "How busy the GPU and the engines were", parameters)


def curves(
    measured: pl.DataFrame,
    counters: Mapping[str, tuple[str, float, str]],
    title: str,
    parameters: Mapping[str, int] | None = None,
) -> go.Figure:
    """Counters over context, a row each, a column a model, a line an arm.

    Medians over certified windows; counters that this backend cannot read are left out, and the summary says which.
    counters: column to words, factor and unit.
    """
    good = measured.filter("certified")
    there = [name for name in counters if good[name].is_not_null().any()]
    if good.is_empty() or not there:
        simulated = bool(len(measured)) and cells.one_backend(measured)
        return theme.nothing(title, "No counter was readable in a certified window.", simulated)
    models = cells.model_order(good["model"], parameters)
    labels = cells.model_labels(models)
    arms = cells.arms(good)
    colours = theme.arm_colours(arms)
    fig = theme.figure(
        title,
        130 + 165 * len(there),
        _curves_summary(good, counters, there),
        cells.one_backend(measured),
    )
    grid = make_subplots(
        rows=len(there), cols=len(models), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.018,
        vertical_spacing=0.035, column_titles=[html.escape(labels[model]) for model in models],
        figure=fig,
    )  # fmt: skip
    medians = good.group_by("model", "arm", "prompt_tokens").agg(pl.col(there).median()).sort("prompt_tokens")
    for row, name in enumerate(there, start=1):
        words, scale, unit = counters[name]
        for column, model in enumerate(models, start=1):
            for index, arm in enumerate(arms):
                line = medians.filter(model=model, arm=arm).drop_nulls(name)
                grid.add_scatter(
                    x=line["prompt_tokens"].to_list(),
                    y=(line[name] * scale).to_list(),
                    mode="lines+markers",
                    line={"color": colours[arm], "width": 2},
                    marker={"size": 6, "symbol": theme.SYMBOLS[index % len(theme.SYMBOLS)]},
                    name=html.escape(arm),
                    legendgroup=arm,
                    showlegend=row == column == 1,
                    hovertemplate=f"{html.escape(arm)}: %{{y:.3~g}} {unit}<extra></extra>",
                    row=row,
                    col=column,
                )
        grid.update_yaxes(title_text=f"{words}<br>({unit})", row=row, col=1)
        grid.update_yaxes(rangemode="tozero", row=row)
    contexts = sorted(set(good["prompt_tokens"]))
    grid.update_xaxes(type="log", tickvals=contexts, ticktext=[theme.tokens(c) for c in contexts], tickangle=0)
    grid.update_xaxes(title_text="context", row=len(there))
    grid.update_yaxes(title_font_size=12)
    grid.update_layout(margin={"t": 120}, legend={"y": 1 + 34 / (165 * len(there))}, hovermode="x")
    return grid


def _bound_summary(shares: pl.DataFrame) -> str:
    parts = []
    totals = shares.group_by("arm", "bound_by").agg(pl.col("count").sum())
    counts = totals.sort("arm", "count", "bound_by", descending=[False, True, False])
    for (arm,), rows in counts.group_by("arm", maintain_order=True):
        whole = rows["count"].sum()
        said = ", ".join(
            f"{theme.BOUND_WORDS[bound]} {count / whole:.0%}"
            for bound, count in rows.select("bound_by", "count").rows()
        )
        parts.append(f"{arm}: {said}")
    return f"What bounded the certified windows, over all cells. {'; '.join(parts)}."


def _curves_summary(good: pl.DataFrame, counters: Mapping[str, tuple[str, float, str]], there: list[str]) -> str:
    parts = []
    for name in there:
        words, scale, unit = counters[name]
        medians = good.group_by("arm").agg(pl.col(name).median()).drop_nulls().sort("arm")
        said = ", ".join(f"{arm} {value * scale:.3g}" for arm, value in medians.iter_rows())
        parts.append(f"{words} ({unit}): {said}")
    absent = [words for name, (words, _, _) in counters.items() if name not in there]
    missing = f" Not readable here: {', '.join(absent)}." if absent else ""
    return f"Medians over all cells. {'; '.join(parts)}.{missing}"
