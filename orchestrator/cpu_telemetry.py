"""Processor time by process, thread and core between two snapshots of /proc.

The kernel counts in ticks (10 ms on Linux), so a share over a window of 4 s is good to a quarter of a percent.
Steal is time in which the hypervisor ran something else on a core that had work: on a rented machine it is the
neighbours' share of our measurement.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessTicks:
    """started: start time in ticks, which with the pid names a process. threads: by thread id, as (started, ticks)."""

    started: int
    ticks: int
    threads: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class CoreTicks:
    """busy: everything but idle, waiting for disks, and steal."""

    total: int
    busy: int
    steal: int


@dataclass(frozen=True, slots=True)
class CpuSnapshot:
    """Counters at one moment (CLOCK_MONOTONIC). A process that is gone, or a core that is not shown, is absent."""

    time_ns: int
    processes: Mapping[int, ProcessTicks]
    cores: Mapping[int, CoreTicks]


@dataclass(frozen=True, slots=True)
class ProcessShare:
    """Shares of one core: all threads together (may exceed 1), and the busiest thread."""

    process: float
    busiest_thread: float


@dataclass(frozen=True, slots=True)
class CpuShares:
    """Between two snapshots. None: this kernel does not account by core (gVisor shows zeros).

    processes: by pid; one that ended, or whose pid was given to another, is absent.
    steal_share: of the watched cores' time; others_cores: cores' worth of work on them that was not ours, at least.
    """

    processes: Mapping[int, ProcessShare]
    steal_share: float | None
    others_cores: float | None


class CpuClock:
    """Reads /proc. `root` is where it is mounted."""

    def __init__(self, root: Path = Path("/proc"), clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._root = root
        self._clock_ns = clock_ns

    def snapshot(self, pids: Collection[int], cores: Collection[int] = ()) -> CpuSnapshot:
        """Counters of these processes and cores now."""
        processes = {pid: found for pid in pids if (found := self._process(pid)) is not None}
        return CpuSnapshot(self._clock_ns(), processes, self._cores(frozenset(cores)))

    def _process(self, pid: int) -> ProcessTicks | None:
        folder = self._root / str(pid)
        whole = _stat(folder / "stat")
        if whole is None:
            return None
        threads = {}
        try:
            names = [thread.name for thread in (folder / "task").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            return None
        for name in names:
            if (thread := _stat(folder / "task" / name / "stat")) is not None:
                threads[int(name)] = thread
        return ProcessTicks(whole[0], whole[1], threads)

    def _cores(self, wanted: frozenset[int]) -> dict[int, CoreTicks]:
        found = {}
        for line in (self._root / "stat").read_text().splitlines() if wanted else ():
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in wanted:
                found[int(name[3:])] = _core([int(field) for field in fields])
        return found


def shares(first: CpuSnapshot, second: CpuSnapshot) -> CpuShares:
    """What happened between two snapshots, as shares of one core. Raises ValueError unless the second is later."""
    elapsed = (second.time_ns - first.time_ns) / 1e9 * TICKS_PER_S
    if elapsed <= 0:
        raise ValueError("the second snapshot is not later than the first")
    processes = {}
    for pid, then in first.processes.items():
        now = second.processes.get(pid)
        if now is not None and now.started == then.started:
            processes[pid] = ProcessShare((now.ticks - then.ticks) / elapsed, _busiest(then, now) / elapsed)
    cores = [(then, second.cores[core]) for core, then in first.cores.items() if core in second.cores]
    total = sum(now.total - then.total for then, now in cores)
    if total <= 0:
        return CpuShares(processes, None, None)
    busy = sum(now.busy - then.busy for then, now in cores) / elapsed
    ours = sum(share.process for share in processes.values())
    return CpuShares(
        processes,
        steal_share=sum(now.steal - then.steal for then, now in cores) / total,
        others_cores=max(0.0, busy - ours),
    )


def _busiest(then: ProcessTicks, now: ProcessTicks) -> int:
    """Ticks of the busiest thread; one that started in between counts from its start."""
    busiest = 0
    for thread_id, (started, ticks) in now.threads.items():
        before = then.threads.get(thread_id)
        busiest = max(busiest, ticks - (before[1] if before is not None and before[0] == started else 0))
    return busiest


def _stat(path: Path) -> tuple[int, int] | None:
    """(start time, user + system ticks) of a process or thread; None when it is gone."""
    try:
        text = path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold spaces and parentheses itself; proc(5) numbers fields from 1.
    fields = text.rpartition(")")[2].split()
    return int(fields[22 - 3]), int(fields[14 - 3]) + int(fields[15 - 3])


def _core(fields: list[int]) -> CoreTicks:
    """user nice system idle iowait irq softirq steal; guest time is within user already (proc(5))."""
    user, nice, system, idle, iowait, irq, softirq, steal = (*fields[:8], *([0] * (8 - len(fields[:8]))))
    busy = user + nice + system + irq + softirq
    return CoreTicks(busy + idle + iowait + steal, busy, steal)
