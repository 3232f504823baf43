"""How fast a core is right now, and which cores share one: what a virtual machine does not tell.

A guest's topology may show every hardware thread as a core of its own, and neither a busy sibling thread of another
guest nor a lowered clock counts as steal. Both can halve EngineCore's speed, which then reads as an effect of an arm.
So the speed is measured: a fixed piece of interpreter work, the same kind that EngineCore does.

    python -m orchestrator.core_probe          # speed of each core, and pairs that slow each other down
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

_WORK = 20_000
# Two threads of one physical core get about 0.6 of its speed each; separate cores keep above 0.9 unless disturbed.
SHARED_BELOW = 0.8


def speed_mops(cpu: int, repeats: int = 5) -> float:
    """Million loop turns a second on `cpu` in the calling thread, which is put back where it was; about 5 ms.

    The median of `repeats` pieces. Raises OSError if the thread may not run there.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        return sorted(_piece_mops() for _ in range(repeats))[repeats // 2]
    finally:
        os.sched_setaffinity(0, before)


def _piece_mops() -> float:
    total = 0
    began = time.perf_counter_ns()
    for turn in range(_WORK):
        total += turn
    return _WORK * 1e3 / (time.perf_counter_ns() - began)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Speed of two cpus in Mops: alone, and of the first while both work."""

    pair: tuple[int, int]
    alone_mops: float
    together_mops: float

    @property
    def shared(self) -> bool:
        return self.together_mops < SHARED_BELOW * self.alone_mops


def sharing(first: int, second: int, busy_s: float = 0.06) -> Sharing:
    """Whether `first` slows down while `second` works. Takes about `busy_s` and 60 ms to start a process."""
    alone = speed_mops(first)
    code = f"import os;os.sched_setaffinity(0,{{{second}}});print(flush=True)\nwhile True:\n for i in range(1000):pass"
    with subprocess.Popen([sys.executable, "-S", "-E", "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            pieces = max(5, int(busy_s / 0.001))
            together = speed_mops(first, pieces)
        finally:
            other.kill()
    return Sharing((first, second), alone, together)


def hidden_siblings(cpus: Sequence[int]) -> list[Sharing]:
    """Pairs of neighbours in number (0 with 1, 2 with 3, ...) and of opposite halves (0 with n/2, ...), each tried.

    Those are the two ways in which hypervisors and kernels number the threads of a core.
    """
    half = len(cpus) // 2
    pairs = [(cpus[i], cpus[i + 1]) for i in range(0, len(cpus) - 1, 2)]
    pairs += [(cpus[i], cpus[i + half]) for i in range(half) if (cpus[i], cpus[i + half]) not in pairs]
    return [sharing(first, second) for first, second in pairs]


def main() -> int:
    """Print what was found."""
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        print(f"cpu {cpu}: {speed_mops(cpu):.1f} Mops")
    for found in hidden_siblings(cpus):
        verdict = "SHARED" if found.shared else "apart"
        print(f"{found.pair}: alone {found.alone_mops:.1f}, together {found.together_mops:.1f} Mops: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
