"""The noise model of `noise`, from recorded windows: levels, slopes, correlations, tails, drift and dwell times.

    model = fit(trials, windows, core_speeds)

Every parameter is a moment or a quantile of what was measured; none is chosen by hand.
"""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import numpy as np
import polars as pl

from orchestrator.contrast import CELL, log_windows, numbered
from orchestrator.noise import ArmNoise, CoreSpeeds, Correlation, Noise, World

FEWEST_WINDOWS = 6  # of an arm, below which no line is laid through them
FEWEST_BOOTS = 2
LAGS = 8


def fit(trials: pl.DataFrame, windows: pl.DataFrame, core_speeds: pl.DataFrame) -> Noise:
    """trials, windows: measured tables. core_speeds: (part, time_s, cpu, speed_mops) of cores that did nothing else.

    Raises ValueError where no cell has two boots of at least two arms with known core speed.
    """
    frame = _deviations(trials, windows)
    known = _with_slopes(frame.filter(pl.col("speed").is_not_null()))
    worlds = tuple(_world(rows) for _, rows in sorted(known.group_by("cell_id"), key=lambda item: item[0]))
    if not worlds:
        raise ValueError("no cell has two boots of two arms with a known core speed")
    window_s = float(known["duration_s"].median())  # type: ignore[arg-type]
    cores = _core_speeds(core_speeds, window_s)
    spread = np.sqrt(known.select((pl.col("speed") ** 2).mean()).item())
    shape = np.sort((known["rest"] / known["rest_sd"]).to_numpy())
    return Noise(
        worlds=worlds,
        cores=cores,
        speed=_correlation(known, "speed", min((cores.window_sd / spread) ** 2, 0.9)),
        rest=_correlation(known, "rest", 0.0),
        rest_shape=tuple(float(v) for v in shape / shape.std()),
        drift_sd=_drift_sd(frame),
        window_s=window_s,
        spacing_s=_spacing_s(known),
        windows=len(known),
    )


def _spacing_s(known: pl.DataFrame) -> float:
    steps = known.sort("boot", "order_index").select(pl.col("start_s").diff().over("boot")).drop_nulls()
    return float(steps["start_s"].median())  # type: ignore[arg-type]


