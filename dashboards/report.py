"""The report: one offline HTML file that answers the question from a store.

    python -m dashboards.report STORE -o report.html [--sweep NAME]

Opens with the answer, then the verdict map, the curves behind it, the reasons, the health of the measuring, the
provenance and every verdict. What a simulated GPU predicts is labelled so in the title, on each figure and each table.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dashboards import answer, theme
from dashboards.chapters import chapters
from dashboards.page import Page
from dashboards.world import World, split
from orchestrator.errors import EXIT_OK, MpscapeError, StoreError
from orchestrator.store import ResultStore


def report(store: ResultStore, sweep: str | None = None) -> str:
    """The whole page. Raises StoreError where the store cannot be read or has no such sweep."""
    if sweep is not None and sweep not in store.sweeps():
        raise StoreError(f"no sweep {sweep!r} in {store.uri!r}; it holds: {', '.join(store.sweeps()) or 'none'}")
    trials, windows = store.read("trials", sweep), store.read("windows", sweep)
    worlds = split(trials, windows)
    simulated = [world for world in worlds if world.simulated]
    title = f"{theme.SIMULATED}: " if simulated and len(simulated) == len(worlds) else ""
    page = Page(title + answer.QUESTION)
    page.add(
        f"<header><p class='overline'>mpscape report · {html.escape(', '.join(store.sweeps()) or 'empty store')}</p>"
    )
    page.add(f"<h1>{html.escape(answer.QUESTION)}</h1></header>")
    if not worlds:
        page.add("<p class='answer'>The store holds no committed trial yet, so there is nothing to answer from.</p>")
    for world in worlds:
        opening(page, world, alone=len(worlds) == 1)
    faults(page, store.faults)
    page.add("<!--contents-->")
    for number, world in enumerate(worlds):
        chapters(page, world, store, prefix="" if len(worlds) == 1 else f"w{number + 1}-")
    page.add("<footer>Made by <code>python -m dashboards.report</code>; everything shown is inside this file.</footer>")
    return page.render()


def opening(page: Page, world: World, alone: bool) -> None:
    """The answer of one world: label, sentence, tally, and what stands behind it."""
    if not alone:
        page.add(f"<h3>{html.escape(world.label)}</h3>")
    if world.simulated:
        page.add(
            f"<div class='simulated-banner' role='note'><strong>{theme.SIMULATED}</strong>Every number below comes from"
            " a model of the GPU in virtual time. Nothing here was observed on hardware.</div>"
        )
    sentences = answer.headline(world.verdicts) or [
        f"No arm could be compared with its baseline: of {len(world.trials)} trials"
        f" {world.trials.filter(outcome='ok').height} ended well."
    ]
    for sentence in sentences:
        page.add(f"<p class='answer'>{html.escape(sentence)}</p>")
    page.add(_tally(answer.candidates(world.verdicts)))
    items = "".join(f"<li>{html.escape(words)}</li>" for words in answer.detail(world.verdicts))
    page.add(f"<ul class='details'>{items}</ul>")


def faults(page: Page, found: Sequence[str]) -> None:
    """What the store left out, loudly."""
    if found:
        items = "".join(f"<li>{html.escape(fault)}</li>" for fault in found)
        page.add(
            f"<div class='faults' role='alert'><strong>Left out of this report, damaged:</strong><ul>{items}</ul></div>"
        )


def _tally(rows: pl.DataFrame) -> str:
    counts = dict(rows["verdict"].value_counts().iter_rows())
    if not counts:
        return ""
    order = [(verdict, counts[verdict]) for verdict in theme.VERDICT_MARKS if verdict in counts]
    bar = "".join(f"<i class='{verdict}' style='flex:{count}'></i>" for verdict, count in order)
    legend = "".join(
        f"<li><span class='swatch {verdict}'></span><b>{count}</b> {theme.VERDICT_MARKS[verdict]} {verdict}</li>"
        for verdict, count in order
    )
    return f"<div class='tally'><div class='bar' aria-hidden='true'>{bar}</div><ul>{legend}</ul></div>"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: writes the file and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.report", description=__doc__.splitlines()[0])
    parser.add_argument("store", metavar="STORE", help="folder or URL")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default: report.html")
    parser.add_argument("--sweep", metavar="NAME", help="only this sweep")
    asked = parser.parse_args(arguments)
    try:
        text = report(ResultStore.open(asked.store, create=False), asked.sweep)
    except MpscapeError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    asked.output.write_text(text, encoding="utf-8")
    print(f"{asked.output} ({len(text.encode()) / 1e6:.1f} MB)")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
