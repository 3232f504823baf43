"""Processor cores: what there is, which engine gets which, and whether a process stays there.

An engine's EngineCore process has a busy thread that decides the rate of small models: alone on one core, with the
frontend on another, an engine ran a quarter faster than when it floated. So cores are given out whole: one hardware
thread of each physical core is used, its siblings stay idle, and engine i of every arm gets the same cores, so that no
arm owns better ones. A virtual machine may show hyper-threads as cores; that cannot be seen from inside.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import MeasurementError


@dataclass(frozen=True, slots=True)
class PhysicalCore:
    """cpus: its hardware threads that may be used, lowest first; node: NUMA node, -1 unknown."""

    package: int
    node: int
    cpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """The physical cores that this process may use. known: the kernel told; else every cpu counts as a core.

    quota_cores: how many cores' worth of time the control group allows (None: no limit).
    """

    cores: tuple[PhysicalCore, ...]
    known: bool = True
    quota_cores: float | None = None

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))

    @property
    def threads_per_core(self) -> int:
        return max((len(core.cpus) for core in self.cores), default=0)


@dataclass(frozen=True, slots=True)
class EngineCores:
    """core: where EngineCore runs; frontend: where the frontend and its clients run."""

    core: tuple[int, ...]
    frontend: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """cpus by engine; rest: for the orchestrator, the sampler and everything else; idle: siblings kept empty."""

    engines: tuple[EngineCores, ...]
    rest: tuple[int, ...]
    idle: tuple[int, ...]
    pinned: bool

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_topology(root: Path = Path("/"), allowed: Collection[int] | None = None) -> Topology:
    """The cores that are online and allowed; `allowed` is this process's affinity unless given."""
    system = root / "sys/devices/system/cpu"
    online = _cpu_list(system / "online")
    usable = set(os.sched_getaffinity(0) if allowed is None else allowed)
    for limit in (online, _cgroup_cpus(root)):
        if limit:
            usable &= limit
    # Grouped by the lowest sibling: core_id repeats from die to die and from package to package.
    siblings = {cpu: _cpu_list(system / f"cpu{cpu}/topology/thread_siblings_list") for cpu in usable}
    grouped: dict[int, list[int]] = {}
    for cpu in sorted(usable):
        grouped.setdefault(min(siblings[cpu], default=cpu), []).append(cpu)
    nodes = _nodes(root)
    cores = []
    for cpus in grouped.values():
        package = _number(system / f"cpu{cpus[0]}/topology/physical_package_id")
        cores.append(PhysicalCore(-1 if package is None else package, nodes.get(cpus[0], -1), tuple(cpus)))
    return Topology(
        tuple(sorted(cores, key=lambda core: core.cpus)),
        known=all(siblings.values()),
        quota_cores=cgroup_quota_cores(root),
    )


def gpu_numa_node(bus_id: str, root: Path = Path("/")) -> int | None:
    """The NUMA node that a GPU hangs on, by its PCI bus id as NVML writes it (eight-digit domain); None: not told."""
    domain, _, rest = bus_id.lower().partition(":")
    node = _number(root / "sys/bus/pci/devices" / f"{domain[-4:]}:{rest}" / "numa_node")
    return node if node is not None and node >= 0 else None