def _deviations(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Certified windows of resident repeats: log rate and log core speed, each less its arm's mean in the cell."""
    known = numbered(trials.filter((pl.col("outcome") == "ok") & (pl.col("backend") == "vllm")))
    logs = log_windows(known, windows).filter("certified").drop_nulls("throughput")
    kept = windows.join(known.select("trial_id", "attempt_id", "trial"), on=["trial_id", "attempt_id"]).select(
        "trial", "order_index", "round_index", "duration_s", start_s=pl.col("start_ns") / 1e9,
        speed=pl.col("engine_core_speed_mops").log(),
    )  # fmt: skip
    facts = known.filter(pl.col("residency") == "resident").select(
        "trial", "baseline", "engines", *[name for name in CELL if name != "residency"], boot="repeat_id"
    )
    own = ["cell_id", "arm"]
    return (
        logs.select("trial", "cell_id", "arm", "order_index", "throughput")
        .join(kept, on=["trial", "order_index"])
        .join(facts, on="trial")
        .with_columns(
            rate=pl.col("throughput") - pl.col("throughput").mean().over(own),
            speed=pl.col("speed") - pl.col("speed").mean().over(own),
        )
        .sort("cell_id", "boot", "order_index")
    )


def _with_slopes(known: pl.DataFrame) -> pl.DataFrame:
    """Adds `slope`, `rest` and `rest_sd`; keeps cells in which the baseline and another arm have enough windows."""
    own = ["cell_id", "arm"]
    lines = (
        known.group_by(own)
        .agg(
            slope=(pl.col("speed") * pl.col("rate")).sum() / (pl.col("speed") ** 2).sum(),
            n=pl.len(),
            boots=pl.col("boot").n_unique(),
        )
        .filter(pl.col("n") >= FEWEST_WINDOWS, pl.col("boots") >= FEWEST_BOOTS)
    )
    rows = known.join(lines.drop("boots"), on=own).with_columns(rest=pl.col("rate") - pl.col("slope") * pl.col("speed"))
    sd = ((pl.col("rest") ** 2).sum().over(own) / (pl.col("n") - 2)).sqrt()
    paired = (pl.col("arm") == pl.col("baseline")).any().over("cell_id") & (
        pl.col("arm").n_unique().over("cell_id") > 1
    )
    return rows.with_columns(rest_sd=sd.clip(1e-6)).filter(paired).sort("cell_id", "boot", "order_index")


def _world(rows: pl.DataFrame) -> World:
    """One cell's rows of `_with_slopes`."""
    first = rows.row(0, named=True)
    arms = {str(arm): own for (arm,), own in sorted(rows.group_by("arm"), key=lambda item: str(item[0][0]))}
    base = arms.pop(first["baseline"])
    noises = tuple(_arm_noise(own) for own in arms.values())
    tokens = f"{first['prompt_tokens']}/{first['output_tokens']}"
    return World(
        name=f"{first['model'].split('/')[-1]} {first['kind']} {tokens}, {first['concurrency']} clients",
        baseline=_arm_noise(base),
        candidates=noises,
        boots=rows["boot"].n_unique(),
        measured_sd=tuple(_contrast_sd(own, base) for own in arms.values()),
        rounds=round(len(base) / base["boot"].n_unique()),
    )


def _arm_noise(own: pl.DataFrame) -> ArmNoise:
    first = own.row(0, named=True)
    speed = tuple(float(v) for v in np.sort(own["speed"].to_numpy()))
    return ArmNoise(first["arm"], first["engines"], len(own), first["slope"], speed, first["rest_sd"])


def _contrast_sd(candidate: pl.DataFrame, base: pl.DataFrame) -> float:
    rounds = candidate.join(base, on=["boot", "round_index"]).with_columns(y=pl.col("rate") - pl.col("rate_right"))
    boots = rounds.group_by("boot").agg(pl.col("y").mean())
    return float(boots["y"].std() or 0.0)  # type: ignore[arg-type]


def _correlation(known: pl.DataFrame, value: str, fast: float) -> Correlation:
    """Least squares of the module's formula on products of normal scores, over all pairs of windows of a boot."""
    own = pl.col(value).rank("ordinal").over("cell_id", "arm")
    share = ((own - 0.5) / pl.len().over("cell_id", "arm")).alias("share")
    scored = known.select("boot", "arm", "order_index", share)
    normal = NormalDist()
    z = np.array([normal.inv_cdf(p) for p in scored["share"]])
    z /= np.sqrt((z**2).mean())
    index = scored.with_columns(z=pl.Series(z)).with_row_index("i")
    pairs = index.join(index, on="boot", suffix="_b").filter(pl.col("i") < pl.col("i_b"))
    lag = (pairs["order_index_b"] - pairs["order_index"]).abs().clip(1, LAGS).to_numpy()
    other, product_ = (pairs["arm"] != pairs["arm_b"]).to_numpy(), (pairs["z"] * pairs["z_b"]).to_numpy()
    cells = [(k, o, product_[(lag == k) & (other == o)]) for k in range(1, LAGS + 1) for o in (False, True)]
    seen = [(k, o, values.mean(), values.size) for k, o, values in cells if values.size]
    grid = product(np.linspace(0, 0.95, 20), np.linspace(0, 0.95, 20), np.linspace(0, 1, 21))

    def error(boot: float, phi: float, shared: float) -> float:
        model = ((shared if o else 1.0) * (boot + max(1 - boot - fast, 0.0) * phi**k) for k, o, _, _ in seen)
        return float(sum(n * (mean - m) ** 2 for m, (_, _, mean, n) in zip(model, seen, strict=True)))

    boot, phi, shared = min(((b, p, s) for b, p, s in grid if b + fast <= 1.0), key=lambda point: error(*point))
    return Correlation(round(float(boot), 3), round(float(phi), 3), round(float(shared), 3), round(float(fast), 4))


def _drift_sd(frame: pl.DataFrame) -> float:
    """Root mean square over boots of the straight line through all arms' rates, from a boot's first window to its last.

    It holds the line's own error too, so it is rather too large than too small.
    """
    boots = frame.with_columns(
        x=(pl.col("order_index") / pl.col("order_index").max().over("boot") - 0.5),
        y=pl.col("rate") - pl.col("rate").mean().over("boot", "arm"),
    ).filter(pl.len().over("boot") >= FEWEST_WINDOWS)  # fmt: skip
    slopes = boots.group_by("boot").agg(slope=(pl.col("x") * pl.col("y")).sum() / (pl.col("x") ** 2).sum())
    return float(np.sqrt((slopes["slope"].to_numpy() ** 2).mean()))


def _core_speeds(readings: pl.DataFrame, window_s: float) -> CoreSpeeds:
    """The cut between the two speeds is the middle between the slowest and the fastest tenth's medians."""
    speed = np.sort(readings["speed_mops"].to_numpy())
    tenth = max(len(speed) // 10, 1)
    cut = float(np.median(speed[:tenth]) + np.median(speed[-tenth:])) / 2
    runs = (
        readings.sort("part", "cpu", "time_s")
        .with_columns(low=pl.col("speed_mops") < cut, step=pl.col("time_s").diff().over("part", "cpu"))
        .with_columns(run=pl.struct("part", "cpu", "low").rle_id())
        .group_by("run")
        .agg(pl.col("low").first(), seconds=pl.len() * pl.col("step").median())
        .drop_nulls()
    )
    low, high = (float(runs.filter(low=side)["seconds"].mean()) for side in (True, False))  # type: ignore[arg-type]
    slow, fast = (float(np.median(speed[side])) for side in (speed < cut, speed >= cut))
    share = float((speed < cut).mean())
    # A two-state Markov process over T: the share of time in a state varies by 2 p (1 - p) t / T, 1/t = 1/low + 1/high.
    over_window = np.sqrt(2 * share * (1 - share) / (1 / low + 1 / high) / window_s)
    return CoreSpeeds(slow, fast, share, low, high, len(readings), float(over_window * np.log(fast / slow)))
