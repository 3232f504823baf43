"""How slow an arm is, as far as it is known: what one set of boots showed need not be asked of the next.

    pace.known_s(repeat, arms)        # None where one of them was never seen: a pilot window has to tell

Virtual time costs nothing, so simulated blocks keep none, and a sweep that was interrupted comes out as one that was
not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from orchestrator.trial import Arm, Repeat, fingerprint

LATENCY_COLUMNS = ("trial_id", "start_ns", "output_tokens", "duration_s")


def little_latency_s(repeat: Repeat, output_tokens: int, duration_s: float) -> float:
    """Mean request latency by Little's law, clients over completions a second, which needs no request to finish.

    0 where requests never end within a window, or where none moved. Source: J. D. C. Little, Operations Research 9
    (1961) 383-387.
    """
    work = repeat.cell.workload
    if work.phase == "decode" or work.replayed or output_tokens == 0:
        return 0.0
    return repeat.cell.concurrency * work.output_tokens * duration_s / output_tokens


@dataclass(slots=True)
class Pace:
    """Request latencies that were seen, in seconds, by what they depend on (`pace_key`)."""

    latencies_s: dict[str, float] = field(default_factory=dict)

    def known_s(self, repeat: Repeat, arms: Sequence[Arm]) -> float | None:
        """Of the slowest of `arms`; None where one of them was not seen yet."""
        seen = [self.latencies_s.get(pace_key(repeat, arm)) for arm in arms]
        return None if None in seen else max((latency for latency in seen if latency is not None), default=None)

    def note(self, repeat: Repeat, arm: Arm, latency_s: float) -> None:
        """The latest counts: the first look at a long cell is short of prefills and says too much."""
        self.latencies_s[pace_key(repeat, arm)] = latency_s

    def of(self, repeat: Repeat) -> dict[str, float]:
        """What is known of the arms of `repeat`, for others to hear."""
        keys = (pace_key(repeat, arm) for arm in repeat.measured)
        return {key: self.latencies_s[key] for key in keys if key in self.latencies_s}

    def hear(self, latencies_s: Mapping[str, float]) -> None:
        """What others saw counts where nothing was seen here."""
        self.latencies_s = {**latencies_s, **self.latencies_s}


def pace_key(repeat: Repeat, arm: Arm) -> str:
    """What a latency depends on, other than chance."""
    return fingerprint([repeat.backend, repeat.cell, repeat.engine_args, arm])


def recorded_latencies_s(repeats: Iterable[Repeat], windows: pl.DataFrame) -> dict[str, float]:
    """By `pace_key`, what the windows of earlier repeats showed; the latest boot's mean counts.

    windows: LATENCY_COLUMNS of a store's windows.
    """
    sums = windows.group_by("trial_id").agg(pl.col("start_ns").min(), pl.col("output_tokens", "duration_s").sum())
    seen = {trial_id: (tokens, seconds) for trial_id, _, tokens, seconds in sums.sort("start_ns").iter_rows()}
    place = {trial_id: index for index, trial_id in enumerate(seen)}
    known = [
        (place[trial_id], repeat, arm, *seen[trial_id])
        for repeat in repeats
        for arm in repeat.measured
        if (trial_id := repeat.trial_id(arm)) in seen
    ]
    return {
        pace_key(repeat, arm): little_latency_s(repeat, tokens, seconds)
        for _, repeat, arm, tokens, seconds in sorted(known, key=lambda one: one[0])
    }
