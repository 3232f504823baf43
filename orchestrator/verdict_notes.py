"""What stands under a table of verdicts: every reason and every next step once, with a number that its rows carry.

    notes, marks = noted(rows)       # rows of `verdicts.judge` as dicts; marks: for each one the numbers of its notes

Rows of one sweep mostly share what is said of them, and what a command costs is a matter of cells, not of rows: all
pairs of arms of a cell are measured at once, and all cells of a model in one set of boots.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.decision import MORE_WINDOWS

Row = Mapping[str, Any]
HELPS = MORE_WINDOWS.removeprefix("; ")
SHARED = (
    "Each cell's GPU minutes have whole boots in them, which the cells of a model share. Cells of other rows come on "
    "top where they have fewer repeats."
)
COMMAND = re.compile(r"`(.*--repeats (\d+))`")
# The numbers stand in the row already, and without them it is one reason for all rows that have it.
INTERVAL = re.compile(r"^the interval \S+ to \S+ holds")
CELL = ("model", "kind", "prompt_tokens", "output_tokens", "concurrency", "residency", "setting")


@dataclass(frozen=True)
class Note:
    """said: in words. command: what to run, to be copied as it is."""

    said: str
    command: str = ""


def noted(rows: Sequence[Row]) -> tuple[list[Note], list[list[int]]]:
    """The notes, and by row the numbers of its notes, from 1. Reasons come before steps, few repeats before many."""
    reasons: dict[str, list[int]] = {}
    steps: dict[str, list[int]] = {}
    helped: list[int] = []
    for place, row in enumerate(rows):
        for reason in dict.fromkeys(INTERVAL.sub("the interval holds", reason) for reason in row["reasons"]):
            reasons.setdefault(reason, []).append(place)
        if row["next_step"]:
            command = COMMAND.search(row["next_step"])
            steps.setdefault(command[0] if command else row["next_step"], []).append(place)
            if row["next_step"].endswith(MORE_WINDOWS):
                helped.append(place)
    notes: list[Note] = []
    marks: list[list[int]] = [[] for _ in rows]
    last = [(HELPS, helped)] if helped else []
    for number, (text, places) in enumerate([*reasons.items(), *sorted(steps.items(), key=_repeats), *last], 1):
        notes.append(_note(text, [rows[place] for place in places], len(rows)))
        for place in places:
            marks[place].append(number)
    return notes, marks


def _repeats(step: tuple[str, list[int]]) -> int:
    command = COMMAND.fullmatch(step[0])
    return int(command[2]) if command else 0


def _note(text: str, rows: Sequence[Row], of_rows: int) -> Note:
    whose = f"all {of_rows} rows" if 1 < len(rows) == of_rows else _counted(len(rows), "row")
    command = COMMAND.fullmatch(text)
    if command is None:
        return Note(f"{whose}: {text}")
    return Note(f"{whose}: more boots, every cell of the sweep up to {command[2]} repeats: {cost(rows)}", command[1])


def cost(rows: Sequence[Row]) -> str:
    """GPU minutes of the cells of `rows`, in words: of each and of all, an upper bound where they boot together.

    What is true of all such figures is in SHARED.
    """
    minutes: dict[tuple[Any, ...], float] = {}
    unknown: set[tuple[Any, ...]] = set()
    for row in rows:
        cell = tuple(row.get(name) for name in CELL)
        if row["gpu_minutes"] is None:
            unknown.add(cell)
        else:
            minutes[cell] = max(minutes.get(cell, 0.0), row["gpu_minutes"])
    unknown -= minutes.keys()
    if not minutes:
        return "cost not known"
    least, most = f"{min(minutes.values()):.1f}", f"{max(minutes.values()):.1f}"
    each = most if least == most else f"{least} to {most}"
    rest = f"; that of {_counted(len(unknown), 'cell')} is not known" if unknown else ""
    if len(minutes) == 1:
        return f"about {each} GPU minutes{rest}"
    bound = "" if len({cell[0] for cell in minutes}) == len(minutes) else "at most "
    return f"about {each} GPU minutes a cell, {bound}{sum(minutes.values()):.1f} for {len(minutes)} cells{rest}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
