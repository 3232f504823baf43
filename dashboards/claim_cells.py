"""What a store says of the cells that a sweep file plans: one reading a cell, with its interval or why it has none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import polars as pl

from orchestrator import decision
from orchestrator.points import cell_of, points
from orchestrator.sequential import ALPHA, MIN_BOOTS
from orchestrator.spec import SWEEPS, load_spec
from orchestrator.student import quantile
from orchestrator.trial import REPLAYED
from workloads.variants import split

KEY = ["model", "kind", "prompt_tokens", "output_tokens", "concurrency"]

# A model's size in its name: `-0.5B`, and `-4b` before an ending such as `-pt`.
SIZE = re.compile(r"-(\d+(?:\.\d+)?)[Bb](?=-|$)")

# Three-valued: None where the measurement leaves it open.
Truth = bool | None


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One cell of a sweep file; `billions` is the model's size as its name says it."""

    billions: float
    model: str
    kind: str
    output_tokens: int
    prompt_tokens: int
    concurrency: int

    @property
    def size(self) -> str:
        model, variant = split(self.model)
        return f"{size_of(model)}B" + (f" {variant}" if variant else "")

    @property
    def load(self) -> str:
        """What tells it from the usual mix of 128 output tokens; empty for that."""
        if self.kind == "mixed":
            return "" if self.output_tokens == 128 else f" with {self.output_tokens} out"
        return f" {self.kind.replace(REPLAYED, ' replayed')}"


@dataclass(frozen=True, slots=True)
class Reading:
    """A measured value of a cell with its 95 % interval over boots; `refused` says why it counts for nothing.

    value: a ratio of throughputs or a share. verdict: of the pair of arms, empty for a share.
    """

    cell: Cell
    refused: str = ""
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    boots: int = 0
    verdict: str = ""

    def above(self, bound: float) -> Truth:
        """Whether the whole interval lies above the bound; False: below it; None: it straddles, or does not count."""
        return None if self.refused else True if self.low > bound else False if self.high < bound else None

    def below(self, bound: float) -> Truth:
        return None if self.refused else True if self.high < bound else False if self.low > bound else None

    @property
    def place(self) -> str:
        return f"{self.cell.size}{self.cell.load} at {self.cell.prompt_tokens}"

    @property
    def words(self) -> str:
        return f"{self.place}: {self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def size_of(model: str) -> str:
    """Billions of parameters as the model's name has them. Raises ValueError where it has none.

    >>> size_of("google/gemma-3-4b-pt")
    '4'
    """
    written = SIZE.search(model)
    if written is None:
        raise ValueError(f"{model}: no size in the name")
    return written[1]


@cache
def planned(sweep: str) -> tuple[Cell, ...]:
    """The cells of `sweeps/<sweep>.yaml` by model size, kind, output tokens and context. Raises SpecError."""
    spec = load_spec(SWEEPS / f"{sweep}.yaml")
    found = []
    for point in points(spec.sweep, spec.workload):
        cell = cell_of(point.values, spec.gpu, spec.workload.seed)
        billions = float(size_of(split(cell.model)[0]))
        work = cell.workload
        found.append(Cell(billions, cell.model, work.kind, work.output_tokens, work.prompt_tokens, cell.concurrency))
    return tuple(sorted(found))


def ratios(verdicts: pl.DataFrame, sweep: str, arm: str, baseline: str) -> tuple[Reading, ...]:
    """One reading a planned cell: throughput of `arm` over `baseline`, from rows of `verdicts.judge` of this sweep.

    It counts only if it was measured on a GPU, with the planned number of clients, in three boots or more, and nothing
    forbids a verdict (docs/method.md, the grounds). Predictions of the simulator are no readings.
    """
    rows = verdicts.filter(sweep=sweep, arm=arm, baseline=baseline, metric="throughput", backend="vllm")
    seen = _Seen(rows.with_columns(forbidden=forbidden()))
    return tuple(ratio_reading(cell, seen.one(cell)) for cell in planned(sweep))


def forbidden() -> pl.Expr:
    """Whether a ground stands against a verdict of the row, as opposed to an interval that leaves it open."""
    bent = (pl.col("verdict") == "undecided") & (
        decision.word(pl.col("ci_low").log(), pl.col("ci_high").log(), pl.col("margin")) != "undecided"
    )
    return pl.col("p_value").is_null() | bent


