"""What is behind the verdicts on one cell: windows, latencies, counters, certificate, and how to go on."""

from __future__ import annotations

from typing import Any

import polars as pl
from dash import html

from dashboards import figures, sweep_file, theme
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen
from dashboards.app.panel import Block, Panel, Table
from dashboards.cell_records import records
from dashboards.certificate_table import certificate_checks
from dashboards.latency_distribution import latencies as latencies_of
from dashboards.latency_distribution import quantiles
from dashboards.telemetry import readings
from orchestrator.trial import phase_of

PATH = "/"
# Figures of a cell stand two side by side where there is room.
NARROW = 460
WINDOW_COLUMNS = {
    "arm": "arm",
    "repeat": "repeat",
    "round_index": "round",
    "rate": "tokens/s",
    "ttft_p50_s": "TTFT p50, s",
    "tpot_p50_s": "TPOT p50, s",
    "e2e_p50_s": "latency p50, s",
    "certified": "certified",
    "bound_by": "bound by",
    "certificate_failures": "failures",
}
BUSY = {
    "gpu_active_share": ("GPU active", 100.0),
    "sm_active_share": ("SM active", 100.0),
    "tensor_active_share": ("tensor cores", 100.0),
    "dram_active_share": ("DRAM active", 100.0),
    "engine_core_cpu_max": ("busiest EngineCore", 100.0),
    "frontend_cpu_max": ("busiest frontend", 100.0),
}


def first_blocks(chosen: Chosen) -> list[Block]:
    """The two figures beside the verdicts, drawn at once."""
    if chosen.place is None or chosen.cell is None:
        return []
    world = chosen.place.world
    measured, verdicts = chosen.in_cell(world.measured), chosen.in_cell(world.verdicts)
    key = " ".join(map(str, chosen.cell.values()))
    return [
        Panel(
            "cell-ratios",
            figures.ratio_forest(_labelled(verdicts), "All metrics, every step", "arm over baseline (grey: tie)"),
            verdicts,
            "Left of 1 is less: for latencies that is better. Hollow: undecided.",
            NARROW,
            zoom=f"ratios {key}",
        ),
        Panel(
            "cell-windows",
            figures.window_trace(measured),
            measured,
            "Each mark is one window, in the order measured; a thin cross was not certified.",
            NARROW,
            WINDOW_COLUMNS,
            f"windows {key}",
        ),
    ]


def figure_blocks(chosen: Chosen) -> list[Block]:
    """What else the summary of the sweep knows of the cell, drawn when the reader comes near."""
    if chosen.place is None or chosen.cell is None:
        return []
    world, cell = chosen.place.world, chosen.cell
    measured = chosen.in_cell(world.measured)
    ladder = world.measured.filter(**{name: value for name, value in cell.items() if name != "concurrency"})
    key = " ".join(map(str, cell.values()))
    latency = "e2e_p50_s" if phase_of(cell["kind"]) == "prefill" else "tpot_p50_s"
    return [
        Panel(
            "cell-tradeoff",
            figures.throughput_over_latency(ladder, latency),
            ladder,
            "Every concurrency of this model and context; bars span the boots.",
            NARROW,
            WINDOW_COLUMNS,
            f"tradeoff {key}",
        ),
        Panel(
            "cell-busy",
            figures.busy_bars(measured),
            measured,
            "Medians over certified windows: who was busy while the arm had the load.",
            NARROW,
            {"arm": "arm", "repeat": "repeat", **{name: words for name, (words, _) in BUSY.items()}, "power_w": "W",
             "sm_clock_mhz": "MHz"},
            f"busy {key}",
        ),
    ]  # fmt: skip


def raw_blocks(chosen: Chosen) -> list[Block]:
    """Requests, readings and certificates, read from this cell's files in the store."""
    if chosen.place is None or chosen.cell is None:
        return []
    world, store = chosen.place.world, chosen.place.store
    trials, measured = chosen.in_cell(world.trials), chosen.in_cell(world.measured)
    ended = trials.filter(pl.col("outcome") == "ok")
    repeats = sorted(set(ended["repeat"]))
    repeat = chosen.selection.repeat if chosen.selection.repeat in repeats else (repeats[0] if repeats else None)
    one = measured.filter(pl.col("repeat") == repeat)
    requests = records(store, "requests", ended)
    samples = records(store, "samples", ended.filter(pl.col("repeat") == repeat))
    windows = records(store, "windows", ended)
    key = " ".join(map(str, chosen.cell.values()))
    arms = dict(trials.select("trial_id", "arm").iter_rows())
    return [
        choice.choices([choice.plain_choice(chosen, PATH, "repeat", "repeat of the counters", repeats, repeat)]),
        Panel(
            "cell-latencies",
            figures.latency_distribution(requests, measured),
            quantiles(latencies_of(requests, measured)) if len(measured) else requests.clear(),
            "From the time stamps of whole requests in certified windows; the table has the quantiles.",
            NARROW,
            zoom=f"latencies {key}",
        ),
        Panel(
            "cell-telemetry",
            figures.telemetry(samples, one),
            readings(samples, one) if len(one) else samples.clear(),
            "Arms take turns, and only the arm at hand has load.",
            NARROW,
            zoom=f"telemetry {key} {repeat}",
        ),
        shell.section("Certificate", "What was checked of each window, so that its number may be believed."),
        Table(
            "cell-certificate",
            "Checks of this cell's windows",
            certificate_checks(windows, arms),
            {"check": "check", "arm": "arm", "passed": "passed", "windows": "of windows", "saw": "what it saw"},
            world.simulated,
        ),
        *_go_on(chosen, trials),
    ]


def _labelled(verdicts: pl.DataFrame) -> pl.DataFrame:
    return verdicts.with_columns(
        label=pl.col("metric").replace(theme.METRIC_WORDS),
        series=pl.format("{} / {}", "arm", "baseline"),
    )


def _go_on(chosen: Chosen, trials: pl.DataFrame) -> list[Any]:
    """The sweep file of this cell alone: as it was, and with as many boots as would decide it."""
    assert chosen.place is not None and chosen.cell is not None
    store, world = chosen.place.store, chosen.place.world
    shas = trials["spec_sha"].drop_nulls().unique().sort().to_list()
    text = store.spec_text(world.sweep, shas[-1]) if shas else None
    head = shell.section(
        "Again, or further",
        "A sweep file for this cell alone. Repeats keep their identity: in the same store only what is missing is"
        " measured, in a new store everything is.",
    )
    if text is None:
        return [head, html.P("The store does not keep the sweep file of this cell.", className="none")]
    measured = int(trials["repeat"].max() or 0) + 1  # type: ignore[arg-type]
    wanted = chosen.in_cell(world.verdicts).filter(pl.col("metric") == "throughput", verdict="undecided")
    boots = wanted["boots_wanted"].drop_nulls()
    repeats = max(measured, *boots) if len(boots) else measured
    words = (
        f"To decide what is undecided here: {repeats} repeats instead of {measured}, as cell.yaml."
        if repeats > measured
        else f"To measure it again: {measured} repeats, as cell.yaml."
    )
    target = store.uri if repeats > measured else "NEW_STORE"
    return [
        head,
        html.P(words),
        shell.code(sweep_file.only_this_cell(text, chosen.cell, repeats), "cell-spec"),
        shell.code(sweep_file.command("cell.yaml", target, world.backend), "cell-command"),
    ]
