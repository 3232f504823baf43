"""The sections of the report for one world: a sweep on one backend and one kind of GPU."""

from __future__ import annotations

import html
from collections.abc import Iterator

import plotly.graph_objects as go
import polars as pl

from dashboards import answer, cells, figures, health, provenance_table, theme, verdict_map
from dashboards.cell_chapter import cell_chapter, certificates, host_chapter, view_chapter
from dashboards.columns import CELL_COLUMNS, PAIR_COLUMNS
from dashboards.half_chapter import half_chapter
from dashboards.page import Page
from dashboards.table import csv_link, pairs, table
from dashboards.world import World
from orchestrator.store import ResultStore
from orchestrator.trial import REPLAYED, phase_of, replayed

MOST_TRACES, MOST_CSV_ROWS = 60, 4000  # keep the page below 8 MB
STEP_ORDER = [*answer.STEPS, "gain", None]
COLUMN_PX = 560  # two figures stand side by side if each reads at this width
VERDICT_COLUMNS = {
    "model": "model",
    "kind": "load",
    "prompt_tokens": CELL_COLUMNS["prompt_tokens"],
    "output_tokens": "out, tokens",
    "concurrency": "in flight",
    **PAIR_COLUMNS,
    "verdict": "verdict",
    "change": "change, %",
    "low": "low, %",
    "high": "high, %",
    "map_verdict": "over the map",
    "boots": "boots",
    "why": "reasons and next step",
}
SELDOM_DIFFER = ("kind", "output_tokens", "concurrency")
LOST_COLUMNS = {
    "outcome": "outcome",
    "model": "model",
    "arm": "arm",
    "contexts": "contexts",
    "trials": "trials",
    "reason": "reason",
    "log_tail": "end of the log",
}


def chapters(page: Page, world: World, store: ResultStore, prefix: str) -> None:
    """Append every section; `prefix` keeps names apart where a page has several worlds."""
    if prefix:
        page.add(f"<h2 class='world' id='{prefix}top'>{html.escape(world.label)}</h2>")
    if len(world.verdicts):
        _maps(page, world, prefix)
        _gains(page, world, prefix)
        half_chapter(page, world, store, prefix)
    if len(world.measured):
        _latency(page, world, prefix)
        _why(page, world, prefix)
        cell_chapter(page, world, store, prefix)
        host_chapter(page, world, prefix)
        _traces(page, world, prefix)
    view_chapter(page, world, prefix)
    _health(page, world, prefix)
    _provenance(page, world, store, prefix)
    _verdicts(page, world, prefix)


def _maps(page: Page, world: World, prefix: str) -> None:
    page.section(
        f"{prefix}map",
        "Where it wins",
        "Blue: more tokens a second than the arm it is compared with; orange: fewer. Under each gain stands its 95 %"
        " interval in percent. Hatched cells are undecided: the interval, too few boots or failed certificates forbid a"
        " verdict.",
    )
    limit = verdict_map.colour_limit(world.verdicts)
    contexts = world.verdicts["prompt_tokens"].n_unique()
    wide = 150 + 66 * contexts
    for scene, headline, parts in _scenes(world):
        trials = scene.of(world.trials)
        for rows in headline:
            fig = figures.verdict_map(rows, trials, limit, world.parameters)
            page.figure(f"{prefix}map {scene.label} {_pair(rows)}", fig, scene.label, wide + 90)
        if not parts:
            continue
        first = answer.step_words("host_parallelism", scene.kind)
        page.add("<h3>The same gain, split</h3><p class='lead'>Several engines without MPS against one engine is what")
        page.add(f"{first} alone gives; the step from there to MPS is kernel overlap.</p>")
        page.add("<div class='columns'>" if wide < COLUMN_PX else "<div>")
        for rows in parts:
            fig = figures.verdict_map(rows, trials, limit, world.parameters, scale=wide >= COLUMN_PX)
            words = answer.step_words(rows["part"][0], scene.kind)
            page.figure(
                f"{prefix}map {scene.label} {_pair(rows)}", fig, f"{words}: {_pair(rows)}" if words else "", wide
            )
        page.add("</div>")


