"""What the simulated and recorded checks of the method found: a plot, and the tables of docs/method.md.

    python -m dashboards.coverage reference/coverage --plot docs/coverage.svg --page docs/method.md

The record is made by `python -m orchestrator.coverage`. Tables stand on the page between `<!-- table: NAME -->` and
`<!-- end -->`, and are written anew there; the rest of the page is left as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from dashboards import theme
from dashboards.coverage_tables import with_tables
from dashboards.picture import STYLE
from orchestrator.errors import EXIT_BAD_INPUT, EXIT_OK

WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 960, 470, 66, 96, 860, 270
LOWEST = 0.90
CLAIM = 0.95
Z = 1.96


def read(record: Path) -> dict[str, Any]:
    """The record's files by name. Raises FileNotFoundError."""
    names = ("coverage", "equal_arms", "power", "cost", "equal_speed", "recorded_equal_arms")
    frames: dict[str, Any] = {name: pl.read_csv(record / f"{name}.csv") for name in names}
    return frames | {"noise": json.loads((record / "noise.json").read_text(encoding="utf-8"))}


def wilson(hits: int, tries: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212)."""
    centre = (hits + Z**2 / 2) / (tries + Z**2)
    half = Z / (tries + Z**2) * math.sqrt(hits * (tries - hits) / tries + Z**2 / 4)
    return centre - half, centre + half


def plot(coverage: pl.DataFrame) -> str:
    """The SVG: share of intervals that held the planted gain, by gain; recorded noises one by one and together."""
    recorded = coverage.filter(pl.col("recorded"), pl.col("sweeps") > 0)
    bins = recorded.group_by("gain_from", "gain_to").agg(pl.col("sweeps", "held").sum()).sort("gain_from")
    sweeps, held = int(recorded["sweeps"].sum()), int(recorded["held"].sum())
    said = f"{100 * held / sweeps:.1f} % of {sweeps:,} simulated intervals hold the planted gain"
    parts = [
        _text(32, 40, "Does a 95 % interval hold the truth?", 22, weight=700),
        _text(32, 64, f"{said}. Noise as recorded on an H200; sequential rule, stopped by verdicts.", 14, "muted"),
    ]
    edges = sorted({*coverage["gain_from"].to_list(), *coverage["gain_to"].to_list()})
    low, high = float(edges[0]), float(edges[-1])

    def across(gain: float) -> float:
        return float(LEFT + PLOT_WIDTH * (gain - low) / (high - low))

    def up(share: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - max(share, LOWEST)) / (1 - LOWEST)

    for percent in range(round(LOWEST * 100), 101, 2):
        y = up(percent / 100)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{LEFT + PLOT_WIDTH}"/>')
        parts.append(_text(LEFT - 10, y + 4, f"{percent} %", 12, "muted", "end"))
    y = up(CLAIM)
    parts.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + PLOT_WIDTH}" stroke="#b35a00" stroke-dasharray="6 4"/>')
    parts.append(_text(LEFT + PLOT_WIDTH, y - 6, "what is claimed: 95 %", 12, "label", "end"))
    noises = recorded["noise"].unique(maintain_order=True).to_list()
    for index, noise in enumerate(noises):
        colour = theme.MODEL_COLOURS[index % len(theme.MODEL_COLOURS)]
        shift = (index - (len(noises) - 1) / 2) * 8
        for row in recorded.filter(pl.col("noise") == noise).iter_rows(named=True):
            x = across((row["gain_from"] + row["gain_to"]) / 2) + shift
            parts.append(f'<circle cx="{x:.1f}" cy="{up(row["held"] / row["sweeps"]):.1f}" r="3" fill="{colour}"/>')
    for row in bins.iter_rows(named=True):
        x, (bottom, top) = across((row["gain_from"] + row["gain_to"]) / 2), wilson(row["held"], row["sweeps"])
        middle = up(row["held"] / row["sweeps"])
        parts.append(f'<path class="hatch" d="M{x:.1f} {up(bottom):.1f}V{up(top):.1f}" stroke-width="2"/>')
        parts.append(f'<path class="hatch" d="M{x - 30:.1f} {middle:.1f}H{x + 30:.1f}" stroke-width="3"/>')
    for gain in edges:
        words = f"{round(100 * gain):+d} %".replace("-", theme.MINUS)
        parts.append(_text(across(gain), TOP + PLOT_HEIGHT + 20, words, 12, "muted", "middle"))
    parts.append(_text(LEFT + PLOT_WIDTH / 2, TOP + PLOT_HEIGHT + 42, "planted gain", 13, "muted", "middle"))
    for index, noise in enumerate(noises):
        x, y = 32 + 460 * (index % 2), TOP + PLOT_HEIGHT + 68 + 18 * (index // 2)
        colour = theme.MODEL_COLOURS[index % len(theme.MODEL_COLOURS)]
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(x + 12, y, noise, 12))
    height = HEIGHT + 18 * math.ceil(len(noises) / 2)
    parts.append(_text(LEFT + PLOT_WIDTH, 90, "bars: all together, with its own 95 % interval", 12, "muted", "end"))
    title = escape(f"Simulated: {said}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="12"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, size: int, kind: str = "", anchor: str = "start", weight: int = 400) -> str:
    style = f' class="{kind}"' if kind else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"{style}>'
        f"{escape(words)}</text>"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: writes the plot and the page's tables, and prints their paths."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="folder that orchestrator.coverage wrote")
    parser.add_argument("--plot", type=Path, help="SVG to write")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables are written anew")
    asked = parser.parse_args(arguments)
    try:
        record = read(asked.record)
    except FileNotFoundError as error:
        print(f"no record there: {error}; make it with python -m orchestrator.coverage", file=sys.stderr)
        return EXIT_BAD_INPUT
    if asked.plot:
        asked.plot.write_text(plot(record["coverage"]), encoding="utf-8")
        print(asked.plot)
    if asked.page:
        asked.page.write_text(with_tables(asked.page.read_text(encoding="utf-8"), record), encoding="utf-8")
        print(asked.page)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
