"""How fast verdicts come from windows: `python benchmarks/judge.py [WINDOWS]` (default 1,000,000) prints rows/s.

The frame has three arms, three boots and six windows a trial, as a large landscape would; the time includes all seven
metrics, the tests of steadiness and the q-values. Reading the store is not in it.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator.verdicts import judge
from tests.planted import THREE_ARMS, frames, noisy

BOOTS, ROUNDS = 3, 6


def main(windows: int) -> None:
    cells = max(windows // (BOOTS * len(THREE_ARMS) * ROUNDS), 1)
    log_rates = noisy(np.random.default_rng(1), (cells, BOOTS, len(THREE_ARMS), ROUNDS)) + 8.0
    trials, table = frames(log_rates, THREE_ARMS)
    began = time.perf_counter()
    verdicts = judge(trials, table)
    took_s = time.perf_counter() - began
    memory_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(table):,} windows of {cells:,} cells -> {len(verdicts):,} verdicts in {took_s:.2f} s: "
        f"{len(table) / took_s:,.0f} windows/s, peak memory {memory_gib:.1f} GiB"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