def _gains(page: Page, world: World, prefix: str) -> None:
    page.section(
        f"{prefix}gain",
        "How the gain changes with context",
        "One line a model; bars are 95 % intervals, hollow marks are undecided. The legend prints the slope of a"
        " log-linear fit, in percentage points of the ratio for each doubling of the context, with its 95 % interval.",
    )
    for scene, headline, _ in _scenes(world):
        for rows in headline:
            fig = figures.gain_over_context(rows, world.parameters)
            page.figure(f"{prefix}gain {scene.label} {_pair(rows)}", fig, scene.label, 520)


def _latency(page: Page, world: World, prefix: str) -> None:
    served = world.measured.filter(~pl.col("kind").str.ends_with(REPLAYED))
    if served.is_empty():  # replayed steps have no requests
        return
    page.section(
        f"{prefix}latency",
        "What it costs in latency",
        "A gain that is paid for in latency shows here. At one fixed concurrency Little's law ties throughput to"
        " request latency, so all points fall on one line; a ladder of concurrencies opens it up.",
    )
    for (kind,), rows in served.group_by("kind", maintain_order=True):
        latency = "e2e_p50_s" if phase_of(kind) == "prefill" else "tpot_p50_s"
        choices = {"all contexts": figures.throughput_over_latency(rows, latency)}
        if rows["concurrency"].n_unique() > 1:
            for (context,), part in rows.sort("prompt_tokens").group_by("prompt_tokens", maintain_order=True):
                choices[f"{theme.tokens(context)} context"] = figures.throughput_over_latency(part, latency)
        words = f"{kind} load; mark shape is the model, bars span the boots from the lowest to the highest mean."
        page.add(page.plot(f"{prefix}tradeoff {kind}", choices, words, 520))
    for scene, headline, _ in _scenes(world):
        if replayed(scene.kind):
            continue
        for rows in headline:
            fig = figures.latency_ratios(rows, world.parameters)
            page.figure(
                f"{prefix}latencies {scene.label} {_pair(rows)}", fig, f"{scene.label}; bars: 95 % intervals.", 520
            )


def _why(page: Page, world: World, prefix: str) -> None:
    page.section(
        f"{prefix}why",
        "Why",
        "What bounded the windows of each arm, and how busy GPU and engines were meanwhile. An arm that moves from an"
        " EngineCore bound to a GPU bound has won its gain from idle GPU time.",
    )
    for scene in cells.scenes(world.measured):
        rows = scene.of(world.measured)
        page.figure(f"{prefix}bound {scene.label}", figures.bound_by(rows, world.parameters), scene.label, 700)
        page.figure(f"{prefix}activity {scene.label}", figures.activity(rows, world.parameters), scene.label, 820)


def _traces(page: Page, world: World, prefix: str) -> None:
    page.section(
        f"{prefix}windows",
        "Every window, in order",
        "Raw rates as they were measured, arms interleaved. Drift moves all arms alike; a boot that differs moves one.",
    )
    traces: dict[str, go.Figure] = {}
    order = {model: index for index, model in enumerate(cells.model_order(world.measured["model"], world.parameters))}
    groups = world.measured.with_columns(rank=pl.col("model").replace_strict(order)).sort(
        "rank", *cells.CELL, "repeat", "order_index"
    )
    parts = groups.drop("rank").partition_by(cells.CELL, maintain_order=True)
    for rows in parts[:MOST_TRACES]:
        traces[_cell_words(rows.row(0, named=True))] = figures.window_trace(rows)
    page.add(page.plot(f"{prefix}trace", traces, "Each mark is one window; a thin cross was not certified.", 520))
    if len(parts) > MOST_TRACES:
        page.add(f"<p class='none'>{len(parts) - MOST_TRACES} more cells are in the store and not drawn here.</p>")


def _health(page: Page, world: World, prefix: str) -> None:
    page.section(
        f"{prefix}health", "How sound the measuring was", "Windows that are not certified, and trials that were lost."
    )
    page.add("<div class='columns'>")
    page.figure(f"{prefix}certificates", figures.certificates(world.measured))
    page.figure(f"{prefix}outcomes", figures.outcomes(world.trials))
    page.add("</div>")
    reasons = health.failure_reasons(world.measured)
    headings = {"check": "check", "windows": "windows", "arms": "arms", "example": "for example"}
    page.add(table(reasons, headings, "Why windows were not certified", world.simulated))
    certificates(page, world)
    page.add(table(health.lost_trials(world.trials), LOST_COLUMNS, "Skipped and failed trials", world.simulated))


