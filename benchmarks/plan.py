"""How fast trials become blocks that fit a GPU: `python -m benchmarks.plan [TRIALS]` (default 100,000).

The sweep has 4 models, 8 loads and many contexts, some of which fit beside each other, some alone and some not at all.
"""

from __future__ import annotations

import sys

from benchmarks.expand import TRIALS, spec_of
from benchmarks.rate import Rate, machine, timed
from orchestrator.expand import expand
from orchestrator.gpus import KINDS
from orchestrator.plan import plan


def rates(trials: int = TRIALS) -> list[Rate]:
    repeats = expand(spec_of(trials), "simulated")
    made, wall_s, cpu_s = timed(lambda: plan(repeats, KINDS["H100"]))
    count = sum(len(repeat.arms) for repeat in repeats)
    note = f"{len(made.blocks)} blocks, {len(made.skips):,} trials that do not fit; ids included"
    return [Rate("trials to blocks", count, "trials", wall_s, cpu_s, note)]


def main() -> None:
    (rate,) = rates(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)
    print(f"{rate.amount:,.0f} trials in {rate.wall_s:.2f} s: {rate.per_s:,.0f} trials/s, {rate.note}; {machine()}")


if __name__ == "__main__":
    main()
