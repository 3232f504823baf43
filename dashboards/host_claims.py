"""The published study's claims about the host, C11 and C12, by the rules that were fixed beforehand.

C11 is judged by Gemma 4B in `async-scheduling`: throughput in output tokens/s where the median end-to-end latency is
8 s, as `orchestrator/views.py` reads it off each boot's ladder of clients, with its interval over boots. C12 is judged
by gains, mps2 over single, in cells that differ only in whether the host has the work to do. Where a rule left
something open, our reading is stated where it is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from dashboards.ablation import gain_ratio
from dashboards.claim_cells import KEY, Cell, Reading, Truth, forbidden, planned, ratio_reading, ratios
from dashboards.claim_rules import Finding, every_cell, missing, summed_up, together
from orchestrator.ladder import trial_means
from orchestrator.spec import SWEEPS
from orchestrator.verdicts import PlannedBoots
from orchestrator.views import judge_views
from workloads.catalogue import canonical_name

SCHEDULING = "async-scheduling"
MODEL = "gemma-3-4b"
LATENCY = "e2e_p50"  # our reading: the study says `8 s latency`
LEVEL_S = 8.0
PLAIN, ASYNC, SECOND = "single-sync", "single", "mps2-sync"
ALIKE = (0.9, 1.1)


@dataclass(frozen=True, slots=True)
class HostWork:
    """What the host does for each request: the sweep with cells of kind `given`, which have it in the path, and of
    `spared`, which are the same without."""

    name: str
    sweep: str
    given: str
    spared: str


HOST_WORK = (
    HostWork("tokenisation", "tokenisation", "text", "mixed"),
    HostWork("image preprocessing", "images", "image", "mixed"),
)


def host_findings(
    verdicts: pl.DataFrame, trials: pl.DataFrame, windows: pl.DataFrame, ladder_boots: PlannedBoots = None
) -> dict[str, tuple[str, Finding]]:
    """C11 and C12: the claim in short, and the finding. verdicts: rows of `verdicts.judge`; trials, windows: tables of
    `records`; ladder_boots: `planned_boots` of SCHEDULING, as `verdicts.judge` takes them."""
    return {
        "C11": (
            "async scheduling alone gives Gemma 4B what MPS and a second engine without it give, 33 % and 35 % at 8 s",
            same_gain(trials, windows, ladder_boots),
        ),
        "C12": (
            "what tokenisation and image preprocessing cost the host is won back by splitting the batch over engines",
            won_back(verdicts),
        ),
    }


def same_gain(trials: pl.DataFrame, windows: pl.DataFrame, ladder_boots: PlannedBoots = None) -> Finding:
    """Claim C11: both gains over one engine without async scheduling, and the ratio of the two.

    Gains are ratios of throughput, so that one excludes 0 % where its interval excludes 1. Our reading: upward; and the
    ratio is of these ratios, MPS over async scheduling, not of the percentages. It is the view's contrast of these two
    arms: the plain engine, which both gains share, cancels in every boot, and with it its noise. The percentages
    stand beside it: their own ratio is anything where the gains are small.
    Every boot has to have the whole ladder of the sweep file in both arms that are compared: a curve with a rung less
    would be bent. Engines that do not fit side by side are measured alone, from some number of clients on, and the
    view reads both parts of the ladder apart: that part counts in which the level is passed, which latencies alone say.
    """
    cells = [cell for cell in planned(SCHEDULING) if cell.model == canonical_name(MODEL)]
    ladder = pl.DataFrame([{name: getattr(cell, name) for name in KEY} for cell in cells])
    own = trials.filter(sweep=SCHEDULING, backend="vllm").join(ladder, on=KEY, how="semi")
    place = f"{MODEL} with {', '.join(str(cell.concurrency) for cell in cells)} clients"
    if own.is_empty():
        return Finding(None, f"none measured of {place}", (f"not measured: {place}",))
    if own["gpu_kind"].n_unique() > 1:
        return Finding(None, "", ("measured on several kinds of GPU",))
    over = {arm: _at_level(own, windows, arm, ladder_boots) for arm in (PLAIN, ASYNC)}
    pairs = ((ASYNC, PLAIN), (SECOND, PLAIN), (SECOND, ASYNC))
    by_part = [_by_residency(cells[0], over[baseline].filter(arm=arm)) for arm, baseline in pairs]
    passing = {residency for part in by_part for residency, reading in part.items() if not reading.refused}
    if len(passing) > 1:
        return Finding(None, "", (f"engines resident and engines alone both pass {LEVEL_S:g} s",))
    gaps = _gaps(cells, own, windows)
    one, two, ratio = (
        _counted(cells[0], part, passing, [gaps[arm] for arm in pair if gaps[arm]])
        for pair, part in zip(pairs, by_part, strict=True)
    )
    found = together(
        _judged("async scheduling", one, one.above(1.0), "above 1"),
        _judged("two engines with MPS, without it", two, two.above(1.0), "above 1"),
        _judged("the second over the first", ratio, _inside(ratio), f"within {ALIKE[0]:g} to {ALIKE[1]:g}"),
    )
    head = f"{MODEL}, throughput over the plain single engine's where the median end-to-end latency is {LEVEL_S:g} s"
    beside = (
        "" if one.refused or two.refused else f"; in percent {100 * (two.value - 1):.0f} to {100 * (one.value - 1):.0f}"
    )
    return Finding(found.holds, f"{head}: {found.figures}{beside}", found.why)


def _at_level(own: pl.DataFrame, windows: pl.DataFrame, baseline: str, boots: PlannedBoots) -> pl.DataFrame:
    """Rows of the view at the level, one an arm and residency, every arm against `baseline`."""
    against = own.with_columns(baseline=pl.lit(baseline))
    rows = judge_views(against, windows, views=["equal_latency"], latencies={LATENCY: [LEVEL_S]}, planned_boots=boots)
    return rows.filter(baseline=baseline, metric="throughput").with_columns(forbidden=forbidden())


def _by_residency(cell: Cell, rows: pl.DataFrame) -> dict[str, Reading]:
    """The cell stands for the whole ladder."""
    return {row["residency"]: ratio_reading(cell, row) for row in rows.iter_rows(named=True)}


def _counted(cell: Cell, part: Mapping[str, Reading], passing: set[str], gaps: Sequence[str]) -> Reading:
    """The reading of the one part of the ladder that passes the level; refused with all that stands in the way."""
    seen = {residency: reading for residency, reading in part.items() if not passing or residency in passing}
    if len(seen) == 1 and not gaps:
        return next(iter(seen.values()))
    told = [f"engines {each}: {reading.refused}" for each, reading in sorted(seen.items()) if reading.refused]
    return Reading(cell, "; ".join([*gaps, *told]) or "not measured")


def _gaps(cells: Sequence[Cell], own: pl.DataFrame, windows: pl.DataFrame) -> dict[str, str]:
    """By arm: what its ladder lacks, empty where every boot has a certified window on every rung."""
    boots = own["repeat"].n_unique()
    known = trial_means(own, windows).drop_nulls(["throughput", LATENCY]).select("trial_id", "attempt_id")
    seen = own.join(known, on=["trial_id", "attempt_id"], how="semi")
    gaps = {}
    for arm in (PLAIN, ASYNC, SECOND):
        by_count: dict[int, list[str]] = {}
        for cell in cells:
            count = seen.filter(arm=arm, concurrency=cell.concurrency)["repeat"].n_unique()
            by_count.setdefault(count, []).append(str(cell.concurrency))
        short = [f"{', '.join(rungs)} clients in {count}" for count, rungs in by_count.items() if count < boots]
        gaps[arm] = f"{arm} measured with {' and '.join(short)} of {boots} boots" if short else ""
    return gaps


def _inside(reading: Reading) -> Truth:
    if reading.refused:
        return None
    low, high = ALIKE
    apart = reading.high < low or reading.low > high
    return True if low <= reading.low and reading.high <= high else False if apart else None


def _judged(name: str, reading: Reading, truth: Truth, wanted: str) -> Finding:
    if reading.refused:
        return Finding(None, f"{name} not known", (f"{name}: {reading.refused}",))
    words = f"{name} {reading.value:.3f} ({reading.low:.3f} to {reading.high:.3f})"
    against = f"contradicted by the whole interval: {words}, not {wanted}"
    open_ = f"the interval leaves open whether it is {wanted}: {name}"
    return Finding(truth, words, () if truth else (open_ if truth is None else against,))


def won_back(verdicts: pl.DataFrame, works: Sequence[HostWork] = HOST_WORK) -> Finding:
    """Claim C12: every one of `works`, each by `_won_back`."""
    return together(*(_won_back(verdicts, work) for work in works))


def _won_back(verdicts: pl.DataFrame, work: HostWork) -> Finding:
    """In every cell with the work in the path the gain is above 1, and above that of the same cell without.

    Our reading: larger by the whole interval of the ratio of gains. Engines with a tokenizer or a vision tower boot for
    themselves (`orchestrator/plan.py`), so both gains come from different boots, and their errors are taken to be
    independent (`dashboards/ablation.py`).
    """
    if not (SWEEPS / f"{work.sweep}.yaml").is_file():
        return Finding(None, f"{work.name}: not measured", (f"{work.name}: not measured, there is no such sweep file",))
    gains = ratios(verdicts, work.sweep, "mps2", "single")
    given = [gain for gain in gains if gain.cell.kind == work.given]
    lost = missing(given)
    if given and all(gain.refused for gain in given):
        return Finding(None, f"{work.name}: {summed_up(given)}", tuple(f"{work.name}: {clause}" for clause in lost))
    spared = {_place(gain.cell): gain for gain in gains if gain.cell.kind == work.spared}
    more = [gain_ratio(gain, spared[_place(gain.cell)], "without it") for gain in given]
    gain = every_cell(given, lambda reading: reading.above(1.0), "interval above 1")
    excess = every_cell(more, lambda reading: reading.above(1.0), "interval above 1")
    told = "over the gain without it"
    why = tuple(clause if clause in lost else f"{told}: {clause}" for clause in excess.why)
    found = together(gain, Finding(excess.holds, f"{told}, {excess.figures}", why))
    return Finding(found.holds, f"{work.name}: {found.figures}", tuple(f"{work.name}: {each}" for each in found.why))


def _place(cell: Cell) -> tuple[str, int, int, int]:
    return cell.model, cell.prompt_tokens, cell.output_tokens, cell.concurrency
