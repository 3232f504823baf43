"""Halves of a model against the whole: gains of each, their shares of a step, and the gain that one would expect.

All from replayed steps (`ablation-decode-replay`, `ablation-prefill-replay`), where no host is in the path. Gain is
throughput of mps2 over single. Quantities of different models come from different boots, so their errors are taken to
be independent: half-widths add in squares (JCGM 100:2008, 5.1.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot

import polars as pl

from dashboards.claim_cells import Cell, Reading, ratios, student_reading
from dashboards.step_parts import by_half
from orchestrator.sequential import MIN_BOOTS
from workloads.variants import VARIANTS, split

SWEEPS: Mapping[str, str] = {"decode": "ablation-decode-replay", "prefill": "ablation-prefill-replay"}
SERVED: Mapping[str, str] = {"decode": "ablation-decode", "prefill": "ablation-prefill"}
ATTENTION, MLP = VARIANTS


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the half-width of its 95 % interval."""

    value: float
    half: float

    @classmethod
    def of(cls, reading: Reading) -> Estimate:
        return cls(reading.value, (reading.high - reading.low) / 2)

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    def over(self, other: Estimate) -> Estimate:
        """The ratio, to first order."""
        ratio = self.value / other.value
        return Estimate(ratio, abs(ratio) * hypot(self.half / self.value, other.half / other.value))

    @property
    def words(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Ablation:
    """One full cell with its halves: gains mps2 / single, and the attention half's share of the time of both.

    halves: mean seconds a step by half, the rest and the time between kernels; empty without a profile.
    """

    cell: Cell
    full: Reading
    attention: Reading
    mlp: Reading
    share: Reading
    halves: Mapping[str, float]

    @property
    def refused(self) -> str:
        """Why no gain can be expected of it; empty where all is there."""
        named = {"full model": self.full, ATTENTION: self.attention, MLP: self.mlp, "profile": self.share}
        return "; ".join(f"{name}: {reading.refused}" for name, reading in named.items() if reading.refused)

    def expected(self) -> tuple[Estimate, Estimate]:
        """The full model's gain if halves gained in it what they gain alone: as weighted mean of gains, and as times
        compose. The latter, a harmonic mean, is never above the former. Raises ValueError where something is missing.
        """
        if self.refused:
            raise ValueError(self.refused)
        return expected(*(Estimate.of(reading) for reading in (self.share, self.attention, self.mlp)))


def expected(share: Estimate, attention: Estimate, mlp: Estimate) -> tuple[Estimate, Estimate]:
    """Gains of both halves to one of the whole. share: attention's of the time that both take in one engine.

    Weighted: w a + (1 - w) m. Times: 1 / (w / a + (1 - w) / m), since T = sum of T_i / g_i.

    >>> weighted, times = expected(Estimate(0.5, 0.0), Estimate(2.0, 0.0), Estimate(1.0, 0.0))
    >>> weighted.value, round(times.value, 3)
    (1.5, 1.333)
    """
    w, a, m = share.value, attention.value, mlp.value
    mean = Estimate(w * a + (1 - w) * m, hypot(w * attention.half, (1 - w) * mlp.half, (a - m) * share.half))
    gain = 1.0 / (w / a + (1 - w) / m)
    slopes = gain**2 * w / a**2, gain**2 * (1 - w) / m**2, gain**2 * (1 / a - 1 / m)
    errors = zip(slopes, (attention.half, mlp.half, share.half), strict=True)
    return mean, Estimate(gain, hypot(*(slope * half for slope, half in errors)))


def ablations(verdicts: pl.DataFrame, parts: pl.DataFrame, phase: str) -> tuple[Ablation, ...]:
    """Every full cell of the phase's replayed sweep, by model size and context. parts: of `step_parts`."""
    sweep = SWEEPS[phase]
    gains = {_place(reading.cell): reading for reading in ratios(verdicts, sweep, "mps2", "single")}
    halves = by_half(parts.filter(sweep=sweep))
    found = []
    for (model, variant, prompt), reading in gains.items():
        if variant is None:
            own = halves.filter(model=model, prompt_tokens=prompt, concurrency=reading.cell.concurrency)
            found.append(
                Ablation(
                    cell=reading.cell,
                    full=reading,
                    attention=gains[model, ATTENTION, prompt],
                    mlp=gains[model, MLP, prompt],
                    share=_share(reading.cell, own),
                    halves=_means(own),
                )
            )
    return tuple(found)


def over_boots(cell: Cell, values: Sequence[float], what: str = "profiled in") -> Reading:
    """The mean of one value a boot with its interval; refused with fewer boots than a verdict needs."""
    count = len(values)
    if count < MIN_BOOTS:
        return Reading(cell, f"{what} {count} of {MIN_BOOTS} boots")
    series = pl.Series(values)
    mean, deviation = float(series.mean()), float(series.std())  # type: ignore[arg-type]
    return student_reading(cell, mean, deviation, count)


def _share(cell: Cell, halves: pl.DataFrame) -> Reading:
    wide = halves.filter(pl.col("half").is_in(["attention", "mlp"])).pivot("half", index="trial_id", values="seconds")
    if not {"attention", "mlp"} <= set(wide.columns):
        return Reading(cell, "not profiled")
    return over_boots(cell, (wide["attention"] / (wide["attention"] + wide["mlp"])).to_list())


def _means(halves: pl.DataFrame) -> dict[str, float]:
    means = halves.group_by("half").agg(pl.col("seconds").mean()).sort("half")
    return dict(means.iter_rows())


def _place(cell: Cell) -> tuple[str, str | None, int]:
    model, variant = split(cell.model)
    return model, variant, cell.prompt_tokens


def gain_ratio(one: Reading, other: Reading, name: str = "full model") -> Reading:
    """How much more `one` gains than `other`, as a reading at the cell of `one`; refused where either is.

    name: what `other` is, where that is the reason.
    """
    if one.refused or other.refused:
        return replace(one, refused=one.refused or f"{name}: {other.refused}")
    ratio = Estimate.of(one).over(Estimate.of(other))
    return Reading(one.cell, "", ratio.value, ratio.low, ratio.high, min(one.boots, other.boots))
