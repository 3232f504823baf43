"""Williams designs: balance by counting, and rounds that are seeded and whole."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from orchestrator.order import rounds, williams


@pytest.mark.parametrize("arms", range(1, 9))
def test_every_arm_follows_every_other_equally_often_and_stands_in_every_place_equally_often(arms):
    design = williams(arms)
    assert len(design) == (arms if arms % 2 == 0 or arms == 1 else 2 * arms)
    assert all(sorted(row) == list(range(arms)) for row in design)
    follows = Counter(pair for row in design for pair in pairwise(row))
    assert set(follows) == {(a, b) for a in range(arms) for b in range(arms) if a != b}
    assert len(set(follows.values())) <= 1
    places = Counter((place, arm) for row in design for place, arm in enumerate(row))
    assert len(places) == arms * arms and len(set(places.values())) == 1


def test_the_design_of_three_as_williams_gives_it():
    assert set(williams(3)) == {(0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 1, 2)}


@pytest.mark.parametrize("seed", range(5))
def test_rounds_run_through_whole_designs(seed):
    names = ("single", "sliced", "mps")
    drawn = list(islice(rounds(names, seed), 18))
    design = {tuple(names[arm] for arm in row) for row in williams(3)}
    for start in (0, 6, 12):
        assert set(drawn[start : start + 6]) == design


def test_the_seed_decides_the_order():
    first = [tuple(islice(rounds("abcd", seed), 8)) for seed in range(10)]
    assert first == [tuple(islice(rounds("abcd", seed), 8)) for seed in range(10)]
    assert len(set(first)) > 5
