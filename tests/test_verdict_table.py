"""Verdicts as a person reads them, in windows of several widths: rows that were made by hand, and the record's."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from orchestrator.store import ResultStore
from orchestrator.verdict_notes import SHARED, cost, noted
from orchestrator.verdict_table import HEADINGS, print_verdicts, short_names
from orchestrator.verdicts import VERDICTS, judge

RECORD = Path(__file__).parent.parent / "reference" / "h200"
COMMAND = "python -m orchestrator.sweep sweeps/s.yaml --store a-store --repeats"
FEW = "1 of at least 3 boots"


def step(repeats: int, more: str = "") -> str:
    """As `decision.with_next_step` words it."""
    return f"more boots: 2; `{COMMAND} {repeats}` measures them beside the 1 there are: about 9.0 GPU minutes{more}"


def row(**changes: Any) -> dict[str, Any]:
    return {
        "sweep": "s", "backend": "vllm", "gpu_kind": "H200", "gpu_name": "NVIDIA H200", "model": "Maker/Small-1B",
        "kind": "mixed", "prompt_tokens": 128, "output_tokens": 64, "concurrency": 32, "residency": "resident",
        "arm": "mps2", "baseline": "single", "metric": "throughput", "ratio": 1.25, "ci_low": None, "ci_high": None,
        "verdict": "undecided", "reasons": [FEW], "boots": 1, "gpu_minutes": 2.0, "next_step": step(3),
    } | changes  # fmt: skip


def printed(rows: list[dict[str, Any]] | pl.DataFrame, width: int | None) -> list[str]:
    """Lines as they come out of a terminal that is so wide, or None: of a file."""
    frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows, schema_overrides=dict(VERDICTS))  # type: ignore[arg-type]
    out = io.StringIO()
    terminal = width is not None
    print_verdicts(frame, Console(file=out, width=width, force_terminal=terminal, color_system=None, highlight=False))
    return out.getvalue().splitlines()


@pytest.fixture(scope="module")
def record() -> pl.DataFrame:
    store = ResultStore.open(str(RECORD), create=False)
    return judge(store.read("trials"), store.read("windows")).filter(metric="throughput")


def said_of(row: dict[str, Any]) -> list[str]:
    """The columns of a row from `model` to `boots`, as they are to be read."""
    return [
        row["model"].removeprefix("Qwen/"), f"{row['kind']} {row['prompt_tokens']}/{row['output_tokens']}",
        str(row["concurrency"]), f"{row['arm']} / {row['baseline']}", f"{row['ratio']:.3f}",
        "none" if row["ci_low"] is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}",
        row["verdict"], str(row["boots"]),
    ]  # fmt: skip


def read(lines: list[str]) -> list[list[str]]:
    """The rows in `lines`, with what stands above them put back in front."""
    found: list[list[str]] = []
    above: list[str] = []
    for line in lines:
        cells = re.split(r"\s{2,}", line.strip())
        if " / " in line:
            cells = [*above, *cells]
            # A column that is flushed right may have its number next to the gap of a longer one.
            found.append(cells[: HEADINGS.index("notes")])
        elif not line.startswith(" ") and line:
            above = [] if "model" in cells else [part.removeprefix("C ") for part in line.split(", ")]
    return found


@pytest.mark.parametrize(("width", "above"), [(80, 3), (100, 1), (200, 0), (None, 0)])
def test_the_record_is_read_back_from_a_window_of_any_width(
    record: pl.DataFrame, width: int | None, above: int
) -> None:
    lines = printed(record, width)
    assert read(lines) == [said_of(each) for each in record.to_dicts()]
    heading = next(line for line in lines if "95 % interval" in line)
    assert re.split(r"\s{2,}", heading.strip()) == list(HEADINGS[above:])
    assert max(len(line) for line in lines if "python -m" not in line) <= (width or 160)


def test_what_is_said_is_said_once(record: pl.DataFrame) -> None:
    lines = printed(record, 80)
    for (sweep,), rows in record.group_by("sweep"):
        start = next(number for number, line in enumerate(lines) if line.startswith(f"{sweep} on NVIDIA H200, vllm"))
        section = lines[start : next((n for n, line in enumerate(lines) if n > start and " on NVIDIA" in line), None)]
        few = rows["reasons"].list.contains(FEW).sum()
        told = [line for line in section if line.endswith(FEW)]
        counted = f"all {len(rows)} rows" if few == len(rows) > 1 else f"{few} row{'s' if few > 1 else ''}"
        assert [line.split("  ")[-1] for line in told] == ([f"{counted}: {FEW}"] if few else [])
        commands = [line.strip() for line in section if "python -m" in line]
        assert len(set(commands)) == len(commands)
        assert set(commands) == set(rows["next_step"].drop_nulls().str.extract("`(.*)`").drop_nulls())


def test_a_command_can_be_copied_from_a_narrow_window() -> None:
    lines = printed([row()], 40)
    assert [line for line in lines if line.strip() == f"{COMMAND} 3"]


def test_rows_carry_the_numbers_of_their_notes() -> None:
    interval = "the interval {} to {} holds an end of the margin"
    rows = [
        row(reasons=[interval.format(0.9, 1.1), "drifts"], next_step=step(16), ratio=1.5),
        row(reasons=[], next_step=None, verdict="wins", ratio=1.75),
        row(reasons=[interval.format(0.8, 1.3)], next_step=step(4), ratio=2.5),
    ]
    notes, marks = noted(rows)
    assert [note.said for note in notes] == [
        "2 rows: the interval holds an end of the margin",  # its ends are in the row
        "1 row: drifts",
        "1 row: more boots, every cell of the sweep up to 4 repeats: about 2.0 GPU minutes",
        "1 row: more boots, every cell of the sweep up to 16 repeats: about 2.0 GPU minutes",
    ]
    assert [note.command for note in notes] == ["", "", f"{COMMAND} 4", f"{COMMAND} 16"]
    assert marks == [[1, 2, 4], [], [1, 3]]
    lines = [line for line in printed(rows, 200) if " / " in line]
    assert [re.split(r"\s{2,}", line)[-1] for line in lines] == ["1 2 4", "1", "1 3"]


def test_a_step_without_a_command_is_said_in_its_own_words() -> None:
    (note,), _ = noted([row(reasons=[], next_step="measure anew"), row(reasons=[], next_step="measure anew")])
    assert (note.said, note.command) == ("all 2 rows: measure anew", "")


def test_where_more_windows_would_help_it_is_a_note_of_its_own() -> None:
    noisy = step(3, "; more windows a repeat would help as much")
    notes, marks = noted([row(reasons=[], next_step=text) for text in (noisy, step(3))])
    assert [note.said.partition(": ")[2][:12] for note in notes] == ["more boots, ", "more windows"]
    assert notes[1].said == "1 row: more windows a repeat would help as much"
    assert marks == [[1, 2], [1]]


def test_the_pairs_of_a_cell_cost_it_once() -> None:
    assert cost([row(), row(arm="timesliced2")]) == "about 2.0 GPU minutes"


def test_a_sum_over_cells_that_boot_together_is_an_upper_bound() -> None:
    small = [row(), row(prompt_tokens=512, gpu_minutes=3.5)]
    assert cost(small) == "about 2.0 to 3.5 GPU minutes a cell, at most 5.5 for 2 cells"
    apart = [row(), row(model="Maker/Large-9B", gpu_minutes=3.5)]
    assert cost(apart) == "about 2.0 to 3.5 GPU minutes a cell, 5.5 for 2 cells"


def test_what_is_true_of_all_costs_is_said_where_there_is_one() -> None:
    assert " ".join(printed([row()], 80)).endswith(f"  {SHARED}")
    assert not any("GPU minutes" in line for line in printed([row(next_step=None)], 200))


def test_a_cost_that_is_not_known_is_not_nothing() -> None:
    lost = row(prompt_tokens=512, gpu_minutes=None)
    assert cost([lost]) == "cost not known"
    assert cost([row(), lost]).endswith("; that of 1 cell is not known")


def test_makers_are_named_only_where_two_models_would_be_one() -> None:
    assert short_names(["Qwen/A-1B", "Other/B-1B", "C"]) == {"Qwen/A-1B": "A-1B", "Other/B-1B": "B-1B", "C": "C"}
    both = ["Qwen/A-1B", "Other/A-1B", "Qwen/B"]
    assert short_names(both) == {"Qwen/A-1B": "Qwen/A-1B", "Other/A-1B": "Other/A-1B", "Qwen/B": "B"}
    assert any("Other/A-1B" in line for line in printed([row(model=model) for model in both], 200))


def test_what_sets_rows_apart_is_in_them() -> None:
    """Cells of engines that are alone, and the settings of a view."""
    lines = printed([row(), row(residency="alone")], 200)
    assert sum("128/64 alone" in line for line in lines) == 1
    (line,) = (line for line in printed([row(view="own_peak", setting="peak over 16, 64")], 200) if " / " in line)
    assert "  peak over 16, 64  " in line


def test_predictions_say_so_in_their_title() -> None:
    assert printed([row(backend="simulated")], 200)[0] == (
        "s on NVIDIA H200, simulated: predictions of a model, not measurements"
    )
