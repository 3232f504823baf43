"""What windows on a real GPU scatter by, drawn again for simulated sweeps; `noise_fit` takes it from recorded windows.

    rates, speeds = draw(model, [world.baseline, world.candidates[0]], sweeps=1000, boots=8, rounds=8, rng=rng)

The rate of a window is read as log rate = level of the arm + slope x log core speed + rest. Both parts keep their
recorded shape: values are drawn through the recorded quantiles (so two modes stay two modes and outliers outliers),
tied together over time by Gaussian scores z with

    corr(z_i, z_j) = k^[other arm] (boot + (1 - boot - fast) phi^|i - j|)         i, j: positions in one boot; i != j

boot: share of the variance that lasts a boot; phi: correlation from one window to the next; k: how far two arms, which
use the same cores in turn, feel the same; fast: share that switching within a window leaves, from the dwell times of
the two speeds of a core. Beside them a straight drift over a boot, common to the arms. One world a recorded cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from orchestrator.student import Floats

FAR = 4.0  # scores beyond the recorded ones: the outermost slope goes on to here


@dataclass(frozen=True, slots=True)
class Correlation:
    """Of scores over the windows of a boot, see the module. `fast` is measured elsewhere and not fitted."""

    boot: float
    phi: float
    shared: float
    fast: float = 0.0


@dataclass(frozen=True, slots=True)
class ArmNoise:
    """slope: of log rate over log core speed. speed: recorded log speeds, centred, rising. rest_sd: of what is left."""

    arm: str
    engines: int
    windows: int
    slope: float
    speed: tuple[float, ...]
    rest_sd: float


@dataclass(frozen=True, slots=True)
class World:
    """The noise of one recorded cell: its baseline and its other arms; `measured_sd`: of recorded boots' contrasts."""

    name: str
    baseline: ArmNoise
    candidates: tuple[ArmNoise, ...]
    boots: int
    measured_sd: tuple[float, ...]
    rounds: int


@dataclass(frozen=True, slots=True)
class CoreSpeeds:
    """Two speeds of an idle machine's cores, how long they dwell, and the sd that leaves in a window's log mean."""

    low_mops: float
    high_mops: float
    low_share: float
    low_dwell_s: float
    high_dwell_s: float
    readings: int
    window_sd: float


@dataclass(frozen=True, slots=True)
class Noise:
    worlds: tuple[World, ...]
    cores: CoreSpeeds
    speed: Correlation
    rest: Correlation
    rest_shape: tuple[float, ...]  # recorded residuals over their sd, rising: the tails
    drift_sd: float  # log, over a boot's windows of one cell
    window_s: float
    spacing_s: float  # from the start of one window to the start of the next
    windows: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def draw(
    noise: Noise, arms: Sequence[ArmNoise], sweeps: int, boots: int, rounds: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Log rates and log core speeds about 0, each sweeps x boots x arms x rounds; arms take turns in a random order."""
    slots = len(arms) * rounds
    place = np.argsort(rng.random((sweeps, boots, rounds, len(arms))), axis=3) + len(arms) * np.arange(rounds)[:, None]
    place = np.moveaxis(place, 3, 2)  # of an arm's window among all of its boot
    rates = (place / max(slots - 1, 1) - 0.5) * rng.normal(0, noise.drift_sd, (sweeps, boots, 1, 1))
    speeds, rest = (_scores(how, len(arms), place, slots, rng) for how in (noise.speed, noise.rest))
    for i, arm in enumerate(arms):
        speeds[:, :, i] = _through(speeds[:, :, i], arm.speed)
        rates[:, :, i] += arm.slope * speeds[:, :, i] + arm.rest_sd * _through(rest[:, :, i], noise.rest_shape)
    return np.asarray(rates), speeds


def _scores(how: Correlation, arms: int, place: Any, slots: int, rng: np.random.Generator) -> Floats:
    """Standard normal scores at every arm's windows with the module's correlation."""
    sweeps, boots = place.shape[:2]
    courses = [_course(how, (sweeps, boots), slots, rng) for _ in range(arms + 1)]
    out = np.empty(place.shape)
    for i in range(arms):
        mixed = np.sqrt(how.shared) * courses[-1] + np.sqrt(1 - how.shared) * courses[i]
        out[:, :, i] = np.take_along_axis(mixed, place[:, :, i], axis=2)
    return np.asarray(np.sqrt(1 - how.fast) * out + np.sqrt(how.fast) * rng.standard_normal(place.shape))


def _course(how: Correlation, shape: tuple[int, int], slots: int, rng: np.random.Generator) -> Floats:
    """Boot level and AR(1) of unit variance; `fast` is left to the caller, so both shares are of what it leaves."""
    boot = min(how.boot / (1 - how.fast), 1.0)
    steps = rng.standard_normal((*shape, slots))
    for k in range(1, slots):
        steps[..., k] = how.phi * steps[..., k - 1] + np.sqrt(1 - how.phi**2) * steps[..., k]
    return np.asarray(np.sqrt(boot) * rng.standard_normal((*shape, 1)) + np.sqrt(1 - boot) * steps)


def _through(scores: Floats, recorded: Sequence[float]) -> Floats:
    """Scores to values by the recorded quantiles, straight between them and on beyond the last; mean 0."""
    values = np.asarray(recorded)
    normal = NormalDist()
    at = np.array([normal.inv_cdf((i + 0.5) / len(values)) for i in range(len(values))])
    step = max(len(values) // 10, 1)
    ends = [values[0] - (values[step] - values[0]) / (at[step] - at[0]) * (FAR + at[0]),
            values[-1] + (values[-1] - values[-1 - step]) / (at[-1] - at[-1 - step]) * (FAR - at[-1])]  # fmt: skip
    at, values = np.r_[-FAR, at, FAR], np.r_[ends[0], values, ends[1]]
    grid = np.linspace(-FAR, FAR, 4001)
    weight = np.exp(-(grid**2) / 2)
    mean = float((np.interp(grid, at, values) * weight).sum() / weight.sum())
    return np.asarray(np.interp(scores, at, values) - mean)
