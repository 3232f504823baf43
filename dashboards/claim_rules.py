"""The rules of the published claims, each from readings to a finding: does it hold, what was measured, what is open.

Strict in both directions: `holds` is True only if every cell that the rule names was measured and meets it with its
whole interval, False only if a measured interval lies wholly on the wrong side, so that no further cell can save it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import median

from dashboards.claim_cells import Reading, Truth, places
from dashboards.context_fit import SHAPES, Slope, best_share, left_out_errors, slope
from orchestrator.sequential import ALPHA

Rule = Callable[[Reading], Truth]

# More than that are summed up: the page's landscape table has them one by one.
MOST_LISTED = 4
# Below this many contexts a shape is not told from another.
FEWEST_CONTEXTS = 5
# "For at least 3 models", of claim C2.
FEWEST_MODELS = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """`why` has what stands in the way, and is empty where the rule holds."""

    holds: Truth
    figures: str
    why: tuple[str, ...] = ()


def every(truths: Iterable[Truth]) -> Truth:
    """Kleene's conjunction: one False decides, else one None leaves it open.

    Raises ValueError without any: a rule that names no cell holds of nothing.
    """
    seen = list(truths)
    if not seen:
        raise ValueError("a rule that names no cell of the sweep file")
    return False if False in seen else None if None in seen else True


def some(truths: Iterable[Truth]) -> Truth:
    opposite = every(None if truth is None else not truth for truth in truths)
    return None if opposite is None else not opposite


def together(*findings: Finding) -> Finding:
    """All of them. Only the parts that stand in the way say why."""
    figures = "; ".join(finding.figures for finding in findings if finding.figures)
    holds = every(finding.holds for finding in findings)
    clauses = [clause for finding in findings if finding.holds is holds for clause in finding.why]
    return Finding(holds, figures, () if holds else tuple(dict.fromkeys(clauses)))


def every_cell(readings: Sequence[Reading], rule: Rule, wanted: str) -> Finding:
    """wanted: the rule in words, such as `interval above 1.5`."""
    truths = [rule(reading) for reading in readings]
    met = f"; {wanted} in {truths.count(True)}" if any(not reading.refused for reading in readings) else ""
    figures = f"{summed_up(readings)}{met}"
    against = [reading for reading, truth in zip(readings, truths, strict=True) if truth is False]
    if against:
        return Finding(False, figures, (f"contradicted by the whole interval: {listed(against)}",))
    return Finding(every(truths), figures, _open(readings, truths))


def some_cell(readings: Sequence[Reading], rule: Rule, wanted: str) -> Finding:
    truths = [rule(reading) for reading in readings]
    met = [reading for reading, truth in zip(readings, truths, strict=True) if truth]
    figures = f"{wanted} in {listed(met) if met else 'no measured cell'}"
    holds = some(truths)
    if holds is False:
        return Finding(False, figures, (f"{wanted} in none of {len(readings)} cells, all measured",))
    return Finding(holds, figures, () if holds else _open(readings, truths))


def falls_with_size(readings: Sequence[Reading]) -> Finding:
    """Ordered estimates and ends whose intervals are apart; contradicted where a larger model's lies wholly above."""
    figures = summed_up(readings, most=len(readings))
    ordered = sorted(readings, key=lambda reading: reading.cell)
    counted = [reading for reading in ordered if not reading.refused]
    turned = [(one, other) for one, other in combinations(counted, 2) if one.high < other.low]
    if turned:
        pairs = "; ".join(f"{other.words} lies above {one.words}" for one, other in turned)
        return Finding(False, figures, (pairs,))
    if len(counted) < len(ordered):
        return Finding(None, figures, missing(ordered))
    values = [reading.value for reading in ordered]
    if any(one <= other for one, other in pairwise(values)):
        return Finding(None, figures, ("the estimates are not in order, but their intervals overlap",))
    apart = ordered[0].low > ordered[-1].high
    return Finding(True if apart else None, figures, () if apart else ("the intervals of the two ends overlap",))


def falls_with_context(readings: Sequence[Reading]) -> Finding:
    """The slope over log context is below zero with its interval; every context has to be measured."""
    size = readings[0].cell.size
    counted = [reading for reading in readings if not reading.refused]
    if len(counted) < len(readings):
        return Finding(None, f"slope of {size} not known", missing(readings))
    line = slope_of(counted)
    holds = negative(line)
    return Finding(holds, f"{size}: {slope_words(line)}", () if holds else (_slope_fault(size, line),))


