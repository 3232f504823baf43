"""Halves of a model as figures: what each gains beside the whole, and which part of the model a step's time goes to."""

from __future__ import annotations

import html

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme
from dashboards.gain_curves import context_axis, error_bars, known
from dashboards.step_parts import BETWEEN, CELL, half_of, part_order
from workloads.variants import VARIANTS, split

DASHES = {None: "solid", VARIANTS[0]: "dash", VARIANTS[1]: "dot"}
COLOURS = {None: "#4477aa", VARIANTS[0]: "#22a0bd", VARIANTS[1]: "#b39800"}
# Shades of one colour a half, so that the halves read before the parts do.
SHADES = {
    "attention": ("#0f6b83", "#22a0bd", "#6cc3d6", "#b3e0ea"),
    "mlp": ("#8a7500", "#b39800", "#d8c463", "#ece2b0"),
    "rest": ("#54607a", "#7d8aa5", "#a4aec3", "#c6cddc", "#dfe3ec", "#eef0f5"),
    BETWEEN: ("#f3f4f6",),
}


def halves_gain(verdicts: pl.DataFrame) -> go.Figure:
    """Ratio of throughput over context of one model, whole and by halves.

    verdicts: rows of one scene and one (arm, baseline) pair, of one model and its variants.
    """
    rows = known(verdicts)
    if rows.is_empty():
        return theme.nothing("Gain of halves", "No pair of arms has a ratio yet.")
    arm, baseline = rows["arm"][0], rows["baseline"][0]
    simulated = cells.one_backend(rows)
    said = []
    name = html.escape(split(rows["model"][0])[0].rsplit("/", 1)[-1])
    fig = theme.figure(f"{name}, {html.escape(arm)} against {html.escape(baseline)}", 430, "", simulated)
    for variant, dash in DASHES.items():
        line = rows.filter(pl.col("model").map_elements(lambda m: split(m)[1] or "", pl.String) == (variant or ""))
        if line.is_empty():
            continue
        line = line.sort("prompt_tokens")
        words = variant or "full model"
        fig.add_scatter(
            x=line["prompt_tokens"].to_list(),
            y=line["ratio"].to_list(),
            error_y=error_bars(line),
            mode="lines+markers",
            name=words,
            line={"color": COLOURS[variant], "width": 2.2, "dash": dash},
            marker={"size": 8},
            hovertext=[
                f"{words}, {theme.tokens(r['prompt_tokens'])}: {theme.percent(r['ratio'], 1)}"
                f" [{theme.interval(r['ci_low'], r['ci_high'], 1)}], {r['verdict']}"
                for r in line.iter_rows(named=True)
            ],
            hoverinfo="text",
        )
        ends = ", ".join(
            f"{theme.percent(ratio)} at {theme.tokens(context)}"
            for context, ratio in line.select("prompt_tokens", "ratio").iter_rows()
        )
        said.append(f"{words}: {ends}")
    prefix = f"{theme.SIMULATED}. " if simulated else ""
    fig.layout.meta["summary"] = f"{prefix}Throughput of {arm} over {baseline}. {'; '.join(said)}."
    context_axis(fig, rows)
    fig.add_hline(y=1, line={"color": "#8a929d", "width": 1.4, "dash": "dot"})
    fig.update_yaxes(title_text="throughput ratio", tickformat=".2~f", tickprefix="×")
    fig.update_layout(margin={"t": 92}, legend={"y": 1.0, "traceorder": "normal"})
    return fig


def step_bars(parts: pl.DataFrame) -> go.Figure:
    """Milliseconds of one step by part of the model, a bar a context, for one model and kind.

    parts: rows of `step_parts`, means over boots are taken here.
    """
    if parts.is_empty():
        return theme.nothing("Where a step's time goes", "No replayed step was profiled.")
    means = parts.group_by(*CELL, "part").agg(pl.col("seconds", "step_s").mean()).sort("prompt_tokens")
    contexts = means["prompt_tokens"].unique().sort().to_list()
    ticks = [theme.tokens(context) for context in contexts]
    model = html.escape(means["model"][0].rsplit("/", 1)[-1])
    fig = theme.figure(f"Where a step's time goes: {model}", 460, "", simulated=False)
    used: dict[str, int] = {}
    said = []
    for part in part_order(means["part"].unique()):
        half = BETWEEN if part == BETWEEN else half_of(part)
        shades = SHADES[half]
        shade = shades[used.get(half, 0) % len(shades)]
        used[half] = used.get(half, 0) + 1
        seconds = dict(means.filter(part=part).select("prompt_tokens", "seconds").iter_rows())
        values = [round(1000 * seconds[context], 4) if context in seconds else None for context in contexts]
        fig.add_bar(
            x=ticks,
            y=values,
            name=html.escape(part),
            marker={"color": shade, "line": {"width": 0.5, "color": "#8a929d"}},
            hovertemplate=f"{html.escape(part)}, %{{x}}: %{{y:.4~g}} ms<extra></extra>",
        )
        known_ms = [value for value in values if value is not None]
        said.append(f"{part} {known_ms[0]:.3g} to {known_ms[-1]:.3g} ms")
    fig.layout.meta["summary"] = (
        f"Milliseconds of one step of {means['model'][0]} by part, from {ticks[0]} to {ticks[-1]} of context: "
        f"{'; '.join(said)}."
    )
    fig.update_xaxes(type="category", title_text="context (prompt tokens)")
    fig.update_yaxes(title_text="ms a step")
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "traceorder": "normal"}
    fig.update_layout(barmode="stack", margin={"t": 64, "b": 130}, legend=legend, bargap=0.35)
    return fig
