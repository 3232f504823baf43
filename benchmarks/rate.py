"""One measured rate, and the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Rate:
    """`amount` of `unit` done in `wall_s`, which took `cpu_s` of all cores together. note: what it is beside."""

    what: str
    amount: float
    unit: str
    wall_s: float
    cpu_s: float
    note: str = ""

    @property
    def per_s(self) -> float:
        return self.amount / self.wall_s


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """What `work` gives, and the wall and processor seconds of this process that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def machine() -> str:
    """Processor, cores that may be used, load average of the last minute, and the interpreter."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )
