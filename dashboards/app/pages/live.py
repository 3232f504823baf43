"""Live progress: how far each sweep is, its pace, and what came in last."""

from __future__ import annotations

import time

import polars as pl
from dash import html

from dashboards import figures
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen
from dashboards.app.panel import Block, Panel, Table
from dashboards.app.site import Place
from dashboards.columns import CELL_COLUMNS
from dashboards.progress_curve import by_model_and_arm, progress
from dashboards.sweep_file import planned_trials

PATH = "/live"
RECENT = 12


def blocks(chosen: Chosen) -> list[Block]:
    head = shell.heading("How far is it?", "This page follows the store; nothing needs to be reloaded.")
    if chosen.place is None:
        return [head, shell.nothing_here("The store holds no committed trial yet.", [])]
    place = chosen.place
    world = place.world
    planned = _planned(place)
    trials = world.trials
    state = progress(trials, planned)
    return [
        head,
        shell.simulated_banner(world.simulated),
        choice.choices([choice.place_choice(chosen, PATH)]),
        _bar(state.done, planned),
        shell.figures_line(
            [
                (f"{state.done:,}" + (f" of {planned:,}" if planned is not None else ""), "trials committed"),
                (f"{trials.filter(outcome='failed').height:,}", "failed"),
                (_since(state.last_unix_s), "since the last commit"),
                (_duration(state.left_s), "left at the last pace"),
            ]
        ),
        Panel(
            "progress",
            figures.progress_curve(trials, planned, world.simulated),
            trials.group_by("committed_unix_s", "outcome").len("trials").sort("committed_unix_s", "outcome"),
            "Dotted: what the sweep file asks for." if planned is not None else "The store keeps no sweep file of it.",
            460,
            zoom=f"progress {place.name}",
        ),
        Table(
            "by-arm",
            "By model and arm",
            by_model_and_arm(trials),
            {"model": "model", "arm": "arm", "repeats": "repeats", "ok": "ok", "skipped": "skipped",
             "failed": "failed", "last": "last commit (UTC)"},
            world.simulated,
        ),
        Table(
            "recent",
            "Last trials",
            _recent(trials, world.measured),
            {"committed": "committed (UTC)"} | CELL_COLUMNS
            | {"arm": "arm", "repeat": "repeat", "outcome": "outcome", "tokens_per_s": "tokens/s", "reason": "reason"},
            world.simulated,
        ),
    ]  # fmt: skip


def _planned(place: Place) -> int | None:
    """By the sweep file of the newest trials."""
    newest = place.world.trials.drop_nulls("spec_sha").sort("committed_unix_s")
    if newest.is_empty():
        return None
    text = place.store.spec_text(place.world.sweep, newest["spec_sha"][-1])
    return None if text is None else planned_trials(text, place.world.backend, place.world.gpu_kind)


def _bar(done: int, planned: int | None) -> Block:
    if not planned:
        return None
    return html.Div(
        html.Div(className="done", style={"width": f"{100 * min(1.0, done / planned):.1f}%"}),
        className="progress", role="progressbar",
        **{"aria-valuenow": done, "aria-valuemin": 0, "aria-valuemax": planned, "aria-label": "trials committed"},
    )  # fmt: skip


def _recent(trials: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    rates = measured.group_by("trial_id").agg(tokens_per_s=pl.col("rate").mean())
    return (
        trials.sort("committed_unix_s", "arm", descending=[True, False], nulls_last=True)
        .head(RECENT)
        .join(rates, on="trial_id", how="left", maintain_order="left")
        .with_columns(
            committed=pl.from_epoch((pl.col("committed_unix_s") * 1000).cast(pl.Int64), "ms").dt.strftime(
                "%Y-%m-%d %H:%M:%S"
            )
        )
    )


def _since(unix_s: float | None) -> str:
    return "n/a" if unix_s is None else _duration(max(0.0, time.time() - unix_s))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} m" if hours else f"{minutes} m {rest:02d} s"
