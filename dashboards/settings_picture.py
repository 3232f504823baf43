"""One engine and two, before and after the engines were set up well, as a static SVG.

    python -m dashboards.settings_picture reference/h200-untuned reference/h200 -o docs/settings.svg

Rates of both stores' landscapes over that of the first store's one engine, cell by cell: what settings give stands
beside what a second engine gives.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import polars as pl

from dashboards import cells, theme
from dashboards.claim_cells import KEY
from dashboards.gains_by_settings import gains_by_settings
from dashboards.picture import MARGIN, STYLE, WIDTH, text_at
from orchestrator.errors import EXIT_OK, MpscapeError, StoreError
from orchestrator.store import ResultStore

TOP, PLOT_HEIGHT, GAP, STEP = 118, 250, 64, 0.5
# What is drawn, in the order of the legend: which store, which arm, colour and dashes.
LINES = (
    ("one engine, {}", 0, "single", "#858c96", ""),
    ("two under MPS, {}", 0, "mps2", "#858c96", "6 5"),
    ("one engine, {}", -1, "single", "#d9822b", ""),
    ("two under MPS, {}", -1, "mps2", "#2f7fc4", "6 5"),
)


def settings_picture(rows: pl.DataFrame) -> str:
    """rows: of `gains_by_settings`, of which the first store and the last are drawn. The same rows give the same bytes.

    Raises StoreError where the two have no cell in common.
    """
    ends = (min(rows["order"], default=0), max(rows["order"], default=0))
    kept = rows.filter(pl.col("order").is_in(ends)).filter(pl.len().over(KEY) == 2)
    if kept.is_empty():
        raise StoreError("the first store and the last have no cell of the landscape in common")
    kept = kept.sort("order").with_columns(base=pl.col("rate_single").first().over(KEY))
    models = cells.model_order(kept["model"])
    highest = max(kept.select(pl.max_horizontal("rate_single", "rate_mps2") / pl.col("base")).to_series())
    high = math.ceil(highest / STEP) * STEP
    wide = (WIDTH - 2 * MARGIN - 30 - GAP * (len(models) - 1)) / len(models)
    names = dict(zip(ends, kept.unique("order").sort("order")["settings"], strict=True))
    parts = _head(kept, [names[end] for end in ends])
    for index, model in enumerate(models):
        left = MARGIN + 30 + index * (wide + GAP)
        parts += _panel(kept.filter(model=model), model, left, wide, high, ends)
    said = escape(
        "Throughput of one engine and of two under MPS, before and after tuning: " + ", ".join(names.values())
    )
    height = TOP + PLOT_HEIGHT + 46
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}">\n'
        f"<title>{said}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="12"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _head(rows: pl.DataFrame, settings: Sequence[str]) -> list[str]:
    boots = [rows.filter(order=order)["boots"] for order in sorted(set(rows["order"]))]
    before, after = (" to ".join(dict.fromkeys((str(own.min()), str(own.max())))) for own in boots)
    parts = [
        text_at(MARGIN, 38, "Throughput over that of one engine before tuning", "", 20, weight=700),
        text_at(
            MARGIN, 60, f"grey: before tuning, means of {before} boots a cell; coloured: after, of {after}", "muted", 13
        ),
    ]
    for place, (words, which, _, colour, dashes) in enumerate(LINES):
        x, y = MARGIN + 450 * (place % 2), 80 + 18 * (place // 2)
        parts.append(_stroke(f"M{x} {y - 4}h26", colour, dashes))
        parts.append(text_at(x + 34, y, words.format(f"graphs {settings[which]}"), "", 13))
    return parts


def _panel(rows: pl.DataFrame, model: str, left: float, wide: float, high: float, ends: tuple[int, int]) -> list[str]:
    contexts = sorted(set(rows["prompt_tokens"]))
    span = math.log(contexts[-1] / contexts[0]) or 1.0

    def across(context: int) -> float:
        return left + 14 + (wide - 28) * math.log(context / contexts[0]) / span

    def up(ratio: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - ratio / high)

    parts = []
    for tick in range(round(high / STEP) + 1):
        y = up(tick * STEP)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}h{wide:.1f}"/>')
        parts.append(text_at(left - 8, y + 4, f"×{tick * STEP:g}", "muted", 12, "end"))
    for _, which, arm, colour, dashes in LINES:
        line = rows.filter(order=ends[which]).sort("prompt_tokens")
        parts += _line(line, f"rate_{arm}", across, up, colour, dashes)
    parts.append(text_at(left + wide, TOP + 16, cells.model_labels([model])[model], "", 15, "end", 700))
    ticks = [text_at(across(c), TOP + PLOT_HEIGHT + 20, theme.tokens(c), "muted", 12, "middle") for c in contexts]
    return [
        *parts,
        *ticks,
        text_at(left + wide / 2, TOP + PLOT_HEIGHT + 38, "tokens of a prompt", "muted", 12, "middle"),
    ]


def _line(
    line: pl.DataFrame,
    rate: str,
    across: Callable[[int], float],
    up: Callable[[float], float],
    colour: str,
    dashes: str,
) -> list[str]:
    dots = [(across(row["prompt_tokens"]), up(row[rate] / row["base"])) for row in line.iter_rows(named=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in dots)
    return [_stroke(path, colour, dashes)] + [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in dots
    ]


def _stroke(path: str, colour: str, dashes: str) -> str:
    broken = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{broken}/>'


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: writes the file and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.settings_picture", description=__doc__.splitlines()[0])
    parser.add_argument("stores", metavar="STORE", nargs="+", help="stores with the landscape, oldest settings first")
    parser.add_argument("-o", "--output", type=Path, default=Path("settings.svg"), help="default: settings.svg")
    asked = parser.parse_args(arguments)
    try:
        stores = [ResultStore.open(store, create=False) for store in asked.stores]
        asked.output.write_text(settings_picture(gains_by_settings(stores)), encoding="utf-8")
    except MpscapeError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(asked.output)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