def _provenance(page: Page, world: World, store: ResultStore, prefix: str) -> None:
    page.section(f"{prefix}provenance", "Where the numbers come from")
    if world.simulated:
        page.add(f"<p><span class='simulated-badge'>{theme.SIMULATED}</span></p>")
    page.add(pairs(provenance_table.facts(world.trials, len(world.measured)), "Provenance"))
    kept = provenance_table.specs(store, world.sweep, world.trials["spec_sha"].drop_nulls())
    for number, (path, text) in enumerate(kept.items()):
        name = f"{prefix}command-{number}"
        page.add(f"<h3>Sweep file {html.escape(path)}</h3>")
        if text is None:
            page.add("<p class='none'>The store does not keep this sweep file.</p>")
            continue
        page.add(f"<p>To measure the same again: <button type='button' data-copy='{name}'>copy</button></p>")
        page.add(f"<pre id='{name}'>{html.escape(provenance_table.command(world.backend, path))}</pre>")
        page.add(f"<details><summary>The file, {len(text.splitlines())} lines</summary>")
        page.add(f"<pre>{html.escape(text)}</pre></details>")


def _verdicts(page: Page, world: World, prefix: str) -> None:
    page.section(
        f"{prefix}verdicts", "Every verdict", "Throughput; click a heading to sort. The CSV has the latencies too."
    )
    rows = world.verdicts.filter(pl.col("metric") == "throughput").with_columns(
        model=pl.col("model").replace(cells.model_labels(world.verdicts["model"].unique().sort())),
        change=(pl.col("ratio") - 1).round(4) * 100,
        low=(pl.col("ci_low") - 1).round(4) * 100,
        high=(pl.col("ci_high") - 1).round(4) * 100,
        why=pl.concat_list("reasons", pl.concat_list("next_step").list.drop_nulls()),
    )
    same = [column for column in SELDOM_DIFFER if rows[column].n_unique() == 1]
    headings = {column: words for column, words in VERDICT_COLUMNS.items() if column not in same}
    common = ", ".join(f"{VERDICT_COLUMNS[column]} {rows[column][0]}" for column in same)
    name = f"{prefix}verdict-table"
    page.add(f"<div id='{name}'><div class='tools'><label>Filter <input type='search' data-filter='{name}'></label>")
    kept = world.verdicts if len(world.verdicts) <= MOST_CSV_ROWS else world.verdicts.filter(metric="throughput")
    page.add(f"<output></output>{csv_link(kept, f'verdicts-{world.sweep}-{world.backend}.csv')}</div>")
    if len(kept) < len(world.verdicts):
        page.add("<p class='none'>So many cells that the file has throughput only; <code>python -m")
        page.add("orchestrator.verdicts STORE --format csv</code> prints all metrics.</p>")
    page.add(
        table(
            rows, headings, f"Verdicts; in all rows: {common}" if common else "Verdicts", world.simulated, sortable=True
        )
        + "</div>"
    )


def _scenes(world: World) -> Iterator[tuple[cells.Scene, list[pl.DataFrame], list[pl.DataFrame]]]:
    """Each scene with its throughput-and-latency rows by pair: those that answer the question, then the steps."""
    main = answer.candidates(world.verdicts).select("arm", "baseline").unique().rows()
    for scene in cells.scenes(world.verdicts):
        by_pair = scene.of(world.verdicts).partition_by("arm", "baseline", maintain_order=True)
        headline = [rows for rows in by_pair if (rows["arm"][0], rows["baseline"][0]) in main]
        steps = [rows for rows in by_pair if (rows["arm"][0], rows["baseline"][0]) not in main]
        yield scene, headline, sorted(steps, key=lambda rows: STEP_ORDER.index(rows["part"][0]))


def _pair(rows: pl.DataFrame) -> str:
    return f"{rows['arm'][0]} / {rows['baseline'][0]}"


def _cell_words(row: dict[str, object]) -> str:
    words = f"{cells.cell_label(row)}, {row['kind']}, {row['output_tokens']} out, {row['concurrency']} in flight"
    return f"{words}, {row['residency']}"
