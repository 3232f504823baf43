"""What the host costs: idle GPU time, the engines' busy threads, graphs that were missed, and the speed of the core."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme
from dashboards.explanation import curves

HOST_COUNTERS = {
    "gpu_idle_share": ("GPU not active", 100.0, "%"),
    "step_s": ("engine step", 1000.0, "ms"),
    "engine_core_cpu_max": ("busiest EngineCore", 100.0, "% of a core"),
    "frontend_cpu_max": ("busiest frontend", 100.0, "% of a core"),
    "loop_lag_p99_s": ("clients' loop lag p99", 1000.0, "ms"),
}
GRAPH_MODES = {
    "steps_full_graph_share": ("full graph", "#2469a8"),
    "steps_piecewise_graph_share": ("piecewise graphs", "#6f54b0"),
    "steps_eager_share": ("no graph", "#ad5a16"),
}
# A line through fewer windows than this says nothing.
FEWEST_WINDOWS = 5
SLOPES = pl.Schema({"model": pl.String, "kind": pl.String, "arm": pl.String, "windows": pl.Int64, "slope": pl.Float64})


def with_host_columns(measured: pl.DataFrame) -> pl.DataFrame:
    """Adds `gpu_idle_share` and `step_s`, the mean time of one engine's step in s; null where the backend is silent."""
    return measured.with_columns(
        gpu_idle_share=1 - pl.col("gpu_active_share"),
        step_s=pl.when(pl.col("steps") > 0).then(pl.col("duration_s") * pl.col("engines") / pl.col("steps")),
    )


def host_counters(measured: pl.DataFrame, parameters: Mapping[str, int] | None = None) -> go.Figure:
    """Idle GPU, step time and CPU of the engines over context: a column a model; medians over certified windows."""
    return curves(with_host_columns(measured), HOST_COUNTERS, "What the host costs", parameters)


def graph_modes(measured: pl.DataFrame) -> go.Figure:
    """Share of engine steps by CUDA-graph mode, a bar a cell and arm; without one the host launches each kernel."""
    title = "Steps by CUDA-graph mode"
    good = measured.filter("certified")
    there = [name for name in GRAPH_MODES if len(good) and good[name].is_not_null().any()]
    if not there:
        simulated = bool(len(measured)) and cells.one_backend(measured)
        return theme.nothing(title, "No certified window tells its steps by graph mode.", simulated)
    order = list(cells.arms(good))
    means = (
        good.group_by("model", "kind", "prompt_tokens", "arm")
        .agg(pl.col(there).mean())
        .with_columns(place=pl.col("arm").replace_strict({arm: i for i, arm in enumerate(order)}))
        .sort("model", "kind", "prompt_tokens", "place")
    )
    labels = [f"{cells.cell_label(row)}, {row['kind']}, {row['arm']}" for row in means.iter_rows(named=True)]
    said = [
        f"{label}: " + ", ".join(f"{GRAPH_MODES[name][0]} {row[name]:.0%}" for name in there if row[name] is not None)
        for label, row in zip(labels, means.iter_rows(named=True), strict=True)
    ]
    fig = theme.figure(title, 130 + 38 * len(labels), "; ".join(said[:40]) + ".", cells.one_backend(good))
    for name in there:
        words, colour = GRAPH_MODES[name]
        fig.add_bar(
            orientation="h",
            y=list(range(len(labels))),
            x=(100 * means[name].fill_null(0)).round(1).to_list(),
            name=words,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"%{{x:.3~g}} % of steps: {words}<extra></extra>",
        )
    fig.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[html.escape(label) for label in labels],
        range=[len(labels) - 0.5, -0.5],
        ticks="",
    )
    fig.update_xaxes(range=[0, 100], ticksuffix=" %")
    fig.update_layout(barmode="stack", margin={"t": 96}, legend={"y": 1.0}, bargap=0.25)
    return fig


def speed_slopes(measured: pl.DataFrame) -> pl.DataFrame:
    """(model, kind, arm, windows, slope): least squares of log rate on the log speed of the slowest engine's core.

    Near 1 the host's single thread sets the rate; near 0 it does not matter.
    """
    known = measured.filter(pl.col("certified"), pl.col("engine_core_speed_mops") > 0, pl.col("rate") > 0)
    rows = []
    for (model, kind, arm), seen in known.group_by("model", "kind", "arm", maintain_order=True):
        speed, rate = np.log(seen["engine_core_speed_mops"].to_numpy()), np.log(seen["rate"].to_numpy())
        if len(speed) >= FEWEST_WINDOWS and np.ptp(speed) > 0:
            rows.append((model, kind, arm, len(speed), float(np.polyfit(speed, rate, 1)[0])))
    return pl.DataFrame(rows, schema=SLOPES, orient="row")


def rate_over_core_speed(measured: pl.DataFrame) -> go.Figure:
    """Rate of every certified window over the speed of the core under its EngineCore; both axes are logarithmic.

    measured: rows of one model and kind of load.
    """
    title = "Rate over core speed"
    known = measured.filter(pl.col("certified"), pl.col("engine_core_speed_mops") > 0, pl.col("rate") > 0)
    if known.is_empty():
        simulated = bool(len(measured)) and cells.one_backend(measured)
        return theme.nothing(title, "No certified window carries the speed of its core.", simulated)
    arms = cells.arms(known)
    colours = theme.arm_colours(arms)
    slopes = {row["arm"]: row["slope"] for row in speed_slopes(known).iter_rows(named=True)}
    said = [f"{arm}: slope {slopes[arm]:.2f}" for arm in arms if arm in slopes]
    fig = theme.figure(
        f"{title}: {html.escape(known['model'][0].rsplit('/', 1)[-1])}, {known['kind'][0]}",
        420,
        f"Rate over core speed, {len(known)} windows. {'; '.join(said) or 'Too few windows for a slope'}.",
        cells.one_backend(known),
    )
    for index, arm in enumerate(arms):
        part = known.filter(pl.col("arm") == arm)
        words = f" · slope {slopes[arm]:.2f}" if arm in slopes else ""
        fig.add_scatter(
            x=part["engine_core_speed_mops"].round(2).to_list(),
            y=part["rate"].round(0).to_list(),
            mode="markers",
            marker={"color": colours[arm], "size": 9, "symbol": theme.SYMBOLS[index % len(theme.SYMBOLS)]},
            name=html.escape(arm) + words,
            hovertemplate=f"{html.escape(arm)}: %{{y:,.0f}} tokens/s at %{{x:.3~g}} Mops<extra></extra>",
        )
    fig.update_xaxes(type="log", title_text="speed of the slowest engine's core (million loop turns/s)", nticks=6)
    fig.update_yaxes(type="log", title_text="tokens/s", tickformat=".3~s", nticks=6)
    fig.update_layout(margin={"t": 96}, legend={"y": 1.0})
    return fig
