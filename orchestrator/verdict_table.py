"""Verdicts for reading: a line a comparison, and what is to be said of them below, each thing once.

A line is never broken: where it is wider than the terminal, what its neighbours share (the model, then the whole cell)
stands above them instead of in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import Any

import polars as pl
from rich.console import Console

from orchestrator.verdict_notes import SHARED, Note, noted

HEADINGS = ("model", "cell", "C", "arms", "ratio", "95 % interval", "verdict", "boots", "notes")
RIGHT = {"C", "ratio", "boots"}
# How many of the first columns stand above their lines; the first that makes all lines fit is taken.
ABOVE = (0, 1, 3)
FILE_WIDTH = 160  # where nobody's window sets a limit
PROSE_WIDTH = 110  # longer lines of words are hard to read, however wide the window
GAP = "  "


@dataclass(frozen=True)
class VerdictTable:
    """The lines of one sweep on one kind of GPU, as text by column."""

    title: str
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[Note, ...]

    def width(self, above: int) -> int:
        return sum(self._widths()[above:]) + len(GAP) * (len(HEADINGS) - above - 1) + len(_indent(above))

    def shown(self, above: int) -> Iterator[str]:
        """Heading and lines, with the first `above` columns in lines of their own where they change."""
        widths, indent = self._widths()[above:], _indent(above)
        yield indent + _joined(HEADINGS[above:], widths, HEADINGS[above:])
        for shared, lines in groupby(self.lines, key=lambda line: line[:above]):
            if above:
                named = zip(HEADINGS[:above], shared, strict=True)
                yield ", ".join(f"C {text}" if name == "C" else text for name, text in named)
            for line in lines:
                yield indent + _joined(line[above:], widths, HEADINGS[above:])

    def _widths(self) -> list[int]:
        return [max(len(text) for text in column) for column in zip(HEADINGS, *self.lines, strict=True)]


def print_verdicts(verdicts: pl.DataFrame, console: Console | None = None) -> None:
    """Print rows of `verdicts.judge` or of a view; the width is that of the console, where it is one."""
    console = console or Console(markup=False, highlight=False)
    width = console.width if console.is_terminal else FILE_WIDTH
    if verdicts.is_empty():
        console.print("no verdicts: the store holds no repeat with two arms to compare")
    tables = list(_tables(verdicts))
    above = next((n for n in ABOVE if all(table.width(n) <= width for table in tables)), ABOVE[-1])
    for number, table in enumerate(tables):
        console.print(*([""] if number else []), *wrap(table.title, width), sep="\n", style="bold", soft_wrap=True)
        for line in (*table.shown(above), *_below(table.notes, min(width, PROSE_WIDTH))):
            console.print(line, soft_wrap=True)


def _tables(verdicts: pl.DataFrame) -> Iterator[VerdictTable]:
    if "view" not in verdicts.columns:
        verdicts = verdicts.with_columns(view=pl.lit(""), setting=pl.lit(None, pl.String))
    names = short_names(verdicts["model"].unique().to_list())
    of_table = ["view", "sweep", "backend", "gpu_name"]
    for (view, sweep, backend, gpu), frame in verdicts.group_by(of_table, maintain_order=True):
        predicted = ": predictions of a model, not measurements" if backend == "simulated" else ""
        rows = frame.to_dicts()
        notes, marks = noted(rows)
        yield VerdictTable(
            f"{sweep} on {gpu}, {backend}{f', {view}' if view else ''}{predicted}",
            tuple(_line(row, names, numbers) for row, numbers in zip(rows, marks, strict=True)),
            tuple(notes),
        )


def _line(row: Mapping[str, Any], names: Mapping[str, str], notes: Sequence[int]) -> tuple[str, ...]:
    alone = "" if row["residency"] in (None, "resident") else f" {row['residency']}"
    return (
        names[row["model"]],
        f"{row['kind']} {row['prompt_tokens']}/{row['output_tokens']}{alone}",
        row["setting"] or str(row["concurrency"]),
        f"{row['arm']} / {row['baseline']}",
        "none" if row["ratio"] is None else f"{row['ratio']:.3f}",
        "none" if row["ci_low"] is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}",
        row["verdict"],
        str(row["boots"]),
        " ".join(map(str, notes)),
    )


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Models without their makers, `Qwen2.5-3B` for `Qwen/Qwen2.5-3B`, unless two would then be called the same."""
    last = {model: model.rstrip("/").rpartition("/")[2] for model in models}
    times = Counter(last.values())
    return {model: name if times[name] == 1 else model for model, name in last.items()}


def _below(notes: Sequence[Note], width: int) -> Iterator[str]:
    """The notes, numbered. A command has a line of its own, unbroken however long, so that it can be copied."""
    digits = len(str(len(notes)))
    indent = " " * (digits + len(GAP))
    if notes:
        yield ""
    for number, note in enumerate(notes, 1):
        first, *more = wrap(note.said, width - len(indent), break_long_words=False, break_on_hyphens=False)
        yield f"{number:>{digits}}{GAP}{first}"
        yield from (indent + line for line in more)
        if note.command:
            yield f"{indent}{GAP}{note.command}"
    if any(note.command for note in notes):
        yield from ("", *wrap(SHARED, width))


def _joined(texts: Sequence[str], widths: Sequence[int], headings: Sequence[str]) -> str:
    padded = (
        text.rjust(width) if heading in RIGHT else text.ljust(width)
        for text, width, heading in zip(texts, widths, headings, strict=True)
    )
    return GAP.join(padded).rstrip()


def _indent(above: int) -> str:
    return GAP if above else ""
