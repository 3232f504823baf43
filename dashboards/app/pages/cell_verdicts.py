"""The verdicts on one cell of the map, what is behind them in words, and the way to the cells beside it."""

from __future__ import annotations

from typing import Any

import polars as pl
from dash import html

from dashboards import cells, theme
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen, models
from dashboards.app.panel import Block

PATH = "/"


def blocks(chosen: Chosen) -> list[Block]:
    """The verdicts: what a click is for."""
    if chosen.place is None:
        return []
    cell = chosen.cell
    if cell is None:
        return [html.P("Choose a cell of the map to see what is behind it.", className="hint", id="cell")]
    world = chosen.place.world
    verdicts = chosen.in_cell(world.verdicts)
    return [
        html.Div(
            [
                html.H2(_title(cell)),
                _neighbours(chosen),
                html.A("close", href=PATH + chosen.selection.but(model=None, context=None).search, className="close",
                       **{"data-go": "stay", "aria-label": "close the cell"}),
            ],
            className="cell-head", id="cell", tabIndex=-1,
        ),
        shell.simulated_banner(world.simulated),
        _verdict_cards(verdicts),
        *_reasons(verdicts),
    ]  # fmt: skip


def _title(cell: dict[str, Any]) -> str:
    return (
        f"{cells.cell_label(cell)}: {cell['kind']} load, {cell['output_tokens']:,} output tokens,"
        f" {cell['concurrency']:,} in flight"
    )


def _neighbours(chosen: Chosen) -> Any:
    """Links one step along the map's axes."""
    assert chosen.cell is not None
    rows = chosen.rows
    names = [name for name in models(chosen) if name in set(rows["model"])]
    contexts = sorted(set(rows["prompt_tokens"]))
    model, context = chosen.cell["model"], chosen.cell["prompt_tokens"]
    steps = []
    for mark, words, axis, there, here, by in (
        ("←", "shorter context", "context", contexts, context, -1),
        ("→", "longer context", "context", contexts, context, 1),
        ("↑", "smaller model", "model", names, model, -1),
        ("↓", "larger model", "model", names, model, 1),
    ):
        at = there.index(here) + by if here in there else -1
        if 0 <= at < len(there):
            href = PATH + chosen.selection.but(**{axis: there[at], "repeat": None}).search
            steps.append(html.A(mark, href=href, title=words, **{"data-go": "stay", "aria-label": words}))
    return html.Div(steps, className="neighbours", role="group", **{"aria-label": "neighbouring cells"})


def _verdict_cards(verdicts: pl.DataFrame) -> Any:
    cards = []
    for row in verdicts.filter(pl.col("metric") == "throughput").iter_rows(named=True):
        ratio = theme.percent(row["ratio"]) if row["ratio"] is not None else "no ratio"
        words = choice.step_words(row["part"], row["kind"])
        bounds = f"{row['verdict']} [{theme.interval(row['ci_low'], row['ci_high'])}]"
        cards.append(
            html.Div(
                [
                    html.Span(f"{row['arm']} / {row['baseline']}", className="arms"),
                    html.Span(words, className="step"),
                    html.Span(f"{theme.VERDICT_MARKS[row['verdict']]} {ratio}", className="number"),
                    html.Span(bounds, className="bounds"),
                    html.Span(f"{row['boots']} boots, {row['windows']} pairs of windows", className="bounds"),
                ],
                className=f"card {row['verdict']}",
            )
        )
    return html.Div(cards, className="cards")


def _reasons(verdicts: pl.DataFrame) -> list[Any]:
    said = []
    for row in verdicts.filter(pl.col("metric") == "throughput").iter_rows(named=True):
        words = [*(row["reasons"] or []), *([f"next: {row['next_step']}"] if row["next_step"] else [])]
        if words:
            said.append(html.Li([html.B(f"{row['arm']} / {row['baseline']}: "), *shell.prose("; ".join(words))]))
    return [html.Ul(said, className="details")] if said else []
