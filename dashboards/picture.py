"""The landscape as one static SVG: verdict map and gain curves, drawn without a browser.

    python -m dashboards.picture STORE -o docs/landscape.svg [--sweep NAME] [--arm ARM]

The picture brings its own background, light or dark by the reader's colour scheme, so it reads on any page. The same
store gives the same bytes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from dashboards import answer, cells, gain_curves, theme, verdict_map
from orchestrator.errors import EXIT_OK, MpscapeError, StoreError
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge

WIDTH, MARGIN, CELL_WIDTH, CELL_HEIGHT, PLOT_HEIGHT = 960, 32, 134, 54, 260
STYLE = """
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1d232b}
.page{fill:#ffffff}.muted{fill:#5d6672}.grid{stroke:#dfe3e8}.label{fill:#b35a00;font-weight:700}.hatch{stroke:#5d6672}
.onlight{fill:#1d232b}.ondark{fill:#ffffff}.band{fill:#8a929d;opacity:.16}
@media (prefers-color-scheme: dark){text{fill:#e7eaee}.page{fill:#14181d}.muted{fill:#9aa4b1}.grid{stroke:#2f353d}
.label{fill:#ffb454}.onlight{fill:#1d232b}.ondark{fill:#ffffff}}
"""


def picture(verdicts: pl.DataFrame) -> str:
    """The SVG of one scene's rows of one pair of arms. Raises ValueError where there is no ratio to draw."""
    rows = gain_curves.known(verdicts)
    if rows.is_empty():
        raise ValueError("no pair of arms has a ratio yet")
    simulated = cells.one_backend(rows)
    models, contexts = cells.model_order(verdicts["model"]), sorted(set(verdicts["prompt_tokens"]))
    labels = cells.model_labels(models)
    left = MARGIN + 14 + max(8 * len(label) for label in labels.values())
    wide = min(CELL_WIDTH, (WIDTH - left - MARGIN) / len(contexts))
    top = 96 + (28 if simulated else 0)
    parts = _head(rows, simulated)
    parts += _map(rows, models, contexts, labels, (left, top), wide)
    bottom = top + len(models) * CELL_HEIGHT + 26
    parts += _ticks([(left + (i + 0.5) * wide, c) for i, c in enumerate(contexts)], bottom - 8)
    parts += _curves(rows, models, labels, (left, bottom + 48), wide * len(contexts))
    height = bottom + 48 + PLOT_HEIGHT + 70
    said = escape(
        verdict_map.summary(verdicts) if not simulated else f"{theme.SIMULATED}. {verdict_map.summary(verdicts)}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}">\n'
        f"<title>{said}</title>\n<style>{STYLE}</style>\n"
        '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path class="hatch" d="M0 0V7" stroke-width="2"/></pattern></defs>\n'
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="12"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _head(rows: pl.DataFrame, simulated: bool) -> list[str]:
    first = rows.row(0, named=True)
    loads = sorted(set(rows["concurrency"].drop_nulls()))
    asked = f"{loads[0]:,}" if len(loads) == 1 else f"{loads[0]:,} to {loads[-1]:,}" if loads else "as many"
    where = f"{first['gpu_kind']}, {first['kind']} load, {asked} requests in flight"
    lines = [
        text_at(MARGIN, 42, f"{first['arm']} against {first['baseline']}: throughput", "", 22, weight=700),
        text_at(MARGIN, 66, f"{where}. Gain with its 95 % interval; hatched: undecided.", "muted", 14),
    ]
    return [*lines, text_at(MARGIN, 92, theme.SIMULATED, "label", 15)] if simulated else lines


def _map(
    rows: pl.DataFrame,
    models: list[str],
    contexts: list[int],
    labels: dict[str, str],
    at: tuple[float, float],
    wide: float,
) -> list[str]:
    left, top = at
    end = math.log(verdict_map.colour_limit(rows))
    parts = []
    known = {(r["model"], r["prompt_tokens"]): r for r in rows.iter_rows(named=True)}
    for i, model in enumerate(models):
        y = top + i * CELL_HEIGHT
        parts.append(text_at(left - 12, y + CELL_HEIGHT / 2 + 5, labels[model], "", 14, "end"))
        for j, context in enumerate(contexts):
            x, row = left + j * wide, known.get((model, context))
            if row is None:
                parts.append(text_at(x + wide / 2, y + CELL_HEIGHT / 2 + 5, "no ratio", "muted", 12, "middle"))
                continue
            parts += _cell(row, x, y, wide, max(-1.0, min(1.0, math.log(row["ratio"]) / end)))
    return parts


def _cell(row: dict[str, Any], x: float, y: float, wide: float, gain: float) -> list[str]:
    fill, text = _colour(gain)
    box = f'x="{x + 2:.1f}" width="{wide - 4:.1f}"'
    parts = [f'<rect {box} y="{y + 2}" height="{CELL_HEIGHT - 4}" rx="4" fill="{fill}"/>']
    if row["verdict"] == "undecided":
        parts += [
            f'<rect {box} y="{edge}" height="8" fill="url(#hatch)" opacity="0.55"/>'
            for edge in (y + 2, y + CELL_HEIGHT - 10)
        ]
    middle = x + wide / 2
    head = f"{theme.VERDICT_MARKS[row['verdict']]} {theme.percent(row['ratio'])}"
    one_boot = row["ci_low"] is None and row["boots"] == 1
    interval = "one boot" if one_boot else theme.interval(row["ci_low"], row["ci_high"])
    return [
        *parts,
        text_at(middle, y + 26, head, text, 15, "middle", 700),
        text_at(middle, y + 41, interval, text, 11, "middle"),
    ]


def _curves(
    rows: pl.DataFrame, models: list[str], labels: dict[str, str], at: tuple[float, float], wide: float
) -> list[str]:
    left, top = at
    ends = [v for c in ("ratio", "ci_low", "ci_high") for v in rows[c].drop_nulls()]
    margin = max(rows["margin"])
    low, high = min([*ends, 1 - margin]), max([*ends, 1 + margin])
    step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if (high - low) / s <= 6)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    contexts = sorted(set(rows["prompt_tokens"]))
    span = float(math.log(contexts[-1] / contexts[0])) or 1.0

    def across(context: int) -> float:
        return left + 20 + (wide - 190) * math.log(context / contexts[0]) / span

    def up(ratio: float) -> float:
        return float(top + PLOT_HEIGHT * (high - ratio) / (high - low))

    parts = [text_at(left, top - 14, "throughput ratio over context (log scale); grey: tie", "muted", 13)]
    for k in range(round((high - low) / step) + 1):
        y = up(low + k * step)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{left + wide - 150:.1f}"/>')
        parts.append(text_at(left - 12, y + 4, f"×{low + k * step:.4g}", "muted", 12, "end"))
    parts.append(
        f'<rect class="band" x="{left:.1f}" width="{wide - 150:.1f}" y="{up(1 + margin):.1f}"'
        f' height="{up(1 - margin) - up(1 + margin):.1f}"/>'
    )
    ends_at: list[tuple[float, str, str]] = []
    for index, model in enumerate(models):
        line = rows.filter(pl.col("model") == model).sort("prompt_tokens")
        if line.is_empty():
            continue
        colour = theme.MODEL_COLOURS[index % len(theme.MODEL_COLOURS)]
        dots = [(across(r["prompt_tokens"]), r) for r in line.iter_rows(named=True)]
        path = "L".join(f"{x:.1f} {up(r['ratio']):.1f}" for x, r in dots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for x, r in dots:
            if r["ci_low"] is not None and r["ci_high"] is not None:
                parts.append(f'<path d="M{x:.1f} {up(r["ci_low"]):.1f}V{up(r["ci_high"]):.1f}" stroke="{colour}"/>')
            hollow = r["verdict"] == "undecided"
            fill = f'class="page" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
            parts.append(f'<circle cx="{x:.1f}" cy="{up(r["ratio"]):.1f}" r="4.5" {fill}/>')
        ends_at.append((up(dots[-1][1]["ratio"]), labels[model], colour))
    parts += _end_labels(ends_at, left + wide - 140)
    return parts + _ticks([(across(context), context) for context in contexts], top + PLOT_HEIGHT + 22)


def _end_labels(ends: list[tuple[float, str, str]], x: float) -> list[str]:
    """Names at the lines' ends, pushed down where they would overlap."""
    parts, lowest = [], -math.inf
    for y, label, colour in sorted(ends):
        lowest = max(y + 4, lowest + 17)
        parts.append(f'<circle cx="{x:.1f}" cy="{lowest - 4:.1f}" r="4.5" fill="{colour}"/>')
        parts.append(text_at(x + 10, lowest, label, "", 13))
    return parts


def _ticks(places: list[tuple[float, int]], y: float) -> list[str]:
    return [text_at(x, y, theme.tokens(context), "muted", 13, "middle") for x, context in places]


def _colour(gain: float) -> tuple[str, str]:
    """The tile's colour for a gain from -1 to 1 on the light scale, and the class of a text that reads on it."""
    scale = theme.GAIN_LIGHT
    place = (gain + 1) / 2 * (len(scale) - 1)
    index = min(int(place), len(scale) - 2)
    a, b = (([int(scale[i][k : k + 2], 16) for k in (1, 3, 5)]) for i in (index, index + 1))
    rgb = [round(p + (q - p) * (place - index)) for p, q in zip(a, b, strict=True)]
    luminance = (0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]) / 255
    return "#" + "".join(f"{c:02x}" for c in rgb), "onlight" if luminance > 0.45 else "ondark"


def text_at(x: float, y: float, words: str, style: str, size: int, anchor: str = "start", weight: int = 400) -> str:
    kind = f' class="{style}"' if style else ""
    heavy = f' font-weight="{weight}"' if weight != 400 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{heavy}{kind}>{escape(words)}</text>'
    )


def chosen(verdicts: pl.DataFrame, arm: str | None) -> pl.DataFrame:
    """The rows to draw: the scene with the most cells, measurements before predictions, and its first candidate arm.

    Raises StoreError where there is none.
    """
    rows = answer.candidates(verdicts)
    rows = rows if arm is None else rows.filter(pl.col("arm") == arm)
    found = [(scene, scene.of(rows)) for scene in cells.scenes(rows)]
    if not found:
        raise StoreError("no arm was compared with a baseline" + (f" under the name {arm!r}" if arm else ""))
    _, best = min(found, key=lambda item: (item[0].simulated, -len(item[1])))
    return best.partition_by("arm", "baseline", maintain_order=True)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: writes the file and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.picture", description=__doc__.splitlines()[0])
    parser.add_argument("store", metavar="STORE", help="folder or URL")
    parser.add_argument("-o", "--output", type=Path, default=Path("landscape.svg"), help="default: landscape.svg")
    parser.add_argument("--sweep", metavar="NAME", help="only this sweep")
    parser.add_argument("--arm", metavar="ARM", help="this candidate arm (default: the first)")
    asked = parser.parse_args(arguments)
    try:
        store = ResultStore.open(asked.store, create=False)
        rows = chosen(judge(store.read("trials", asked.sweep), store.read("windows", asked.sweep)), asked.arm)
        if gain_curves.known(rows).is_empty():
            raise StoreError("no cell of that arm has a ratio yet: see python -m orchestrator.verdicts STORE")
    except MpscapeError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    asked.output.write_text(picture(rows), encoding="utf-8")
    print(asked.output)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