def log_linear(readings: Sequence[Reading]) -> Finding:
    """For FEWEST_MODELS models or more: the slope over log context is negative with its interval, and of SHAPES the
    log-linear one has the smallest error on cells left out.

    A model is held against the claim only when all of its contexts are measured, and its slope is positive with its
    interval, or another shape is better whatever the cells are within their intervals.
    """
    own: dict[str, list[Reading]] = {}
    for reading in sorted(readings, key=lambda reading: reading.cell):
        own.setdefault(reading.cell.model, []).append(reading)
    findings = [_shape_of_model(each) for each in own.values()]
    truths = [finding.holds for finding in findings]
    if truths.count(True) >= FEWEST_MODELS:
        holds: Truth = True
    else:
        holds = False if len(truths) - truths.count(False) < FEWEST_MODELS else None
    why = tuple(clause for finding in findings for clause in finding.why)
    head = f"holds for {truths.count(True)} of {len(truths)} models, {FEWEST_MODELS} wanted"
    return Finding(holds, "; ".join([head, *(finding.figures for finding in findings)]), () if holds else why)


def _shape_of_model(readings: Sequence[Reading]) -> Finding:
    size = readings[0].cell.size
    counted = [reading for reading in readings if not reading.refused]
    measured = f"{len(counted)} of {len(readings)} contexts"
    if len(counted) < FEWEST_CONTEXTS:
        return Finding(None, f"{size}: {measured}", (f"{measured} measured at {size}, {FEWEST_CONTEXTS} wanted",))
    line = slope_of(counted)
    contexts = [reading.cell.prompt_tokens for reading in counted]
    gains = [reading.value for reading in counted]
    errors = {shape: float(error) for shape, error in left_out_errors(contexts, gains).items()}
    share = best_share(contexts, gains, half_widths(counted), [reading.boots for reading in counted])
    first = min(SHAPES, key=lambda shape: errors[shape]) == SHAPES[0]
    told = ", ".join(f"{shape} {errors[shape]:.3f}" for shape in SHAPES)
    figures = (
        f"{size} ({measured}): {slope_words(line)}, errors left out {told}, log-linear best in {share:.0%} of draws"
    )
    fits: Truth = True if first else False if share <= ALPHA / 2 else None
    holds = every([negative(line), fits])
    if holds is False and len(counted) < len(readings):
        holds = None
    reasons = [] if negative(line) else [_slope_fault(size, line)]
    reasons += [] if first else [f"another shape predicts better at {size}"]
    return Finding(holds, figures, tuple(reasons))


def summed_up(readings: Sequence[Reading], most: int = MOST_LISTED) -> str:
    """Every reading that counts, or of more than `most` the least, the middle and the largest value."""
    counted = sorted((reading for reading in readings if not reading.refused), key=lambda reading: reading.cell)
    if not counted:
        return f"none measured of {places(readings)}"
    head = f"{len(counted)} of {len(readings)} cells measured"
    if len(counted) <= most:
        return f"{head}, {', '.join(reading.words for reading in counted)}"
    least, largest = (pick(counted, key=lambda reading: reading.value) for pick in (min, max))
    middle = median(reading.value for reading in counted)
    return f"{head}, from {least.words} to {largest.words}, median {middle:.3f}"


def listed(readings: Sequence[Reading]) -> str:
    shown = ", ".join(reading.words for reading in readings[:MOST_LISTED])
    return shown + (f" and {len(readings) - MOST_LISTED} more" if len(readings) > MOST_LISTED else "")


def _open(readings: Sequence[Reading], truths: Sequence[Truth]) -> tuple[str, ...]:
    """Why cells leave it open, those of one reason together."""
    reasons: dict[str, list[Reading]] = {}
    for reading, truth in zip(readings, truths, strict=True):
        if truth is None:
            reasons.setdefault(reading.refused or "the interval holds the bound", []).append(reading)
    return tuple(f"{reason}: {places(cells)}" for reason, cells in reasons.items())


def missing(readings: Sequence[Reading]) -> tuple[str, ...]:
    lost = [reading for reading in readings if reading.refused]
    return _open(lost, [None] * len(lost))


def slope_of(readings: Sequence[Reading]) -> Slope:
    """Of the value over log context, with the readings' intervals carried through; all of them have to count."""
    contexts = [reading.cell.prompt_tokens for reading in readings]
    return slope(contexts, [reading.value for reading in readings], half_widths(readings))


def half_widths(readings: Sequence[Reading]) -> list[float]:
    """Of the intervals, one a reading."""
    return [(reading.high - reading.low) / 2 for reading in readings]


def negative(line: Slope) -> Truth:
    """Whether the whole interval lies below zero; False: above it; None: it straddles."""
    return True if line.high < 0 else False if line.low > 0 else None


def _slope_fault(size: str, line: Slope) -> str:
    return f"the slope of {size} is {'positive' if line.low > 0 else 'negative' if line.high < 0 else 'open in sign'}"


def slope_words(line: Slope) -> str:
    """`-0.120 a doubling (-0.150 to -0.090)`"""
    return f"{line.value:+.3f} a doubling ({line.low:+.3f} to {line.high:+.3f})"
