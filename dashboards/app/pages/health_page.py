"""Health: certificates, lost trials, one arm against itself, residency, where the time went, GPUs taken out."""

from __future__ import annotations

from dataclasses import asdict

import polars as pl
from dash import html

from dashboards import cells, figures, health, settings
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen
from dashboards.app.panel import Block, Panel, Table
from dashboards.chapters import LOST_COLUMNS
from dashboards.columns import CELL_COLUMNS, RATIO_COLUMNS
from dashboards.noise_table import noise
from orchestrator.account import read_accounts, shares
from orchestrator.equivalence import residency
from orchestrator.quarantine import quarantined

PATH = "/health"
SPENT = {"windows": "in windows", "boot": "booting", "between": "between windows", "teardown": "teardown"}
RESIDENCY = (
    CELL_COLUMNS
    | {"arm": "arm", "ratio": "resident / alone", "ci_low": "low", "ci_high": "high"}
    | {"bound": "bound", "verdict": "verdict", "boots": "boots"}
)


def blocks(chosen: Chosen) -> list[Block]:
    head = shell.heading("May these numbers be believed?", "What was checked, what failed, what was lost.")
    if chosen.place is None:
        return [head, shell.nothing_here("The store holds no committed trial yet.", [])]
    world = chosen.place.world
    trials, measured = world.trials, world.measured
    good = int(measured["certified"].fill_null(False).sum())
    lost = health.lost_trials(trials)
    return [
        head,
        shell.simulated_banner(world.simulated),
        choice.choices([choice.place_choice(chosen, PATH)]),
        _faults(chosen),
        shell.figures_line(
            [
                (f"{good:,} of {len(measured):,}", "windows certified"),
                (f"{trials.filter(outcome='ok').height:,} of {len(trials):,}", "trials ended well"),
                (f"{trials['boot_id'].n_unique():,}", "boots"),
                (f"{trials['gpu_uuid'].drop_nulls().n_unique():,}", "GPUs"),
            ]
        ),
        Panel("certificates", figures.certificates(measured), _certified(measured), "", 420, zoom="certificates"),
        Panel("outcomes", figures.outcomes(trials), _outcomes(trials), "", 420, zoom="outcomes"),
        Table(
            "failed-checks",
            "Why windows were not certified",
            health.failure_reasons(measured),
            {"check": "check", "windows": "windows", "arms": "arms", "example": "for example"},
            world.simulated,
        ),
        Table("lost-trials", "Skipped and failed trials", lost, LOST_COLUMNS, world.simulated),
        *_same(chosen),
        _noise(chosen),
        *_residency(chosen),
        *_account(chosen),
        *_quarantine(chosen),
    ]


def _faults(chosen: Chosen) -> Block:
    if not chosen.snapshot.faults:
        return None
    items = [html.Li(fault) for fault in chosen.snapshot.faults]
    return html.Div([html.Strong("Left out, damaged:"), html.Ul(items)], className="faults", role="alert")


def _same(chosen: Chosen) -> list[Block]:
    assert chosen.place is not None
    world = chosen.place.world
    rows = settings.same_against_same(world.verdicts.filter(pl.col("metric") == "throughput"), world.trials)
    head = shell.section(
        "One arm against itself (A/A)", "Two arms that are the same in everything: a winner here would be a false one."
    )
    if rows.is_empty():
        return [
            head,
            shell.nothing_here(
                f"No arm of {world.sweep} is there twice. These sweeps repeat an arm:", settings.who_repeats_an_arm()
            ),
        ]
    called = rows.filter(pl.col("verdict").is_in(["wins", "loses"])).height
    labelled = rows.with_columns(
        label=pl.Series([f"{cells.cell_label(row)}, {row['concurrency']}" for row in rows.iter_rows(named=True)]),
        series=pl.format("{} / {}", "arm", "baseline"),
    )
    return [
        head,
        html.P(f"A winner was called in {called} of {len(rows)} comparisons.", className="answer"),
        Panel(
            "same-against-same",
            figures.ratio_forest(labelled, "The same arm twice", "ratio; 1 is the truth"),
            rows,
            "",
            460,
            CELL_COLUMNS | {"arm": "arm", "baseline": "the same again"} | RATIO_COLUMNS,
            zoom=f"aa {chosen.place.name}",
        ),
    ]


