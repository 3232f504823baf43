"""The published study's claims, judged from a measured store by rules that were fixed beforehand.

Each claim is judged from the cells of its own sweep alone, with the numbers of clients of the sweep's file: C1 to C4,
C15, C16 and C17 from `scaling-landscape`, C5 and C6 from the cells of kind prefill in `prefill-landscape`, C7 to C10
from the ablations (`dashboards/ablation_claims.py`), C11 and C12 from `async-scheduling`, `tokenisation` and `images`
(`dashboards/host_claims.py`), C18 from both landscapes. Gain is throughput of mps2 over single at equal total
concurrency, but for C11.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import polars as pl

from dashboards.ablation_claims import ablation_findings
from dashboards.claim_cells import Cell, Reading, Truth, boot_means, places, ratios, shares
from dashboards.claim_rules import (
    Finding,
    every_cell,
    falls_with_context,
    falls_with_size,
    log_linear,
    missing,
    some_cell,
    together,
)
from dashboards.findings_tables import table
from dashboards.host_claims import host_findings
from dashboards.landscape_tables import SWEEPS
from orchestrator.verdicts import PlannedBoots

MIXED, PREFILL = SWEEPS
OF_MIXED = ("C1", "C2", "C3", "C4", "C15", "C16", "C17")  # judged from that sweep alone
OUTCOMES: dict[Truth, str] = {True: "reproduced", False: "not reproduced", None: "undecided"}
COUNTERS = {"sm_active_share": "SM", "tensor_active_share": "tensor", "dram_active_share": "DRAM"}
OVERLAP_COUNTERS = {"gpu_active_share": "GPU-active share", "sm_active_share": "SM share"}
IDLE_BELOW = 0.6


@dataclass(frozen=True, slots=True)
class Claim:
    """outcome: one of OUTCOMES. figures: what was measured, in a sentence. reason: empty where it is reproduced."""

    id: str
    claim: str
    outcome: str
    figures: str
    reason: str


def claims(
    verdicts: pl.DataFrame,
    trials: pl.DataFrame,
    windows: pl.DataFrame,
    parts: pl.DataFrame,
    ladder_boots: PlannedBoots = None,
) -> tuple[Claim, ...]:
    """The claims in the study's order.

    verdicts: rows of `verdicts.judge`; trials, windows: tables of `records`; parts: of `step_parts`. Other sweeps' rows
    are left alone, and so are predictions (backend `simulated`). ladder_boots: `planned_boots` of `async-scheduling`,
    whose ladders are judged here, see `verdicts.judge`. Raises SpecError where a sweep file cannot be read.
    """
    mixed = ratios(verdicts, MIXED, "mps2", "single")
    prefill = ratios(verdicts, PREFILL, "mps2", "single")
    boots = {sweep: boot_means(trials, windows, sweep, {**COUNTERS, **OVERLAP_COUNTERS}) for sweep in (MIXED, PREFILL)}
    only = [reading for reading in prefill if reading.cell.kind == "prefill"]
    mostly = [reading for reading in prefill if reading.cell.kind == "mixed"]
    findings = {
        "C1": ("over half more throughput for small models at short context", _small_and_short(mixed)),
        "C2": ("the gain falls with the logarithm of context", log_linear(mixed)),
        "C3": ("the gain falls fast with model size", falls_with_size(_of(mixed, lambda at: at.prompt_tokens == 128))),
        "C4": ("at 7B, or from 2k context on, under 10 %, and a loss in the end", _small_gain(mixed)),
        "C5": ("prefill under 3B: more than twice the throughput", _beside(_small_prefill, only, mostly)),
        "C6": (
            "prefill at 3B: falls with context and ends in a loss; above: no gain",
            _beside(_large_prefill, only, mostly),
        ),
        **ablation_findings(verdicts, parts),
        **host_findings(verdicts, trials, windows, ladder_boots),
        "C15": ("no gain to be had beyond the sweet spot", _beyond(mixed)),
        "C16": ("significant gain up to 3B under 2k context", _sweet_spot(mixed)),
        "C17": ("small models leave compute and bandwidth idle", _idle(boots[MIXED])),
        "C18": ("kernels of processes overlap with MPS alone", _overlap(verdicts, boots)),
    }
    return tuple(
        Claim(number, words, OUTCOMES[finding.holds], finding.figures, "; ".join(finding.why))
        for number, (words, finding) in findings.items()
    )


def claims_table(
    verdicts: pl.DataFrame,
    trials: pl.DataFrame,
    windows: pl.DataFrame,
    parts: pl.DataFrame,
    only: Collection[str] | None = None,
    ladder_boots: PlannedBoots = None,
) -> str:
    """As `claims`, as Markdown. only: the numbers of those to show."""
    rows = [
        [cell.replace("|", "/") for cell in (each.id, each.claim, each.outcome, each.figures, each.reason or "-")]
        for each in claims(verdicts, trials, windows, parts, ladder_boots)
        if only is None or each.id in only
    ]
    return table(("claim", "in short", "outcome", "what was measured", "why"), rows)


def _of(readings: Sequence[Reading], wanted: Callable[[Cell], bool]) -> list[Reading]:
    return [reading for reading in readings if wanted(reading.cell)]


def _small_and_short(mixed: Sequence[Reading]) -> Finding:
    wanted = _of(mixed, lambda at: at.billions < 3 and at.prompt_tokens <= 256)
    return every_cell(wanted, lambda gain: gain.above(1.5), "interval above 1.5")


def _small_gain(mixed: Sequence[Reading]) -> Finding:
    """`Somewhere beyond` is read as: at a context above 2,048, whatever the model."""
    wanted = _of(mixed, lambda at: at.billions >= 7 or at.prompt_tokens >= 2048)
    beyond = _of(mixed, lambda at: at.prompt_tokens > 2048)
    return together(
        every_cell(wanted, lambda gain: gain.below(1.1), "interval below 1.1"),
        some_cell(beyond, lambda gain: gain.below(1.0), "interval below 1 beyond 2048"),
    )


def _small_prefill(readings: Sequence[Reading]) -> Finding:
    return every_cell(_of(readings, lambda at: at.billions < 3), lambda gain: gain.above(2.0), "interval above 2")


def _large_prefill(readings: Sequence[Reading]) -> Finding:
    """The slope, too, has to be below zero with its interval, as in C2."""
    three = _of(readings, lambda at: at.billions == 3)
    longest = max(reading.cell.prompt_tokens for reading in three)
    end = _of(three, lambda at: at.prompt_tokens == longest)
    seven = _of(readings, lambda at: at.billions == 7)
    return together(
        falls_with_context(three),
        every_cell(end, lambda gain: gain.below(1.0), "interval below 1"),
        every_cell(seven, lambda gain: gain.below(1.05), "interval below 1.05"),
    )


def _beside(
    judge: Callable[[Sequence[Reading]], Finding], only: Sequence[Reading], mostly: Sequence[Reading]
) -> Finding:
    """Judged by prefill alone; what the same rule says of cells with a few output tokens is told beside it."""
    finding, other = judge(only), judge(mostly)
    (tokens,) = {reading.cell.output_tokens for reading in mostly}
    told = f"Beside it, {tokens} output tokens, by the same rule {OUTCOMES[other.holds]}: {other.figures}"
    return Finding(finding.holds, f"{finding.figures}. {told}", finding.why)


def _beyond(mixed: Sequence[Reading]) -> Finding:
    wanted = _of(mixed, lambda at: at.billions >= 7 or at.prompt_tokens == 16384)
    return every_cell(wanted, lambda gain: gain.below(1.1), "interval below 1.1")


def _sweet_spot(mixed: Sequence[Reading]) -> Finding:
    wanted = _of(mixed, lambda at: at.billions <= 3 and at.prompt_tokens < 2048)
    return every_cell(wanted, lambda gain: gain.above(1.1), "interval above 1.1")


def _idle(boots: pl.DataFrame) -> Finding:
    """Every cell up to 3B has to meet the rule, not their mean, which would rest on what cells were chosen."""
    small = {
        name: _of(shares(boots, MIXED, "single", counter), lambda at: at.billions <= 3)
        for counter, name in COUNTERS.items()
    }
    lost = set.intersection(*(set(missing(seen)) for seen in small.values()))
    parts = []
    for name, seen in small.items():
        part = every_cell(seen, lambda share: share.below(IDLE_BELOW), f"interval below {IDLE_BELOW}")
        own = tuple(clause if clause in lost else f"{name}: {clause}" for clause in part.why)
        parts.append(Finding(part.holds, f"{name}: {part.figures}", own))
    found = together(*parts)
    plateau = "That one engine is at its plateau is the sweep file's rule for clients, not proved by these cells"
    return Finding(found.holds, f"shares of the window, single. {found.figures}. {plateau}", found.why)


def _overlap(verdicts: pl.DataFrame, boots: Mapping[str, pl.DataFrame]) -> Finding:
    """Our reading, since the study names no threshold: reproduced if mps2 / timesliced2 `wins` in a cell of every model
    and `loses` in none; not reproduced if it loses in some and wins in none; both only with every cell measured, since
    one more could turn it."""
    readings = [each for sweep in boots for each in ratios(verdicts, sweep, "mps2", "timesliced2")]
    moved = {name: _changes(boots, counter) for counter, name in OVERLAP_COUNTERS.items()}
    own = [
        [reading for reading in readings if reading.cell.billions == billions]
        for billions in sorted({reading.cell.billions for reading in readings})
    ]
    counts = [Counter(reading.verdict for reading in each if not reading.refused) for each in own]
    wins, loses = ([count[word] > 0 for count in counts] for word in ("wins", "loses"))
    words = "; ".join(_overlap_words(each, count, moved) for each, count in zip(own, counts, strict=True))
    figures = f"{words}. Our reading: reproduced if every model has a win and no cell loses"
    if any(reading.refused for reading in readings):
        return Finding(None, figures, missing(readings))
    if all(wins) and not any(loses):
        return Finding(True, figures)
    return Finding(False if any(loses) and not any(wins) else None, figures, _overlap_why(own, wins))


def _overlap_why(own: Sequence[Sequence[Reading]], wins: Sequence[bool]) -> tuple[str, ...]:
    lost = [reading for each in own for reading in each if reading.verdict == "loses"]
    without = [each[0].cell.size for each, won in zip(own, wins, strict=True) if not won]
    clauses = [f"loses: {places(lost)}"] if lost else []
    return tuple(clauses + ([f"no win at {', '.join(without)}"] if without else []))


def _overlap_words(readings: Sequence[Reading], count: Counter[str], moved: Mapping[str, Mapping[Cell, float]]) -> str:
    counted = [reading for reading in readings if not reading.refused]
    head = f"{readings[0].cell.size}, {len(counted)} of {len(readings)} cells"
    if not counted:
        return head
    words = ", ".join(f"{count[word]} {word}" for word in ("wins", "tie", "loses", "undecided"))
    parts = [f"{head}: {words}", f"median ratio {median(reading.value for reading in counted):.3f}"]
    for name, changes in moved.items():
        known = [changes[reading.cell] for reading in counted if reading.cell in changes]
        parts.append(f"{name} {fmean(known):+.3f} in the mean" if known else f"{name} not known")
    return ", ".join(parts)


def _changes(boots: Mapping[str, pl.DataFrame], counter: str) -> dict[Cell, float]:
    """The counter's mean under mps2 less that under timesliced2, of every cell that has both in enough boots."""
    found = {}
    for sweep in boots:
        mps, sliced = (shares(boots[sweep], sweep, arm, counter) for arm in ("mps2", "timesliced2"))
        for one, other in zip(mps, sliced, strict=True):
            if not one.refused and not other.refused:
                found[one.cell] = one.value - other.value
    return found
