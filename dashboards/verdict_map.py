"""The verdict map: models by context, colour and words for the gain, hatching where nothing is decided yet."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme

GAP = 0.04
TICKS = (0.25, 1 / 3, 0.5, 2 / 3, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)


def verdict_map(
    verdicts: pl.DataFrame,
    absent: pl.DataFrame | None = None,
    limit: float | None = None,
    parameters: Mapping[str, int] | None = None,
) -> go.Figure:
    """One arm against one baseline over models (rows, smallest on top) and contexts (columns).

    verdicts: throughput rows of one scene and one (arm, baseline) pair. absent: rows with `model`, `prompt_tokens` and
    `outcome` of cells that could not be compared; drawn as words, so that nothing is missing without a reason. limit: the ratio at which
    the colour ends (default: the largest gain or loss shown, at least 1.25), to share one scale among maps.
    """
    verdicts = verdicts.filter(pl.col("metric") == "throughput")
    if verdicts.is_empty():
        return theme.nothing("Verdict map", "No arm was compared with a baseline yet.")
    simulated = cells.one_backend(verdicts)
    arm, baseline = _only(verdicts, "arm"), _only(verdicts, "baseline")
    gone = pl.DataFrame(schema={"model": str, "prompt_tokens": int, "outcome": str}) if absent is None else absent
    models = cells.model_order([*verdicts["model"], *gone["model"]], parameters)
    contexts = sorted({*verdicts["prompt_tokens"], *gone["prompt_tokens"]})
    fig = theme.figure(
        f"{html.escape(arm)} against {html.escape(baseline)}: throughput",
        150 + 62 * len(models),
        summary(verdicts),
        simulated,
    )
    row_of, column_of = {m: i for i, m in enumerate(models)}, {c: i for i, c in enumerate(contexts)}
    rows = list(verdicts.iter_rows(named=True))
    fig.add_bar(
        x=[column_of[r["prompt_tokens"]] for r in rows],
        base=[row_of[r["model"]] - 0.5 + GAP for r in rows],
        y=[1 - 2 * GAP] * len(rows),
        width=1 - 1.2 * GAP,
        marker={
            "color": [math.log(r["ratio"]) if _drawable(r["ratio"]) else 0.0 for r in rows],
            "coloraxis": "coloraxis",
            "cornerradius": 4,
            "line": {"width": 0},
            "pattern": {
                "shape": ["/" if r["verdict"] == "undecided" else "" for r in rows],
                "size": 9,
                "solidity": 0.12,
                "fillmode": "overlay",
                "fgcolor": "#7b828c",
                "fgopacity": 0.6,
            },
        },
        text=[_cell_text(r) for r in rows],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        constraintext="inside",
        textfont={"size": 14},
        hovertext=[_hover(r) for r in rows],
        hoverinfo="text",
        showlegend=False,
    )
    for row in gone.unique().sort("model", "prompt_tokens").iter_rows(named=True):
        fig.add_annotation(
            x=column_of[row["prompt_tokens"]],
            y=row_of[row["model"]],
            text=f"<i>{html.escape(row['outcome'])}</i>",
            showarrow=False,
            font={"size": 12, "color": "#8a929d"},
        )
    labels = cells.model_labels(models)
    fig.update_xaxes(
        title_text="context (prompt tokens)",
        tickvals=list(range(len(contexts))),
        ticktext=[theme.tokens(c) for c in contexts],
        range=[-0.5, len(contexts) - 0.5],
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    fig.update_yaxes(
        tickvals=list(range(len(models))),
        ticktext=[html.escape(labels[m]) for m in models],
        range=[len(models) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    end = math.log(limit or colour_limit(verdicts))
    ticks = [tick for tick in TICKS if abs(math.log(tick)) <= end + 1e-9]
    fig.update_layout(
        coloraxis={
            "cmin": -end,
            "cmax": end,
            "colorbar": {
                "title": {"text": "ratio", "side": "top"},
                "tickvals": [math.log(tick) for tick in ticks],
                "ticktext": [f"×{tick:.3g}" for tick in ticks],
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


def _cell_text(row: Mapping[str, object]) -> str:
    ratio, verdict = row["ratio"], str(row["verdict"])
    if not _drawable(ratio):
        return f"<b>{theme.VERDICT_MARKS[verdict]}</b><br><span style='font-size:11px'>no ratio</span>"
    head = f"<b>{theme.VERDICT_MARKS[verdict]}{theme.NBSP}{theme.percent(float(str(ratio)))}</b>"
    return f"{head}<br><span style='font-size:11px'>{theme.interval(row['ci_low'], row['ci_high'])}</span>"  # type: ignore[arg-type]


def _hover(row: Mapping[str, object]) -> str:
    reasons = [html.escape(str(reason)) for reason in row["reasons"] or ()]  # type: ignore[attr-defined]
    ratio = f"{theme.percent(float(str(row['ratio'])), 1)}" if _drawable(row["ratio"]) else "no ratio"
    lines = [
        f"<b>{html.escape(cells.cell_label(row))}</b>",
        f"{row['verdict']}: {ratio} [{theme.interval(row['ci_low'], row['ci_high'], 1)}]",  # type: ignore[arg-type]
        f"{row['boots']} boots, {row['windows']} windows",
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
