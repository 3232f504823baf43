"""Repeats grouped into blocks: one GPU, one model, one set of boots; what fits in memory and how long it takes.

A block loads the engines of all its arms side by side where the largest of its cells leaves room for that
(`resident`); cells that are too large for it go into a block of their own that boots one arm after another (`alone`).
An arm that does not fit even alone is left out of its block and comes back as skipped, with the arithmetic.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

from orchestrator.gpus import KINDS, GpuKind
from orchestrator.memory import GIB, USABLE_SHARE, EngineMemory, EngineSizing, engine_memory, size_engine
from orchestrator.trial import Arm, Backend, Cell, Repeat, canonical_json, fingerprint
from workloads.architecture import Architecture
from workloads.catalogue import load_model

# Boot of a set of engines that start in parallel, warm caches, on an H200: 27 to 58 s (vLLM 0.25.1).
BOOT_S = 40.0
# Between two windows: abort, settle, hand over.
HANDOVER_S = 0.6


Residency = Literal["resident", "alone"]


@dataclass(frozen=True, slots=True)
class Block:
    """Repeats of one model that share their boots on one GPU.

    residency: `resident` loads the engines of every arm at once; `alone` boots and measures one arm after another.
    sizing, memory: of one engine, by arm name. expected_gpu_s: what the plan thinks it costs, boots included.
    """

    block_id: str
    backend: Backend
    gpu_kind: str
    model: str
    engine_args: Mapping[str, Any]
    arms: tuple[Arm, ...]
    repeats: tuple[Repeat, ...]
    residency: Residency
    sizing: Mapping[str, EngineSizing]
    memory: Mapping[str, EngineMemory]
    expected_gpu_s: float

    @property
    def with_images(self) -> bool:
        return _with_images(repeat.cell for repeat in self.repeats)

    def only(self, repeat_ids: Set[str]) -> Block:
        """This block for some of its repeats, with engines of the same size: what is left is measured alike."""
        dropped = sum(expected_repeat_s(repeat) for repeat in self.repeats if repeat.repeat_id not in repeat_ids)
        kept = tuple(repeat for repeat in self.repeats if repeat.repeat_id in repeat_ids)
        return replace(self, repeats=kept, expected_gpu_s=self.expected_gpu_s - dropped)


@dataclass(frozen=True, slots=True)
class Skip:
    """An arm that cannot be measured in a repeat, and why."""

    repeat: Repeat
    arm: Arm
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Blocks to run, in order, and what was left out of them."""

    blocks: tuple[Block, ...]
    skips: tuple[Skip, ...]
    usable_bytes: int

    @property
    def expected_gpu_s(self) -> float:
        return sum(block.expected_gpu_s for block in self.blocks)

    def only(self, repeats: Iterable[Repeat]) -> Plan:
        """What of the plan is left to do. Planning the rest anew would size engines and residency by what is left, and
        so measure a resumed sweep on other engines than an undisturbed one."""
        ids = frozenset(repeat.repeat_id for repeat in repeats)
        blocks = (block.only(ids) for block in self.blocks)
        skips = tuple(skip for skip in self.skips if skip.repeat.repeat_id in ids)
        return Plan(tuple(block for block in blocks if block.repeats), skips, self.usable_bytes)


def plan(repeats: Iterable[Repeat], gpu: GpuKind) -> Plan:
    """Group `repeats` into blocks for GPUs of kind `gpu`. Raises ModelError for a model that is not known.

    Boots in which some cells are not measured any more have the engines of those in which all are.
    """
    usable = int(gpu.memory_bytes * USABLE_SHARE)
    all_repeats = tuple(repeats)
    setups = _setups(all_repeats)
    groups: dict[tuple[Any, ...], list[Repeat]] = defaultdict(list)
    for repeat in all_repeats:
        cell = repeat.cell
        # Engines with room for long decodes, with a tokenizer, and with a vision tower are others.
        needs_boots = cell.workload.phase == "decode", cell.workload.as_text, cell.workload.with_image
        setup = setups[id(repeat.arms), id(repeat.engine_args)]
        groups[setup, repeat.backend, cell.gpu_kind, cell.model, needs_boots, repeat.number].append(repeat)
    blocks: list[Block] = []
    skips: list[Skip] = []
    known: dict[tuple[Any, ...], dict[str, int]] = {}  # cells come again in every repeat number
    for key, group in _whole(groups).items():
        model = load_model(group[0].cell.model)
        needs = {}
        for repeat in group:
            same = (*key[:-1], repeat.cell)
            if same not in known:
                known[same] = {arm.name: _arm_bytes(arm, [repeat.cell], model, repeat) for arm in repeat.arms}
            needs[repeat.repeat_id] = known[same]
        made, left_out = _blocks_of(group, needs, model, usable)
        blocks += made
        skips += left_out
    return Plan(tuple(blocks), tuple(skips), usable).only(all_repeats)


def _whole(groups: Mapping[tuple[Any, ...], Sequence[Repeat]]) -> dict[tuple[Any, ...], list[Repeat]]:
    """The groups, each with a stand-in for every cell that another repeat number (the key's last part) has and it has
    not."""
    cells: dict[tuple[Any, ...], dict[Cell, None]] = defaultdict(dict)
    for key, group in groups.items():
        cells[key[:-1]].update(dict.fromkeys(repeat.cell for repeat in group))
    whole = {}
    for key, group in groups.items():
        own = {repeat.cell for repeat in group}
        stand_ins = [replace(group[0], cell=cell, alone=None) for cell in cells[key[:-1]] if cell not in own]
        whole[key] = [*group, *stand_ins]
    return whole


