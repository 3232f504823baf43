"""The cells that a sweep section spells out: grid times zip rows, plus include, minus exclude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import cast

from orchestrator.spec_sections import AXES, Axis, SweepSection, WorkloadSection
from orchestrator.trial import Cell, Kind, Workload, phase_of

Values = Mapping[Axis, str | int]


@dataclass(frozen=True, slots=True)
class Spelled:
    """One cell by axis; an axis that nothing gives is missing. include: its place in that list, None in the grid.

    repeats: its own number of them, where it has one.
    """

    values: Values
    include: int | None = None
    repeats: int | None = None

    def has(self, wanted: Values) -> bool:
        return all(self.values.get(axis) == value for axis, value in wanted.items())


def points(sweep: SweepSection, workload: WorkloadSection) -> tuple[Spelled, ...]:
    """Every cell: the grid's, the first of AXES varying slowest and zip rows fastest, then those of include."""
    excluded = [entry.given() for entry in sweep.exclude]
    return tuple(point for point in spelled(sweep, workload) if not any(point.has(values) for values in excluded))


def spelled(sweep: SweepSection, workload: WorkloadSection) -> Iterator[Spelled]:
    """Every cell before `exclude`."""
    common: dict[Axis, str | int] = {
        axis: value for axis in AXES if (value := getattr(workload, axis, None)) is not None
    }
    for values in _grid_and_zip(sweep):
        yield Spelled(_complete(common | values))
    for index, entry in enumerate(sweep.include):
        yield Spelled(_complete(common | entry.given()), include=index, repeats=entry.repeats)


def cell_of(values: Values, gpu_kind: str, seed: int) -> Cell:
    """The cell of a complete point."""
    workload = Workload(
        kind=cast(Kind, values["kind"]),
        prompt_tokens=int(values["prompt_tokens"]),
        output_tokens=int(values["output_tokens"]),
        seed=seed,
    )
    return Cell(gpu_kind, str(values["model"]), workload, int(values["concurrency"]))


def _grid_and_zip(sweep: SweepSection) -> Iterator[dict[Axis, str | int]]:
    lists = {axis: values for axis in AXES if (values := getattr(sweep.grid, axis)) is not None}
    columns = {axis: values for axis in AXES if (values := getattr(sweep.zip, axis)) is not None}
    rows = list(zip(*columns.values(), strict=True)) if columns else [()]
    if not lists and not columns:
        return
    for combination in product(*lists.values()):
        for row in rows:
            yield dict(zip((*lists, *columns), (*combination, *row), strict=True))


def _complete(values: dict[Axis, str | int]) -> Values:
    """A prefill request has one output token, whether it is said or not; in the order of AXES."""
    if phase_of(str(values.get("kind"))) == "prefill":
        values.setdefault("output_tokens", 1)
    return {axis: values[axis] for axis in AXES if axis in values}
