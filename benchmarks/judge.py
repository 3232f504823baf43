"""How fast verdicts come from windows: `python -m benchmarks.judge [WINDOWS]` (default 1,000,000) prints rows/s.

The frame has three arms, three boots and six windows a trial, as a large landscape would; the time includes all seven
metrics, the tests of steadiness and the q-values. Reading the store is not in it.
"""

from __future__ import annotations

import resource
import sys

import numpy as np

from benchmarks.rate import Rate, machine, timed
from orchestrator.verdicts import judge
from tests.planted import THREE_ARMS, frames, noisy

WINDOWS = 1_000_000
BOOTS, ROUNDS = 3, 6


def rates(windows: int = WINDOWS) -> list[Rate]:
    cells = max(windows // (BOOTS * len(THREE_ARMS) * ROUNDS), 1)
    log_rates = noisy(np.random.default_rng(1), (cells, BOOTS, len(THREE_ARMS), ROUNDS)) + 8.0
    trials, table = frames(log_rates, THREE_ARMS)
    verdicts, wall_s, cpu_s = timed(lambda: judge(trials, table))
    memory_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    note = f"{cells:,} cells, {len(verdicts):,} verdicts, peak memory {memory_gib:.1f} GiB"
    return [Rate("windows to verdicts", len(table), "windows", wall_s, cpu_s, note)]


def main() -> None:
    (rate,) = rates(int(sys.argv[1]) if len(sys.argv) > 1 else WINDOWS)
    print(f"{rate.amount:,.0f} windows in {rate.wall_s:.2f} s: {rate.per_s:,.0f} windows/s, {rate.note}; {machine()}")


if __name__ == "__main__":
    main()