def _noise(chosen: Chosen) -> Block:
    assert chosen.place is not None
    world = chosen.place.world
    rows = noise(world.trials, world.measured.select("trial_id", "window_index", "certified", "rate"))
    return Table(
        "noise",
        "How much one arm differs from itself: root mean square of log ratios (0.01: one percent)",
        rows.with_columns(pl.col("rms_log").round(4)),
        CELL_COLUMNS | {"between": "between", "comparisons": "comparisons", "rms_log": "rms of log ratios"},
        world.simulated,
    )


def _residency(chosen: Chosen) -> list[Block]:
    assert chosen.place is not None
    world = chosen.place.world
    head = shell.section(
        "Residency",
        "Engines of other arms stay loaded but idle beside the one that works. Harmless: the interval of its rate among"
        " them over its rate alone, in the same boots, lies within half the tie margin.",
    )
    rows = residency(world.trials, world.windows)
    if len(rows):
        return [head, Table("residency", "Rate among residents over rate alone", rows, RESIDENCY, world.simulated)]
    counts = dict(world.trials["residency"].drop_nulls().value_counts().iter_rows())
    said = ", ".join(f"{count:,} trials {name}" for name, count in sorted(counts.items())) or "no trial"
    planned = [
        settings.Question(f"sweeps/{spec.name}.yaml", spec.question)
        for spec in settings.shipped()
        if spec.residency_check
    ]
    words = f"No arm of {world.sweep} was measured both resident and alone in one boot ({said})."
    return [head, shell.nothing_here(words + (" These sweeps check it:" if planned else ""), planned)]


def _quarantine(chosen: Chosen) -> list[Block]:
    assert chosen.place is not None
    place = chosen.place
    found = quarantined(place.store, place.world.sweep)
    head = shell.section("Quarantined GPUs", "A GPU that does not come back clean gets no further work.")
    if not found:
        return [head, html.P("None was taken out of this sweep.", className="none")]
    rows = pl.DataFrame([asdict(one) for one in found]).with_columns(
        noticed=pl.from_epoch((pl.col("noticed_unix_s") * 1000).cast(pl.Int64), "ms").dt.strftime("%Y-%m-%d %H:%M UTC")
    )
    headings = {"host": "host", "gpu": "GPU", "reason": "reason", "noticed": "noticed"}
    return [head, Table("quarantined", "GPUs taken out", rows, headings, place.world.simulated)]


def _account(chosen: Chosen) -> list[Block]:
    """Where the time of the GPUs went, by the hosts' own account."""
    assert chosen.place is not None
    place = chosen.place
    head = shell.section("Where the GPU's time went", "Of the time for which a block of the sweep held a GPU.")
    accounts = read_accounts(place.store, place.world.sweep)
    if accounts.is_empty():
        return [head, html.P("This sweep kept no account.", className="none")]
    share = shares(accounts)
    numbers = [(f"{share['held_s']:,.0f} s", f"held, {len(accounts):,} blocks")]
    numbers += [(f"{share[name]:.0%}", words) for name, words in SPENT.items()]
    headings = {"host": "host", "gpu_uuid": "GPU", "held_s": "held, s", "boot_s": "boot, s", "windows_s": "windows, s",
                "teardown_s": "teardown, s"}  # fmt: skip
    table = Table("accounts", "Account by block", accounts, headings, place.world.simulated)
    return [head, shell.figures_line(numbers), table]


def _certified(measured: pl.DataFrame) -> pl.DataFrame:
    return measured.group_by("arm", pl.col("certified").fill_null(False)).len("windows").sort("arm", "certified")


def _outcomes(trials: pl.DataFrame) -> pl.DataFrame:
    return trials.group_by("arm", "outcome").len("trials").sort("arm", "outcome")
