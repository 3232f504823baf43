"""The order in which arms take their windows: Williams designs, seeded.

In a Williams design every arm follows every other arm equally often, so what one window leaves behind for the next
(heat, clocks, allocator state) spreads evenly over arms and can be tested for.
Source: E. J. Williams, "Experimental designs balanced for the estimation of residual effects of treatments",
Australian Journal of Scientific Research A 2 (1949) 149-168.

    >>> williams(3)
X
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def williams(arms: int) -> tuple[tuple[int, ...], ...]:
    """Rows of a Williams design: `arms` rows where that is even, twice as many where it is odd."""
    first: list[int] = []
    low, high = 0, arms - 1
    for position in range(arms):
        first.append(low if position % 2 == 0 else high)
        low, high = (low + 1, high) if position % 2 == 0 else (low, high - 1)
    rows = [tuple((item + shift) % arms for item in first) for shift in range(arms)]
    if arms % 2 and arms > 1:
        rows += [row[::-1] for row in rows]
    return tuple(rows)


def rounds(arms: Sequence[Item], seed: int) -> Iterator[tuple[Item, ...]]:
    """Endless rounds over all arms: whole designs one after another, the rows of each in a seeded order."""
    design = williams(len(arms))
    generator = np.random.default_rng(seed)
    while True:
        for row in generator.permutation(len(design)):
            yield tuple(arms[index] for index in design[row])
