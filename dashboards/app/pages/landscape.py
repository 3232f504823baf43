"""The landing page: the answer in a sentence, the verdict map, and the way into each of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from dash import html

from dashboards import answer, cells, figures, theme, verdict_map
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen
from dashboards.app.panel import Block, Panel
from dashboards.chapters import VERDICT_COLUMNS

PATH = "/"


def blocks(chosen: Chosen) -> list[Block]:
    if chosen.place is None:
        return [shell.heading(answer.QUESTION, "The store holds no committed trial yet; this page follows it.")]
    world = chosen.place.world
    throughput = chosen.rows.filter(pl.col("metric") == "throughput")
    said = [html.P(sentence, className="answer") for sentence in answer.headline(throughput)] or [
        html.P(
            f"No arm could be compared with its baseline yet: of {len(world.trials)} trials"
            f" {world.trials.filter(outcome='ok').height} ended well.",
            className="answer",
        )
    ]
    shown: list[Block] = [
        shell.heading(answer.QUESTION),
        shell.simulated_banner(world.simulated),
        *said,
        _tally(throughput),
        choice.choices(
            [
                choice.place_choice(chosen, PATH),
                choice.kind_choice(chosen, PATH),
                choice.pair_choice(chosen, PATH),
                choice.view_choice(chosen, PATH),
                choice.plain_choice(chosen, PATH, "concurrency", "in flight", chosen.concurrencies, chosen.concurrency),
                choice.plain_choice(
                    chosen, PATH, "output_tokens", "output tokens", chosen.output_lengths, chosen.output_tokens
                ),
                choice.plain_choice(chosen, PATH, "residency", "engines", chosen.residencies, chosen.residency),
                choice.plain_choice(chosen, PATH, "setting", "held equal", chosen.settings, chosen.setting),
            ]
        ),
    ]
    if throughput.is_empty():
        return shown
    link = _link(chosen)
    trials = world.trials.filter(pl.col("kind") == chosen.kind)
    if chosen.concurrency is not None:
        trials = trials.filter(pl.col("concurrency") == chosen.concurrency)
    contexts = throughput["prompt_tokens"].n_unique()
    shown += [
        Panel(
            "verdict-map",
            figures.verdict_map(
                throughput, trials, verdict_map.colour_limit(world.verdicts), world.parameters, True, link
            ),
            throughput,
            f"{chosen.label}. Blue: more tokens a second; orange: fewer; under each gain its 95 % interval."
            " Hatched: undecided. Click a cell to see what is behind it.",
            240 + 66 * contexts,
            VERDICT_COLUMNS_SHORT,
            f"map {chosen.label} {chosen.pair}",
            360 + 190 * contexts,
        ),
        _cells(throughput, link),
    ]
    if contexts > 1:
        shown.append(
            Panel(
                "gain-over-context",
                figures.gain_over_context(throughput, world.parameters),
                throughput,
                "One line a model; bars are 95 % intervals, hollow marks are undecided.",
                520,
                VERDICT_COLUMNS_SHORT,
                f"gain {chosen.label} {chosen.pair}",
            )
        )
    return shown


VERDICT_COLUMNS_SHORT = {
    name: words
    for name, words in VERDICT_COLUMNS.items()
    if name in ("model", "prompt_tokens", "concurrency", "arm", "baseline", "verdict", "map_verdict", "boots")
} | {"ratio": "ratio", "ci_low": "low", "ci_high": "high", "reasons": "reasons", "next_step": "next step"}


def _link(chosen: Chosen) -> Any:
    def link(row: Mapping[str, Any]) -> str:
        here = chosen.selection.but(model=row["model"], context=row["prompt_tokens"], repeat=None)
        return PATH + here.search

    return link


def _tally(rows: pl.DataFrame) -> Any:
    counts = dict(rows["verdict"].value_counts().iter_rows())
    order = [(verdict, counts[verdict]) for verdict in theme.VERDICT_MARKS if verdict in counts]
    if not order:
        return None
    bar = [html.I(className=verdict, style={"flex": count}) for verdict, count in order]
    legend = [
        html.Li([html.Span(className=f"swatch {verdict}"), html.B(count), f" {theme.VERDICT_MARKS[verdict]} {verdict}"])
        for verdict, count in order
    ]
    return html.Div([html.Div(bar, className="bar", **{"aria-hidden": "true"}), html.Ul(legend)], className="tally")


def _cells(rows: pl.DataFrame, link: Any) -> Any:
    """The map's cells as links, for keyboards and screen readers."""
    items = []
    for row in rows.sort("model", "prompt_tokens").iter_rows(named=True):
        ratio = theme.percent(row["ratio"]) if row["ratio"] is not None else "no ratio"
        items.append(
            html.Li(
                html.A(
                    [cells.cell_label(row), html.B(f" {theme.VERDICT_MARKS[row['verdict']]} {ratio}")],
                    href=link(row),
                    **{"data-go": "cell", "aria-label": f"{cells.cell_label(row)}: {row['verdict']}, {ratio}"},
                )
            )
        )
    return html.Details(
        [html.Summary(f"The {len(items)} cells as links"), html.Ul(items, className="cells")], open=len(items) <= 2
    )
