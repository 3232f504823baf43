"""What the sections of a sweep file mean together, and where they contradict each other.

Each check looks only at sections that are sound in themselves, so that one run names every fault of a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.memory import request_tokens
from orchestrator.points import Spelled, cell_of, points, spelled
from orchestrator.spec_faults import did_you_mean
from orchestrator.spec_sections import (
    AXES,
    Axis,
    MeasurementSection,
    MpsArm,
    SimulationSection,
    SingleArm,
    SweepSection,
    TimeSlicedArm,
    WorkloadSection,
)
from orchestrator.trial import REPLAYED, phase_of, replayed
from orchestrator.yaml_lines import KeyPath
from workloads.architecture import bytes_per_parameter
from workloads.catalogue import load_model

Conflict = tuple[KeyPath, str]
AnyArmSection = SingleArm | TimeSlicedArm | MpsArm


@dataclass(frozen=True, slots=True)
class Sound:
    """The sections without faults of their own; None: faulty, or not in the file and without a default.

    arm_names: also those of arms that are faulty themselves.
    """

    arm_names: Collection[str] = ()

    backend: str | None = None
    gpu: str | None = None
    baseline: str | None = None
    residency_check: Sequence[str] | None = None
    engine_args: Mapping[str, Any] | None = None
    arms: Mapping[str, AnyArmSection] | None = None
    workload: WorkloadSection | None = None
    sweep: SweepSection | None = None
    measurement: MeasurementSection | None = None
    simulation: SimulationSection | None = None

    @classmethod
    def sections(cls) -> tuple[str, ...]:
        """The keys of a sweep file that contradictions can lie between."""
        return tuple(each.name for each in fields(cls) if each.name != "arm_names")


def conflicts(sound: Sound) -> Iterator[Conflict]:
    """Every contradiction between sound sections: the path of the key to change, and what is wrong."""
    if sound.gpu is not None and sound.backend is not None:
        yield from _gpu(sound.gpu, sound.backend)
    if sound.simulation is not None:
        yield from _simulation(sound.simulation, sound.backend, sound.arm_names)
    if sound.baseline is not None:
        yield from _baseline(sound.baseline, sound.arm_names)
    for index, name in enumerate(sound.residency_check or ()):
        yield from _residency_check(index, name, sound.arm_names)
    if sound.engine_args is not None:
        yield from _widths(sound.engine_args, sound.arms or {})
    if sound.sweep is not None and sound.workload is not None:
        every = tuple(spelled(sound.sweep, sound.workload))
        incomplete = tuple(_incomplete(every))
        yield from incomplete
        if not incomplete:
            yield from _lists(sound.sweep, every)
            kept = points(sound.sweep, sound.workload)
            if sound.measurement is not None:
                yield from _profile(sound.measurement, kept)
            yield from dict.fromkeys(_cells(sound.sweep, kept, sound.arms or {}, sound.engine_args or {}))


def _profile(measurement: MeasurementSection, kept: Sequence[Spelled]) -> Iterator[Conflict]:
    if measurement.profile_steps and not any(replayed(str(point.values["kind"])) for point in kept):
        yield (
            ("measurement", "profile_steps"),
            f"only replayed steps are profiled: no cell is of a kind ending in {REPLAYED}",
        )


def _gpu(gpu: str, backend: str) -> Iterator[Conflict]:
    if gpu == "any" and backend == "simulated":
        yield ("gpu",), "a simulated GPU needs a kind, not 'any'"
    if gpu != "any" and backend == "vllm-cpu":
        yield ("gpu",), f"backend vllm-cpu has no GPU: write any, not {gpu!r}"


def _simulation(simulation: SimulationSection, backend: str | None, arm_names: Collection[str]) -> Iterator[Conflict]:
    if backend not in (None, "simulated"):
        yield ("simulation",), f"only for backend: simulated, not {backend}"
    named: list[tuple[KeyPath, str]] = [
        (("simulation", "planted_gain", name), name) for name in simulation.planted_gain
    ]
    if simulation.fail is not None:
        named.append((("simulation", "fail", "arm"), simulation.fail.arm))
    for path, name in named:
        if name not in arm_names:
            yield path, f"{name!r} is not an arm{did_you_mean(name, arm_names)}"


def _baseline(baseline: str, arm_names: Collection[str]) -> Iterator[Conflict]:
    if baseline not in arm_names:
        hint = did_you_mean(baseline, arm_names) or f"; arms: {', '.join(arm_names)}"
        yield ("baseline",), f"{baseline!r} is not an arm{hint}"


def _residency_check(index: int, name: str, arm_names: Collection[str]) -> Iterator[Conflict]:
    if name not in arm_names:
        hint = did_you_mean(name, arm_names) or f"; arms: {', '.join(arm_names)}"
        yield ("residency_check", index), f"{name!r} is not an arm{hint}"
    elif len(arm_names) < 2:
        yield ("residency_check", index), "an arm that has no other beside it is alone anyway"


def _widths(engine_args: Mapping[str, Any], arms: Mapping[str, AnyArmSection]) -> Iterator[Conflict]:
    """dtype and quantization say how many bytes a weight takes, without which nothing can be sized."""
    for path, args in _engine_args(engine_args, arms):
        for key in ("dtype", "quantization"):
            if args.get(key) is None:
                continue
            try:
                bytes_per_parameter(*((str(args[key]),) if key == "dtype" else ("bfloat16", str(args[key]))))
            except ModelError as error:
                yield (*path, key), str(error)


def _incomplete(every: Sequence[Spelled]) -> Iterator[Conflict]:
    """Axes without a value."""
    if not every:
        yield ("sweep",), "spells no cell: give a grid, a zip or an include"
    missing = dict.fromkeys((axis, point.include) for point in every for axis in AXES if axis not in point.values)
    for axis, include in missing:
        where: KeyPath = ("sweep",) if include is None else ("sweep", "include", include)
        place = f"sweep.grid.{axis} or sweep.zip.{axis}" if include is None else "the entry"
        common = "" if axis == "model" else f", or workload.{axis} for all cells"
        yield where, f"no {axis} is given: add it to {place}{common}"


def _lists(sweep: SweepSection, every: Sequence[Spelled]) -> Iterator[Conflict]:
    """Lists that overlap, and exclusions that do nothing or leave nothing."""
    for axis in AXES:
        if getattr(sweep.grid, axis) is not None and getattr(sweep.zip, axis) is not None:
            yield ("sweep", "zip", axis), "stands in sweep.grid too: an axis belongs to one of them"
    seen: set[tuple[str | int, ...]] = set()
    for point in every:
        key = tuple(point.values.values())
        if key in seen and point.include is not None:
            cell = ", ".join(f"{axis} {value}" for axis, value in point.values.items())
            yield ("sweep", "include", point.include), f"spells a cell again: {cell}"
        seen.add(key)
    left = list(every)
    for index, entry in enumerate(sweep.exclude):
        if not any(point.has(entry.given()) for point in every):
            yield ("sweep", "exclude", index), "matches no cell"
        left = [point for point in left if not point.has(entry.given())]
    if not left:
        yield ("sweep", "exclude"), "leaves no cell"


def _cells(
    sweep: SweepSection,
    kept: Sequence[Spelled],
    arms: Mapping[str, AnyArmSection],
    engine_args: Mapping[str, Any],
) -> Iterator[Conflict]:
    """Faults of single cells that remain; a fault that many cells share comes many times."""
    engines = max((arm.engines for arm in arms.values()), default=1)
    longest: dict[str, tuple[int, Spelled]] = {}
    for point in kept:
        values = point.values
        if phase_of(str(values["kind"])) == "prefill" and values["output_tokens"] != 1:
            path = _source("output_tokens", point, sweep)
            yield path, f"kind {values['kind']} has one output token, not {values['output_tokens']}"
        if int(values["concurrency"]) < engines:
            path = _source("concurrency", point, sweep)
            yield path, f"{values['concurrency']} client(s) cannot keep the {engines} engines of an arm busy"
        need = request_tokens(cell_of(values, "any", 0))
        model = str(values["model"])
        if model not in longest or need > longest[model][0]:
            longest[model] = need, point
    for model, (need, point) in longest.items():
        limit = load_model(model).max_position_embeddings
        if need > limit:
            path = _source("prompt_tokens", point, sweep)
            yield path, f"{model} holds {limit} tokens, a request grows to {need}: exclude these cells"
    need = max((need for need, _ in longest.values()), default=0)
    for path, args in _engine_args(engine_args, arms):
        given = args.get("max_model_len")
        if given is not None and (not isinstance(given, int) or given < need):
            yield (*path, "max_model_len"), f"must be at least {need}, the longest request of the cells, not {given!r}"


def _engine_args(
    engine_args: Mapping[str, Any], arms: Mapping[str, AnyArmSection]
) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    yield ("engine_args",), engine_args
    for name, arm in arms.items():
        yield ("arms", name, "engine_args"), arm.engine_args


def _source(axis: Axis, point: Spelled, sweep: SweepSection) -> KeyPath:
    """Where the file says the value that `point` has on `axis`."""
    if point.include is not None:
        given = axis in sweep.include[point.include].given()
        return ("sweep", "include", point.include, axis) if given else ("workload", axis)
    for name, section in (("grid", sweep.grid), ("zip", sweep.zip)):
        values = getattr(section, axis)
        if values is not None:
            return ("sweep", name, axis, values.index(point.values[axis]))
    return ("workload", axis)
