"""The sections of the report that look into cells: all metrics, who was busy, latencies, host, certificate, views."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, figures, theme
from dashboards.cell_records import records
from dashboards.certificate_table import certificate_checks
from dashboards.columns import CELL_COLUMNS, PAIR_COLUMNS, RATIO_COLUMNS
from dashboards.host_overhead import with_host_columns
from dashboards.page import Page
from dashboards.table import table
from dashboards.world import HEADLINE, World
from orchestrator.store import ResultStore

MOST_CELLS, MOST_LATENCIES = 40, 16  # keep the page below 8 MB
PLACE = ["model", "kind", "prompt_tokens", "output_tokens", "concurrency"]
CERTIFICATE_COLUMNS = {
    "check": "check",
    "arm": "arm",
    "passed": "passed",
    "windows": "of windows",
    "saw": "what it saw",
}
VIEW_COLUMNS = {
    "view": "view", "setting": "held equal",
    **{name: words for name, words in CELL_COLUMNS.items() if name != "concurrency"},
    **PAIR_COLUMNS, **RATIO_COLUMNS,
}  # fmt: skip


def cell_chapter(page: Page, world: World, store: ResultStore, prefix: str) -> None:
    """Append them; the figures are those of the dashboard's cell page. Raises StoreError."""
    page.section(
        f"{prefix}cells",
        "Cell by cell",
        "All metrics of every comparison, who was busy meanwhile, and how latencies are distributed.",
    )
    places = world.measured.select(PLACE).unique(maintain_order=True).to_dicts()
    shown = {_words(place): place for place in places[:MOST_CELLS]}
    forests = {words: _forest(world.verdicts.filter(**place)) for words, place in shown.items()}
    page.add(page.plot(f"{prefix}cell-ratios", forests, "Left of 1 is less: for latencies that is better.", 460))
    busy = {words: figures.busy_bars(world.measured.filter(**place)) for words, place in shown.items()}
    page.add(page.plot(f"{prefix}cell-busy", busy, "Medians over certified windows.", 460))
    ended = world.trials.filter(pl.col("outcome") == "ok")
    spread = {
        words: figures.latency_distribution(
            records(store, "requests", ended.filter(**place)), world.measured.filter(**place)
        )
        for words, place in list(shown.items())[:MOST_LATENCIES]
    }
    page.add(page.plot(f"{prefix}cell-latencies", spread, "Whole requests in certified windows.", 560))
    if len(places) > MOST_LATENCIES:
        page.add(f"<p class='none'>Of {len(places):,} cells {len(shown)} are drawn here, latencies of {len(spread)};")
        page.add("<code>python -m dashboards.app</code> draws every one.</p>")


def host_chapter(page: Page, world: World, prefix: str) -> None:
    """What the host costs, by kind of load."""
    page.section(
        f"{prefix}host", "What the host costs", "How long the GPU waits for the host, medians over certified windows."
    )
    for (kind,), rows in world.measured.group_by("kind", maintain_order=True):
        fig = figures.host_counters(with_host_columns(rows), world.parameters)
        page.figure(f"{prefix}host {kind}", fig, f"{kind} load, all concurrencies together.", 520)


def view_chapter(page: Page, world: World, prefix: str) -> None:
    """Throughput compared otherwise than at equal total concurrency, where the sweep has such rows."""
    rows = world.views.filter(pl.col("view") != HEADLINE, pl.col("metric") == "throughput")
    if rows.is_empty():
        return
    page.section(
        f"{prefix}views",
        "Compared otherwise",
        "As many requests in flight per engine, every arm at its own best concurrency, or throughput at one latency.",
    )
    labelled = rows.with_columns(
        label=pl.Series([cells.cell_label(row) for row in rows.iter_rows(named=True)], dtype=pl.String),
        series=pl.format("{} / {}", "arm", "baseline"),
    )
    choices = {
        f"{view}, {kind}" + (f", {setting}" if setting else ""): figures.ratio_forest(
            part, "Throughput, compared otherwise", "arm over baseline"
        )
        for (view, kind, setting), part in labelled.group_by("view", "kind", "setting", maintain_order=True)
    }
    page.add(page.plot(f"{prefix}views-forest", choices, "Hollow: undecided; grey: tie.", 460))
    # Beyond six digits a sum made in parallel differs from call to call.
    rounded = rows.with_columns(pl.col("ratio", "ci_low", "ci_high").round_sig_figs(6))
    page.add(table(rounded, VIEW_COLUMNS, "Every view, throughput", world.simulated, sortable=True))


def certificates(page: Page, world: World) -> None:
    """What was checked of the windows, arms apart."""
    arms = dict(world.trials.select("trial_id", "arm").iter_rows())
    own = world.windows.filter(pl.col("trial_id").is_in(list(arms)))
    checks = certificate_checks(own, arms)
    if len(checks):
        page.add(table(checks, CERTIFICATE_COLUMNS, "Checks of the windows", world.simulated))


def _forest(verdicts: pl.DataFrame) -> go.Figure:
    labelled = verdicts.with_columns(
        label=pl.col("metric").replace(theme.METRIC_WORDS), series=pl.format("{} / {}", "arm", "baseline")
    )
    return figures.ratio_forest(labelled, "All metrics, every step", "arm over baseline (grey: tie)")


def _words(place: dict[str, object]) -> str:
    return f"{cells.cell_label(place)}, {place['kind']}, {place['output_tokens']} out, {place['concurrency']} in flight"
