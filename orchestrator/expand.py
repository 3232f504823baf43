"""A sweep file's content as the repeats to measure.

    repeats = expand(load_spec("sweeps/quickstart.yaml"), backend="simulated")

The number of the repeat varies slowest, then the model, then the cell: a landscape is complete once before anything is
measured a second time, and the cells of a model lie together, since they share boots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import ModelError, SpecError
from orchestrator.gpus import KINDS
from orchestrator.memory import request_tokens
from orchestrator.points import cell_of, points
from orchestrator.spec import LOAD_FORMATS, SweepSpec
from orchestrator.trial import Arm, Backend, Cell, Repeat, canonical_json
from workloads.catalogue import load_model
from workloads.images import image_tokens

# What a cell without a GPU has in the place of the GPU kind.
CPU_KIND = "cpu"
NOT_SIMULATED = {"text": "a tokenizer takes", "image": "images take"}


def expand(spec: SweepSpec, backend: Backend, gpu_kind: str | None = None) -> tuple[Repeat, ...]:
    """The repeats of `spec` on `backend`, which the caller has made of `auto`; `arms[0]` is the baseline.

    gpu_kind: what `gpu: any` turned out to be; it is part of each repeat's identity, as `any` would not tell an H100
    from an H200. Repeat number k has the seed `spec.seed + k`, so that arms take turns in other orders.
    Raises SpecError where the spec cannot run on that backend.
    """
    kind = _gpu_kind(spec, backend, gpu_kind)
    if spec.simulation is not None and backend != "simulated":
        raise SpecError(f"{spec.source}: simulation: only for backend simulated, not {backend}")
    engine_args = _engine_args(spec)
    arms = _arms(spec, engine_args)
    measurement = spec.measurement.measurement()
    models = _cells(spec, kind)
    if backend == "simulated":
        for kind in sorted({cell.workload.kind for own in models for cell, _ in own} & NOT_SIMULATED.keys()):
            what = NOT_SIMULATED[kind]
            raise SpecError(f"{spec.source}: kind {kind} is not simulated: what {what} is measured, not modelled")
    _check_images(spec, models)
    repeats: list[Repeat] = []
    for number in range(max(wanted for own in models for _, wanted in own)):
        for own in models:
            shared = (arms, engine_args, measurement, number, spec.seed + number)
            cells = [cell for cell, wanted in own if wanted > number]
            repeats += [Repeat(backend, cell, *shared) for cell in cells]
            longest = max((cell for cell, _ in own), key=_length)
            if spec.residency_check and longest in cells:
                alone = spec.residency_check[number % len(spec.residency_check)]
                repeats.append(Repeat(backend, longest, *shared, alone))
    return tuple(repeats)


def _check_images(spec: SweepSpec, models: Sequence[Sequence[tuple[Cell, int]]]) -> None:
    cells = [cell for own in models for cell, _ in own if cell.workload.with_image]
    if not cells:
        return
    where = f"{spec.source}: kind image"
    if "checkpoint" in {spec.weights, *(arm.weights for arm in spec.arms.values())}:
        raise SpecError(f"{where} is for dummy or random weights: the image processor is made here")
    for cell in cells:
        try:
            least = image_tokens(load_model(cell.model).config)
        except ModelError as error:
            raise SpecError(f"{where}: {cell.model}: {error}") from error
        if (asked := cell.workload.prompt_tokens) < least:
            raise SpecError(f"{where}: an image alone takes {least} tokens, prompt_tokens is {asked}")


def _gpu_kind(spec: SweepSpec, backend: Backend, found: str | None) -> str:
    if backend == "vllm-cpu":
        return CPU_KIND
    kind = found or spec.gpu
    if backend == "simulated" and kind not in KINDS:
        raise SpecError(f"{spec.source}: gpu: a simulated GPU needs a kind ({', '.join(KINDS)}), not {kind!r}")
    if spec.gpu not in ("any", kind):
        raise SpecError(f"{spec.source}: gpu: the sweep asks for {spec.gpu}, not {kind}")
    return kind


def _length(cell: Cell) -> tuple[int, int]:
    """Of a request, then the load: the largest cell of a model leaves least room for what residency could disturb."""
    return request_tokens(cell), cell.concurrency


def _cells(spec: SweepSpec, gpu_kind: str) -> list[list[tuple[Cell, int]]]:
    """Cells and how often each is measured, by model in the order in which the models first appear."""
    by_model: dict[str, list[tuple[Cell, int]]] = {}
    for point in points(spec.sweep, spec.workload):
        cell = cell_of(point.values, gpu_kind, spec.workload.seed)
        by_model.setdefault(cell.model, []).append((cell, point.repeats or spec.repeats))
    return list(by_model.values())


def _engine_args(spec: SweepSpec) -> dict[str, Any]:
    """The sweep's engine arguments with `load_format`, and with what `simulation` changes under that key."""
    args: dict[str, Any] = {**spec.engine_args, "load_format": LOAD_FORMATS[spec.weights]}
    if spec.simulation is not None and (changed := spec.simulation.model_dump(exclude_defaults=True)):
        args["simulation"] = changed
    return dict(sorted(args.items()))


def _arms(spec: SweepSpec, engine_args: Mapping[str, Any]) -> tuple[Arm, ...]:
    """The baseline, then the others as they stand in the file. An override that changes nothing is dropped."""
    arms = []
    for name, section in spec.arms.items():
        asked = dict(section.engine_args)
        if section.weights is not None:
            asked["load_format"] = LOAD_FORMATS[section.weights]
        changed = {
            key: value
            for key, value in sorted(asked.items())
            if key not in engine_args or canonical_json(engine_args[key]) != canonical_json(value)
        }
        arms.append(Arm(name, section.mode(), changed, section.cores_per_engine, section.pinned))
    arms.sort(key=lambda arm: arm.name != spec.baseline_arm)
    return tuple(arms)