def share_of_host(topology: Topology, gpu: int, gpu_nodes: Sequence[int | None]) -> Topology:
    """The cores that belong to GPU number `gpu` of a host, so that two GPUs' engines never meet on a core.

    gpu_nodes: the NUMA node of every GPU in use on the host. A node's cores are dealt to the GPUs on it, in runs; a
    node without GPUs, or with GPUs whose node is unknown, is dealt to all.
    """
    unknown = any(node is None for node in gpu_nodes)
    mine: list[PhysicalCore] = []
    for node in sorted({core.node for core in topology.cores}):
        local = [index for index, at in enumerate(gpu_nodes) if at == node and not unknown]
        takers = local or list(range(len(gpu_nodes)))
        if gpu in takers:
            cores = [core for core in topology.cores if core.node == node]
            position = takers.index(gpu)
            mine += cores[len(cores) * position // len(takers) : len(cores) * (position + 1) // len(takers)]
    quota = None if topology.quota_cores is None else topology.quota_cores / len(gpu_nodes)
    return Topology(tuple(sorted(mine, key=lambda core: core.cpus)), topology.known, quota)


def share_of_gpu(topology: Topology, bus_id: str, bus_ids: Sequence[str], root: Path = Path("/")) -> Topology:
    """The part of `topology` that belongs to the GPU at `bus_id`, of all the host's GPUs as NVML orders them.

    It depends on nothing but the machine, so hosts of several GPUs agree on it without a word between them, and a GPU
    has the same cores whether its neighbours are at work or not. Raises ValueError where `bus_id` is none of them.
    """
    nodes = [gpu_numa_node(each, root) for each in bus_ids]
    return share_of_host(topology, list(bus_ids).index(bus_id), nodes)


def placement(
    topology: Topology, engines: int, cores_per_engine: int, gpu_numa: int | None = None, pinned: bool = True
) -> Placement:
    """Give every engine `cores_per_engine` whole physical cores, on the GPU's NUMA node while they last.

    EngineCore takes the first alone, the frontend with its clients the others; a budget of one core is shared by both.
    At least one physical core is left for the rest, the lowest-numbered one among them: the kernel's own work lands
    there. Not pinned: everything floats over all cores. Raises MeasurementError where they do not suffice.
    """
    if engines < 1 or cores_per_engine < 1:
        raise ValueError(f"engines and cores_per_engine are at least 1, not {engines} and {cores_per_engine}")
    if not pinned:
        everything = topology.cpus
        return Placement((EngineCores(everything, everything),) * engines, everything, (), False)
    needed = engines * cores_per_engine + 1
    if len(topology.cores) < needed:
        raise MeasurementError(
            f"{engines} engines with {cores_per_engine} cores each, and one core for the rest, need {needed} physical "
            f"cores; there are {len(topology.cores)} ({len(topology.cpus)} cpus). Ask for fewer cores_per_engine or "
            "engines, or say `pinned: false`, which lets the engines disturb each other."
        )
    lowest, *others = topology.cores
    pool = [*sorted(others, key=lambda core: (core.node != gpu_numa, core.node, core.cpus)), lowest]
    engine_cores = []
    for _ in range(engines):
        taken = _together(pool, cores_per_engine)
        pool = [core for core in pool if core not in taken]
        threads = tuple(core.cpus[0] for core in taken)
        engine_cores.append(EngineCores(threads[:1], threads[1:] or threads[:1]))
    used = {cpu for engine in engine_cores for cpu in (*engine.core, *engine.frontend)}
    rest = tuple(sorted(cpu for core in pool for cpu in core.cpus))
    return Placement(tuple(engine_cores), rest, tuple(sorted(set(topology.cpus) - used - set(rest))), True)


def apply(pid: int, cpus: Collection[int]) -> None:
    """Confine every thread of a process to `cpus`; threads that it starts later inherit that.

    Raises MeasurementError when the process is gone or the kernel refuses the set.
    """
    done: set[int] = set()
    while fresh := _threads(pid) - done:  # a thread may have been started by one that was not yet confined
        for thread in fresh:
            try:
                os.sched_setaffinity(thread, cpus)
            except ProcessLookupError:
                pass  # a thread that ended needs no core
            except OSError as error:
                raise MeasurementError(f"process {pid} cannot be put on cpus {sorted(cpus)}: {error}") from error
        done |= fresh


def read_back(pid: int) -> tuple[int, ...]:
    """Every cpu that some thread of the process may run on. Raises MeasurementError when it is gone."""
    cpus: set[int] = set()
    for thread in _threads(pid):
        try:
            cpus |= os.sched_getaffinity(thread)
        except ProcessLookupError:
            continue
    return tuple(sorted(cpus))


def niceness(pid: int) -> int:
    """The largest niceness among a process's threads: above 0 it yields to everybody. Raises MeasurementError."""
    found = []
    for thread in _threads(pid):
        try:
            found.append(os.getpriority(os.PRIO_PROCESS, thread))
        except ProcessLookupError:
            continue
    if not found:
        raise MeasurementError(f"process {pid} is gone")
    return max(found)


def cgroup_quota_cores(root: Path = Path("/")) -> float | None:
    """The control group's processor quota in cores (version 2, then 1); None: no limit."""
    for folder in _cgroup_folders(root, "cpu"):
        if text := _text(folder / "cpu.max"):
            quota, period = text.split()
            return None if quota == "max" else int(quota) / int(period)
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us is not None and period_us:
            return quota_us / period_us if quota_us > 0 else None
    return None


def _together(pool: Sequence[PhysicalCore], count: int) -> list[PhysicalCore]:
    """The first `count` cores of one NUMA node in the pool's order; across nodes only where no node has so many."""
    by_node: dict[int, list[PhysicalCore]] = {}
    for core in pool[:-1]:  # the last is the rest's
        by_node.setdefault(core.node, []).append(core)
    return next((cores[:count] for cores in by_node.values() if len(cores) >= count), list(pool[:count]))


def _threads(pid: int) -> set[int]:
    try:
        return {int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()}
    except (FileNotFoundError, ProcessLookupError) as error:
        raise MeasurementError(f"process {pid} is gone") from error


def _nodes(root: Path) -> dict[int, int]:
    folder = root / "sys/devices/system/node"
    nodes = sorted(folder.glob("node[0-9]*"))
    return {cpu: int(node.name.removeprefix("node")) for node in nodes for cpu in _cpu_list(node / "cpulist")}


def _cgroup_cpus(root: Path) -> set[int]:
    for folder in _cgroup_folders(root, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if cpus := _cpu_list(folder / name):
                return cpus
    return set()


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Where this process's limits stand: its own group, then the root that a container sees as its own."""
    mount = root / "sys/fs/cgroup"
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folders.append(mount / path.lstrip("/"))
        elif controller in controllers.split(","):
            folders.append(mount / controller / path.lstrip("/"))
    return [*folders, mount, mount / controller]


def _cpu_list(path: Path) -> set[int]:
    """`0-3,8` as a set; empty where the file is missing or empty."""
    cpus: set[int] = set()
    for part in _text(path).split(","):
        if part:
            first, _, last = part.partition("-")
            cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # sysfs and control groups are partly absent or unreadable in sandboxes
        return ""
