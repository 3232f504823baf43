"""Recommendation: for a model, a context and a latency, which arm, what it gains, how sure, how to launch it."""

from __future__ import annotations

from typing import Any

import polars as pl
from dash import dcc, html

from dashboards import cells, figures, theme
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen, models
from dashboards.app.panel import Block, Panel
from dashboards.recipe import recipe
from dashboards.recommendation import LIMITS, advise
from orchestrator.trial import phase_of

PATH = "/recommend"


def blocks(chosen: Chosen) -> list[Block]:
    head = shell.heading("What should I run?", "By what was measured in this sweep, and no further.")
    if chosen.place is None:
        return [head, shell.nothing_here("The store holds no committed trial yet.", [])]
    world = chosen.place.world
    said = chosen.selection
    rows = world.measured.filter(pl.col("kind") == chosen.kind)
    if rows.is_empty():
        return [head, shell.nothing_here(f"{world.sweep} has no window of {chosen.kind} load yet.", [])]
    there = [model for model in models(chosen) if model in set(rows["model"])]
    model = said.model if said.model in there else there[0]
    rows = rows.filter(pl.col("model") == model)
    contexts = [int(found) for found in sorted(set(rows["prompt_tokens"]))]
    context = said.context if said.context in contexts else contexts[0]
    rows = rows.filter(pl.col("prompt_tokens") == context)
    lengths = sorted(set(rows["output_tokens"]))
    length = said.output_tokens if said.output_tokens in lengths else lengths[0]
    rows = rows.filter(pl.col("output_tokens") == length)
    if len(set(rows["residency"])) > 1:
        rows = rows.filter(residency="resident")
    verdicts = world.verdicts.filter(
        pl.col("kind") == chosen.kind, model=model, prompt_tokens=context, output_tokens=length
    )
    metrics = [name for name in LIMITS if rows[name].is_not_null().any()]
    limit = said.limit if said.limit in metrics else ("tpot_p99_s" if "tpot_p99_s" in metrics else metrics[0])
    most_s = _number(said.most_s)
    advice = advise(rows, verdicts, limit, most_s)
    trial = _trial(world.trials, rows, advice.arm, advice.concurrency)
    labels = cells.model_labels(there)
    pick = [
        choice.place_choice(chosen, PATH),
        choice.kind_choice(chosen, PATH),
        choice.choice(
            "model", [(labels[m], PATH + said.but(model=m, context=None).search, m == model) for m in there], "model"
        ),
        choice.choice(
            "context",
            [(theme.tokens(c), PATH + said.but(model=model, context=c).search, c == context) for c in contexts],
            "context",
        ),
        choice.plain_choice(chosen, PATH, "output_tokens", "output tokens", lengths, length),
        choice.choice(
            "limit on",
            [(LIMITS[name], PATH + said.but(limit=name, most_s=None).search, name == limit) for name in metrics],
            "limit",
        ),
        _amount(said.most_s, LIMITS[limit]),
    ]
    label = f"{labels[model]}, {theme.tokens(context)} context, {chosen.kind} load, {length:,} output tokens"
    return [
        head,
        shell.simulated_banner(world.simulated),
        choice.choices(pick),
        html.Div(
            [
                html.P(label, className="overline"),
                html.P(advice.sentence, className="answer"),
                html.P(shell.prose(advice.sure), className="lead"),
            ],
            className="advice",
        ),
        Panel(
            "options",
            figures.throughput_over_latency(rows, "e2e_p50_s" if phase_of(chosen.kind) == "prefill" else "tpot_p50_s"),
            advice.options,
            "Every arm at every concurrency that was measured.",
            460,
            zoom=f"options {label}",
        ),
        *_launch(trial, world.simulated),
    ]


def _amount(value: str | None, words: str) -> Any:
    return html.Label(
        [
            html.Span(f"at most, seconds of {words}", className="question"),
            dcc.Input(
                id={"type": "amount", "name": "most_s"}, type="number", min=0, step="any", debounce=True,
                value=value, placeholder="no limit", className="amount",
            ),
        ],
        className="choice list",
    )  # fmt: skip


def _launch(trial: dict[str, Any] | None, simulated: bool) -> list[Block]:
    if trial is None:
        return []
    words = (
        "Sizes and arguments are those of the trials: KV that never binds at this load, prefix caching off."
        " Change them and the numbers above no longer speak of it."
    )
    if simulated:
        words += " The GPU was simulated: sizes are planned, cores were not assigned."
    return [shell.section("How to launch it", words), shell.code(recipe(trial), "recipe")]


def _trial(trials: pl.DataFrame, rows: pl.DataFrame, arm: str | None, concurrency: int | None) -> dict[str, Any] | None:
    if arm is None:
        return None
    ids = rows.filter(arm=arm, concurrency=concurrency)["trial_id"].unique()
    found = trials.filter(pl.col("trial_id").is_in(ids.implode())).sort("repeat")
    return found.row(0, named=True) if len(found) else None


def _number(words: str | None) -> float | None:
    try:
        return None if words is None else float(words)
    except ValueError:
        return None