def boot_means(trials: pl.DataFrame, windows: pl.DataFrame, sweep: str, counters: Iterable[str]) -> pl.DataFrame:
    """One row a cell, arm and boot: means of counters over certified windows.

    Without arms that were measured alone after the others had gone, which are for the check of residency.
    """
    names = list(counters)
    alone_after_the_others = (pl.col("residency") == "alone") & (pl.len().over("repeat_id") == 1)
    kept = trials.filter(sweep=sweep, backend="vllm").filter(~alone_after_the_others.fill_null(False))
    cell = kept.filter(outcome="ok").select("trial_id", "attempt_id", *KEY, "gpu_kind", "residency", "arm")
    sound = windows.filter("certified").select("trial_id", "attempt_id", "boot_id", *names)
    joined = sound.join(cell, on=["trial_id", "attempt_id"])
    return joined.group_by(*KEY, "gpu_kind", "residency", "arm", "boot_id").agg(pl.col(names).mean())


def shares(boots: pl.DataFrame, sweep: str, arm: str, counter: str) -> tuple[Reading, ...]:
    """One reading a planned cell: an arm's mean of a counter with Student's interval over boots, from `boot_means`.

    Boots are the independent units (docs/method.md), so each counts once, however many windows it has.
    """
    of_cell = boots.filter(arm=arm).group_by(*KEY, "gpu_kind", "residency")
    seen = _Seen(of_cell.agg(boots=pl.col(counter).count(), value=pl.col(counter).mean(), sd=pl.col(counter).std()))
    return tuple(_share(cell, seen.one(cell)) for cell in planned(sweep))


class _Seen:
    """Rows by cell, and what numbers of clients were measured of the rest of it."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self._rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        self._clients: dict[tuple[Any, ...], set[int]] = {}
        for row in rows.iter_rows(named=True):
            key = tuple(row[name] for name in KEY)
            self._rows.setdefault(key, []).append(row)
            self._clients.setdefault(key[:-1], set()).add(row["concurrency"])

    def one(self, cell: Cell) -> dict[str, Any] | str:
        """The one row that counts for `cell`, else why there is none."""
        key = tuple(getattr(cell, name) for name in KEY)
        rows = self._rows.get(key, [])
        if not rows:
            others = sorted(self._clients.get(key[:-1], ()))
            asked = f", planned are {cell.concurrency}" if others else ""
            return f"measured with {', '.join(map(str, others))} clients{asked}" if others else "not measured"
        if len(rows) > 1:
            return "measured on several kinds of GPU, or resident and alone"
        (row,) = rows
        return row if row["boots"] >= MIN_BOOTS else f"{row['boots']} of {MIN_BOOTS} boots"


def ratio_reading(cell: Cell, row: Mapping[str, Any] | str) -> Reading:
    """row: of a table of verdicts, with `forbidden`; or why there is none."""
    if isinstance(row, str):
        return Reading(cell, row)
    if row["forbidden"]:
        return Reading(cell, "; ".join(row["reasons"]) or "no verdict allowed")
    return Reading(cell, "", row["ratio"], row["ci_low"], row["ci_high"], row["boots"], row["verdict"])


def _share(cell: Cell, row: Mapping[str, Any] | str) -> Reading:
    if isinstance(row, str):
        return Reading(cell, row)
    return student_reading(cell, row["value"], row["sd"], row["boots"])


def student_reading(cell: Cell, mean: float, deviation: float, boots: int) -> Reading:
    """A mean over boots, which are the independent units, with Student's interval."""
    reach = quantile(1 - ALPHA / 2, boots - 1) * deviation / boots**0.5
    return Reading(cell, "", mean, mean - reach, mean + reach, boots)


def places(readings: Iterable[Reading]) -> str:
    """`0.5B, 1.5B at 128, 512 and 3B at 128 to 16384`: three contexts or more, each twice the last, are a range."""
    alike: dict[tuple[str, str], list[str]] = {}
    ordered = sorted(readings, key=lambda reading: (reading.cell.load, reading.cell))
    for (load, size), group in groupby(ordered, lambda reading: (reading.cell.load, reading.cell.size)):
        contexts = [reading.cell.prompt_tokens for reading in group]
        run = len(contexts) > 2 and all(2 * one == other for one, other in pairwise(contexts))
        shown = f"{contexts[0]} to {contexts[-1]}" if run else ", ".join(map(str, contexts))
        alike.setdefault((load, shown), []).append(size)
    return " and ".join(f"{', '.join(sizes)}{load} at {shown}" for (load, shown), sizes in alike.items())
