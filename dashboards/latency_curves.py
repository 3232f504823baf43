"""What a gain costs in latency: throughput over latency by arm, and the ratios of the latencies themselves."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme
from dashboards.gain_curves import error_bars
from orchestrator.trial import phase_of

LATENCIES = ("ttft_p50", "tpot_p50", "e2e_p50", "e2e_p99")
LATENCY_COLOURS = {"ttft_p50": "#b39800", "tpot_p50": "#22a0bd", "e2e_p50": "#4477aa", "e2e_p99": "#aa3f86"}


def throughput_over_latency(measured: pl.DataFrame, latency: str = "e2e_p50_s") -> go.Figure:
    """Tokens/s over a latency, one colour an arm; both bars span the boots, from the lowest mean to the highest.

    measured: `cells.measured` rows of one kind of load on one GPU kind. Where there is a ladder of concurrencies, a
    line follows each arm up the ladder; otherwise a grey line joins the arms of one cell.
    """
    points = _points(measured, latency)
    if points.is_empty():
        return theme.nothing("Throughput over latency", "No certified window has both a rate and a latency.")
    words = {"e2e_p50_s": "request latency p50", "tpot_p50_s": "TPOT p50"}[latency]
    ladder = points["concurrency"].n_unique() > 1
    arms = cells.arms(measured)
    colours = theme.arm_colours(arms)
    fig = theme.figure(f"Throughput over {words}", 500, _summary(points, words, ladder), cells.one_backend(measured))
    if not ladder:
        for _, group in points.group_by("model", "prompt_tokens", "output_tokens", maintain_order=True):
            fig.add_scatter(
                x=group["latency"].to_list(), y=group["rate"].to_list(), mode="lines", hoverinfo="skip",
                line={"color": "#8a929d", "width": 1}, opacity=0.5, showlegend=False,
            )  # fmt: skip
    shown = set()
    models = cells.model_order(points["model"])
    for (model, arm, *_), group in points.group_by(
        "model", "arm", *(["prompt_tokens", "output_tokens"] if ladder else []), maintain_order=True
    ):
        fig.add_scatter(
            x=group["latency"].to_list(),
            y=group["rate"].to_list(),
            error_x=_span(group, "latency"),
            error_y=_span(group, "rate"),
            mode="lines+markers" if ladder else "markers",
            line={"color": colours[arm], "width": 1.8},
            marker={
                "color": colours[arm],
                "size": 9,
                "symbol": theme.SYMBOLS[models.index(model) % len(theme.SYMBOLS)],
            },
            name=html.escape(arm),
            legendgroup=arm,
            legendrank=list(arms).index(arm),
            showlegend=arm not in shown,
            hovertext=[_hover(row, words) for row in group.iter_rows(named=True)],
            hoverinfo="text",
        )
        shown.add(arm)
    for index, label in enumerate(cells.model_labels(models).values()):
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"color": "#8a929d", "size": 9, "symbol": theme.SYMBOLS[index % len(theme.SYMBOLS)] + "-open"},
            name=html.escape(label),
            legendrank=1000 + index,
            hoverinfo="skip",
        )
    fig.update_xaxes(type="log", title_text=f"{words} (s)", **_ticks(points, "latency", "~g"))
    tokens = "prompt" if phase_of(measured["kind"][0]) == "prefill" else "output"
    fig.update_yaxes(type="log", title_text=f"{tokens} tokens/s", **_ticks(points, "rate", "~s"))
    fig.update_layout(margin={"t": 112}, legend={"y": 1.0})
    return fig


def latency_ratios(verdicts: pl.DataFrame, parameters: Mapping[str, int] | None = None) -> go.Figure:
    """TTFT, TPOT and request latency of the arm over the baseline's, a row a cell; left of 1 is faster.

    verdicts: rows of all metrics of one scene and one (arm, baseline) pair.
    """
    rows = verdicts.filter(pl.col("metric").is_in(LATENCIES), pl.col("ratio").is_finite())
    if rows.is_empty():
        return theme.nothing("Latency ratios", "No latency was compared yet.")
    arm, baseline = rows["arm"][0], rows["baseline"][0]
    models = cells.model_order(rows["model"], parameters)
    labels = cells.model_labels(models)
    order = [
        (model, context)
        for model in models
        for context in sorted(set(rows.filter(pl.col("model") == model)["prompt_tokens"]))
    ]
    place = {cell: index for index, cell in enumerate(order)}
    fig = theme.figure(
        f"{html.escape(arm)} against {html.escape(baseline)}: latency",
        190 + 26 * len(order),
        _latency_summary(rows),
        cells.one_backend(rows),
    )
    fig.add_vline(x=1, line={"color": "#8a929d", "width": 1.4, "dash": "dot"})
    for index, metric in enumerate(LATENCIES):
        dots = rows.filter(pl.col("metric") == metric)
        shift = (index - (len(LATENCIES) - 1) / 2) * 0.17
        fig.add_scatter(
            x=dots["ratio"].to_list(),
            y=[place[cell] + shift for cell in dots.select("model", "prompt_tokens").iter_rows()],
            error_x=error_bars(dots, 1.1, 0),
            mode="markers",
            marker={"color": LATENCY_COLOURS[metric], "size": 8, "symbol": theme.SYMBOLS[index]},
            name=theme.METRIC_WORDS[metric],
            hovertext=[_ratio_hover(row) for row in dots.iter_rows(named=True)],
            hoverinfo="text",
        )
    fig.update_xaxes(
        type="log",
        title_text="ratio of latencies (log scale; left of 1 is faster)",
        tickformat=".2~f",
        tickprefix="×",
        nticks=8,
    )
    fig.update_yaxes(
        tickvals=list(range(len(order))),
        ticktext=[f"{html.escape(labels[model])}, {theme.tokens(context)}" for model, context in order],
        range=[len(order) - 0.4, -0.6],
        zeroline=False,
    )
    fig.update_layout(margin={"t": 112}, legend={"y": 1.0})
    return fig


def _points(measured: pl.DataFrame, latency: str) -> pl.DataFrame:
    cell = ["model", "prompt_tokens", "output_tokens", "concurrency", "arm", "sharing", "engines"]
    good = measured.filter("certified", pl.col("rate") > 0, pl.col(latency) > 0)
    boots = good.group_by(*cell, "boot_id").agg(rate=pl.col("rate").mean(), latency=pl.col(latency).median())
    return (
        boots.group_by(cell)
        .agg(
            *(pl.col(v).mean() for v in ("rate", "latency")),
            *(pl.col(v).min().alias(f"{v}_low") for v in ("rate", "latency")),
            *(pl.col(v).max().alias(f"{v}_high") for v in ("rate", "latency")),
            boots=pl.len(),
        )
        .with_columns(place=pl.col("sharing").replace_strict(cells.SHARING_ORDER, return_dtype=pl.Int64))
        .sort("model", "prompt_tokens", "output_tokens", "place", "engines", "arm", "concurrency")
    )


def _ticks(points: pl.DataFrame, name: str, form: str) -> dict[str, object]:
    """1, 2, 5 of each decade; over less than a factor of three that would leave one tick or none."""
    spread = max(points[f"{name}_high"]) / min(points[f"{name}_low"])
    return {"tickformat": form, "dtick": "D2"} if spread > 3 else {"tickformat": f".3{form}", "nticks": 6}


def _span(group: pl.DataFrame, name: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (group[f"{name}_high"] - group[name]).to_list(),
        "arrayminus": (group[name] - group[f"{name}_low"]).to_list(),
        "thickness": 1,
        "width": 0,
    }


def _hover(row: Mapping[str, Any], words: str) -> str:
    return (
        f"<b>{html.escape(row['arm'])}</b> · {html.escape(cells.cell_label(row))} · {row['concurrency']} in flight"
        f"<br>{row['rate']:,.0f} tokens/s, {words} {row['latency']:.3g} s, {row['boots']} boots"
    )


def _ratio_hover(row: Mapping[str, Any]) -> str:
    return (
        f"{html.escape(cells.cell_label(row))}<br>{theme.METRIC_WORDS[row['metric']]}: {theme.percent(row['ratio'], 1)}"
        f" [{theme.interval(row['ci_low'], row['ci_high'], 1)}], {row['verdict']}"
    )


def _summary(points: pl.DataFrame, words: str, ladder: bool) -> str:
    shape = "along a ladder of concurrencies" if ladder else "at one concurrency a cell"
    spans = [
        f"{arm} {min(rows['rate']):,.0f} to {max(rows['rate']):,.0f} tokens/s"
        for (arm,), rows in points.group_by("arm", maintain_order=True)
    ]
    return f"Throughput over {words} {shape}: {'; '.join(spans)}."


def _latency_summary(rows: pl.DataFrame) -> str:
    parts = []
    for metric in LATENCIES:
        ratios = rows.filter(pl.col("metric") == metric)["ratio"]
        if len(ratios):
            parts.append(f"{theme.METRIC_WORDS[metric]} {theme.percent(min(ratios))} to {theme.percent(max(ratios))}")
    return f"Latency of {rows['arm'][0]} relative to {rows['baseline'][0]} over the cells: {'; '.join(parts)}."