def _setups(repeats: Sequence[Repeat]) -> dict[tuple[int, int], str]:
    """What engines are started with as canonical text, by the identity of the two objects that nearly all share."""
    setups: dict[tuple[int, int], str] = {}
    for repeat in repeats:
        objects = (id(repeat.arms), id(repeat.engine_args))
        if objects not in setups:
            setups[objects] = canonical_json([repeat.engine_args, list(repeat.arms)])
    return setups


def _blocks_of(
    group: Sequence[Repeat], needs: Mapping[str, Mapping[str, int]], model: Architecture, usable: int
) -> tuple[list[Block], list[Skip]]:
    """Blocks of repeats that can share one set of boots. needs: bytes by arm of each repeat's cell alone."""
    together: list[Repeat] = []
    apart: list[Repeat] = []
    skips: list[Skip] = []
    for repeat in group:
        need = needs[repeat.repeat_id]
        too_large = [arm for arm in repeat.arms if need[arm.name] > usable]
        skips += [Skip(repeat, arm, _too_large(arm, repeat.cell, need[arm.name], usable)) for arm in too_large]
        if not too_large and sum(need.values()) <= usable:
            together.append(repeat)
        elif len(too_large) < len(repeat.arms):
            apart.append(repeat)
    # Cells that fit one by one may not fit as one block, because each arm is sized for its own largest cell.
    together.sort(key=lambda repeat: sum(needs[repeat.repeat_id].values()))
    # Every cell more can only raise the largest, so the longest sound beginning is found by halving.
    fits = bisect_right(range(1, len(together) + 1), usable, key=lambda count: _resident_bytes(together[:count], model))
    apart += reversed(together[fits:])
    del together[fits:]
    order = {repeat.repeat_id: index for index, repeat in enumerate(group)}
    kinds: tuple[tuple[list[Repeat], Residency], ...] = ((together, "resident"), (apart, "alone"))
    blocks = [
        _block(sorted(members, key=lambda repeat: order[repeat.repeat_id]), needs, residency, model, usable)
        for members, residency in kinds
        if members
    ]
    return blocks, skips


def _block(
    repeats: Sequence[Repeat],
    needs: Mapping[str, Mapping[str, int]],
    residency: Residency,
    model: Architecture,
    usable: int,
) -> Block:
    first = repeats[0]
    sizing: dict[str, EngineSizing] = {}
    memory: dict[str, EngineMemory] = {}
    for arm in first.arms:
        cells = [repeat.cell for repeat in repeats if needs[repeat.repeat_id][arm.name] <= usable]
        if cells:
            sizing[arm.name] = size_engine(arm, cells, model, first.engine_args, first.backend)
            memory[arm.name] = engine_memory(arm, sizing[arm.name], model, first.engine_args, _with_images(cells))
    arms = tuple(arm for arm in first.arms if arm.name in sizing)
    boots = 1 if residency == "resident" else len(arms)
    windows_s = sum(expected_repeat_s(repeat) for repeat in repeats)
    return Block(
        block_id=fingerprint([repeat.repeat_id for repeat in repeats]),
        backend=first.backend,
        gpu_kind=first.cell.gpu_kind,
        model=first.cell.model,
        engine_args=first.engine_args,
        arms=arms,
        repeats=tuple(repeats),
        residency=residency,
        sizing=sizing,
        memory=memory,
        expected_gpu_s=boots * BOOT_S + windows_s,
    )


def expected_repeat_s(repeat: Repeat) -> float:
    """GPU seconds of one repeat if every arm takes its fewest windows at their shortest length, one pilot each."""
    look = repeat.measurement
    windows_s = look.min_windows * (look.window_s + look.warmup_s + HANDOVER_S)
    return len(repeat.measured) * (windows_s + look.pilot_s + HANDOVER_S)


def _arm_bytes(arm: Arm, cells: Sequence[Cell], model: Architecture, repeat: Repeat) -> int:
    sizing = size_engine(arm, cells, model, repeat.engine_args, repeat.backend)
    return arm.engines * engine_memory(arm, sizing, model, repeat.engine_args, _with_images(cells)).total


def _with_images(cells: Iterable[Cell]) -> bool:
    return any(cell.workload.with_image for cell in cells)


def _resident_bytes(repeats: Sequence[Repeat], model: Architecture) -> int:
    first = repeats[0]
    cells = [repeat.cell for repeat in repeats]
    return sum(_arm_bytes(arm, cells, model, first) for arm in first.arms)


def _too_large(arm: Arm, cell: Cell, need: int, usable: int) -> str:
    return (
        f"{arm.engines} engine(s) of {cell.model} with KV for {cell.concurrency} requests of "
        f"{cell.workload.prompt_tokens}+{cell.workload.output_tokens} tokens need {need / GIB:.1f} GiB, "
        f"{usable / GIB:.1f} GiB of a {cell.gpu_kind} are usable"
    )


def gpu_kind(name: str) -> GpuKind:
    """The data sheet of a GPU kind by label or by the name that NVML gives (`NVIDIA H200`). KeyError if unknown."""
    for kind in KINDS.values():
        if kind.name == name or kind.name in name.split() or any(p.startswith(kind.name) for p in name.split()):
            return kind
    raise KeyError(name)
