"""The stopping boundary of `sequential`, by simulation: what `BOUNDARY` holds, rounded up.

    python -m orchestrator.boundary [--series 10000000] [--seed 1]

Series of Gaussian differences without any effect are looked at after every boot; at each look the boundary is the
|t| that lets as many of the series that are still going pass as `sequential.spent` allows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from orchestrator.errors import EXIT_OK
from orchestrator.sequential import ALPHA, MAX_BOOTS, MIN_BOOTS, spent


def boundary(series: int, seed: int) -> dict[int, float]:
    """|t| by number of boots. The error of a look's spent share is that of a count of `series` x share."""
    rng = np.random.default_rng(seed)
    total, squares = np.zeros(series), np.zeros(series)
    going = np.ones(series, bool)
    found: dict[int, float] = {}
    for boots in range(1, MAX_BOOTS + 1):
        drawn = rng.standard_normal(series)
        total += drawn
        squares += drawn**2
        if boots < MIN_BOOTS:
            continue
        error = np.sqrt((squares - total**2 / boots) / (boots - 1) / boots)
        t = np.abs(total / boots) / error
        passing = round(ALPHA * spent(boots) * series) - int((~going).sum())
        found[boots] = float(np.partition(t[going], -passing)[-passing])
        going &= t < found[boots]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints boots and |t|, one a line."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.boundary", description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    for boots, t in boundary(asked.series, asked.seed).items():
        print(f"{boots} {t:.4f}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
