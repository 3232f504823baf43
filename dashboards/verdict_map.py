"""The verdict map: models by context, colour and words for the gain, hatching where nothing is decided yet."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme

GAP = 0.05
STRIP = 0.15  # height of the hatched edges of an undecided cell
COARSE, FINE = (1.5, 2.0, 3.0, 4.0), (1.1, 1.25, 1.5)


def verdict_map(
    verdicts: pl.DataFrame,
    trials: pl.DataFrame | None = None,
    limit: float | None = None,
    parameters: Mapping[str, int] | None = None,
    scale: bool = True,
    links: Callable[[Mapping[str, Any]], str] | None = None,
) -> go.Figure:
    """One arm against one baseline over models (rows, smallest on top) and contexts (columns).

    verdicts: rows of one scene and one (arm, baseline) pair. trials: the scene's, to say `skipped` or `failed` where a
    cell has no ratio. limit: the ratio at which the colour ends (default: `colour_limit`), to share one scale among
    maps. parameters: parameter count by model, see `cells.model_order`. scale: draw the colour
    bar; without it the words are smaller too, for a map beside another. links: where a click on a row's cell leads,
    kept in `layout.meta["links"]`.
    """
    verdicts = verdicts.filter(pl.col("metric") == "throughput")
    if verdicts.is_empty():
        return theme.nothing("Verdict map", "No arm was compared with a baseline yet.")
    simulated = cells.one_backend(verdicts)
    arm, baseline = _only(verdicts, "arm"), _only(verdicts, "baseline")
    lost = _lost(trials, (arm, baseline)) if trials is not None else {}
    models = cells.model_order(verdicts["model"], parameters)
    contexts = sorted(set(verdicts["prompt_tokens"]))
    fig = theme.figure(
        f"{html.escape(arm)} against {html.escape(baseline)}: throughput",
        150 + 62 * len(models),
        summary(verdicts),
        simulated,
    )
    row_of, column_of = {m: i for i, m in enumerate(models)}, {c: i for i, c in enumerate(contexts)}
    rows = list(verdicts.iter_rows(named=True))
    shown = {(r["model"], r["prompt_tokens"]): r for r in rows if _drawable(r["ratio"])}
    grid = [[shown.get((model, context)) for context in contexts] for model in models]
    fig.add_heatmap(
        x=list(range(len(contexts))),
        y=list(range(len(models))),
        z=[[None if r is None else math.log(r["ratio"]) for r in line] for line in grid],
        text=[["" if r is None else _cell_text(r) for r in line] for line in grid],
        texttemplate="%{text}",
        textfont={"size": 14 if scale else 12},
        hovertext=[["" if r is None else _hover(r) for r in line] for line in grid],
        hoverinfo="text",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=6,
        ygap=6,
    )
    for row in rows:
        if (row["model"], row["prompt_tokens"]) not in shown:
            fig.add_annotation(
                x=column_of[row["prompt_tokens"]],
                y=row_of[row["model"]],
                text=f"<i>{lost.get((row['model'], row['prompt_tokens']), 'no ratio')}</i>",
                hovertext=_hover(row),
                showarrow=False,
                font={"size": 12, "color": "#8a929d"},
            )
    open_ = [r for r in shown.values() if r["verdict"] == "undecided"]
    for edge in (-0.5 + GAP, 0.5 - GAP - STRIP):
        fig.add_bar(
            x=[column_of[r["prompt_tokens"]] for r in open_],
            base=[row_of[r["model"]] + edge for r in open_],
            y=[STRIP] * len(open_),
            width=1 - GAP,
            marker={
                "color": "rgba(0,0,0,0)",
                "line": {"width": 0},
                "pattern": {"shape": "/", "size": 7, "solidity": 0.28, "fgcolor": "#7b828c", "fillmode": "replace"},
            },
            opacity=0.75,
            hoverinfo="skip",
            showlegend=False,
        )
    labels = cells.model_labels(models)
    theme.grid_axes(fig, [theme.tokens(c) for c in contexts], [labels[model] for model in models])
    fig.update_xaxes(title_text="context (prompt tokens)")
    if links is not None:
        known = {(r["model"], r["prompt_tokens"]): links(r) for r in rows}
        fig.layout.meta["links"] = [[known.get((model, context)) for context in contexts] for model in models]
    end = math.log(limit or colour_limit(verdicts))
    steps: tuple[float, ...] = COARSE if end > math.log(1.6) else FINE
    if len(models) < 3:
        steps = tuple(step for step in steps if math.log(step) <= end)[-1:]  # a short bar has room for one
    ticks = [1.0, *(sign for step in steps if math.log(step) <= end + 1e-9 for sign in (step, 1 / step))]
    fig.update_layout(
        coloraxis={
            "cmin": -end,
            "cmax": end,
            "showscale": scale,
            "colorbar": {
                "title": {"text": "gain", "side": "top"},
                "tickvals": [math.log(tick) for tick in ticks],
                "ticktext": [theme.percent(tick) for tick in ticks],
                "thickness": 12,
                "outlinewidth": 0,
                "x": 1.01,
            },
        },
        barmode="overlay",
        margin={"t": 64, "b": 54},
    )
    return fig


def colour_limit(verdicts: pl.DataFrame) -> float:
    """The ratio (above 1) that the strongest colour stands for: the largest gain or loss, within 1.25 and 4."""
    ratios = [ratio for ratio in verdicts.filter(pl.col("metric") == "throughput")["ratio"] if _drawable(ratio)]
    return math.exp(min(math.log(4), max([math.log(1.25), *(abs(math.log(ratio)) for ratio in ratios)])))


def summary(verdicts: pl.DataFrame) -> str:
    """The map in one sentence, for those who cannot see it."""
    arm, baseline = _only(verdicts, "arm"), _only(verdicts, "baseline")
    counts = dict(verdicts["verdict"].value_counts().iter_rows())
    said = ", ".join(f"{counts[v]} {v}" for v in theme.VERDICT_MARKS if v in counts)
    text = f"{arm} against {baseline} in {len(verdicts)} cells: {said}."
    known = verdicts.filter(pl.col("ratio").is_finite()).sort("ratio")
    if len(known) > 1:
        low, high = known.row(0, named=True), known.row(-1, named=True)
        text += (
            f" From {theme.percent(low['ratio'])} ({cells.cell_label(low)})"
            f" to {theme.percent(high['ratio'])} ({cells.cell_label(high)})."
        )
    return text


def _cell_text(row: Mapping[str, Any]) -> str:
    head = f"<b>{theme.VERDICT_MARKS[row['verdict']]}{theme.NBSP}{theme.percent(row['ratio'])}</b>"
    return f"{head}<br><span style='font-size:0.8em'>{theme.interval(row['ci_low'], row['ci_high'])}</span>"


def _lost(trials: pl.DataFrame, arms: tuple[str, str]) -> dict[tuple[str, int], str]:
    """By model and context, how the trials of an arm ended of which none is ok."""
    ended = (
        trials.filter(pl.col("arm").is_in(arms))
        .group_by("model", "prompt_tokens", "arm")
        .agg(pl.col("outcome").unique().sort(descending=True))
        .filter(~pl.col("outcome").list.contains("ok"))
        .sort("arm", descending=True)
    )
    return {(model, context): " or ".join(words) for model, context, _, words in ended.iter_rows()}


def _hover(row: Mapping[str, Any]) -> str:
    reasons = [html.escape(reason) for reason in row["reasons"] or ()]
    ratio = theme.percent(row["ratio"], 1) if _drawable(row["ratio"]) else "no ratio"
    lines = [
        f"<b>{html.escape(cells.cell_label(row))}</b>",
        f"{row['verdict']}: {ratio} [{theme.interval(row['ci_low'], row['ci_high'], 1)}]",
        f"{row['boots']} boots, {row['windows']} windows"
        + (f", {row['concurrency']:,} in flight" if row["concurrency"] is not None else ""),
        *reasons,
    ]
    return "<br>".join(lines)


def _drawable(ratio: object) -> bool:
    return isinstance(ratio, float) and math.isfinite(ratio) and ratio > 0


def _only(frame: pl.DataFrame, column: str) -> str:
    values = frame[column].unique().to_list()
    if len(values) != 1:
        raise ValueError(f"one {column} a map, not {sorted(values)}")
    return str(values[0])
