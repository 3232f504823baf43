"""Who was busy in one cell: GPU units, engines and frontends as shares of their time, an arm beside the other."""

from __future__ import annotations

import html

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme

SHARES = {
    "gpu_active_share": "GPU active",
    "sm_active_share": "SM active",
    "tensor_active_share": "tensor cores",
    "dram_active_share": "DRAM active",
    "engine_core_cpu_max": "busiest EngineCore",
    "frontend_cpu_max": "busiest frontend",
    "power_capped_share": "power capped",
}


def busy_bars(measured: pl.DataFrame) -> go.Figure:
    """Medians over the certified windows of one cell, in percent of the time; those never read are left out."""
    title = "Who was busy"
    simulated = bool(len(measured)) and cells.one_backend(measured)
    good = measured.filter("certified")
    there = [name for name in SHARES if len(good) and good[name].is_not_null().any()]
    if not there:
        return theme.nothing(title, "No counter was readable in a certified window.", simulated)
    arms = cells.arms(good)
    colours = theme.arm_colours(arms)
    medians = good.group_by("arm").agg(pl.col(there).median(), pl.col("power_w", "sm_clock_mhz").median())
    said = []
    fig = theme.figure(title, 130 + (14 + 16 * len(arms)) * len(there), "", simulated)
    for arm in arms:
        row = medians.filter(pl.col("arm") == arm).row(0, named=True)
        values = [None if row[name] is None else round(100 * row[name], 1) for name in there]
        fig.add_bar(
            orientation="h",
            y=[SHARES[name] for name in there],
            x=values,
            name=html.escape(arm),
            marker={"color": colours[arm], "line": {"width": 0}},
            text=["" if value is None else f"{value:.0f} %" for value in values],
            textposition="auto",
            textfont={"size": 11},
            hovertemplate=f"{html.escape(arm)}, %{{y}}: %{{x:.3~g}} %<extra></extra>",
        )
        shares = ", ".join(
            f"{SHARES[name]} {value:.0f} %" for name, value in zip(there, values, strict=True) if value is not None
        )
        rest = [
            f"{row[name]:,.0f} {unit}"
            for name, unit in (("power_w", "W"), ("sm_clock_mhz", "MHz"))
            if row[name] is not None
        ]
        said.append(f"{arm}: {shares}{'; ' if rest else ''}{', '.join(rest)}")
    fig.layout.meta["summary"] = (f"{theme.SIMULATED}. " if simulated else "") + ". ".join(said) + "."
    fig.update_yaxes(autorange="reversed", ticks="", type="category")
    fig.update_xaxes(range=[0, 105], ticksuffix=" %")
    fig.update_layout(barmode="group", margin={"t": 92}, legend={"y": 1.0, "traceorder": "normal"}, bargap=0.22)
    return fig
