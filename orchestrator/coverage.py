"""What the verdicts' claims are worth: the rules played over thousands of sweeps whose truth is planted.

    python -m orchestrator.coverage reference/h200 reference/h200-untuned reference/h200-pieces reference/h200-pair \\
        --noise-of smoke-gpu --core-speeds reference/core-speeds-h200.parquet -o reference/coverage

Noise is `noise_fit.fit` of the first store's windows, rules are those of `replay`. Writes noise.json (every fitted
parameter) and one CSV a question: coverage, equal_arms, recorded_equal_arms, power, cost, equal_speed. The same stores,
number of sweeps and seed give the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.contrast import CELL
from orchestrator.errors import EXIT_BAD_INPUT, EXIT_OK, MpscapeError
from orchestrator.grounds import SETTINGS
from orchestrator.noise import ArmNoise, Noise, draw
from orchestrator.noise_fit import fit
from orchestrator.replay import at_equal_speed, play
from orchestrator.self_comparison import halves
from orchestrator.sequential import MAX_BOOTS, MIN_BOOTS
from orchestrator.store import ResultStore
from orchestrator.student import Floats
from orchestrator.trial import Measurement
from orchestrator.verdicts import judge

MARGIN = 0.03
GAINS = (-0.30, -0.10, 0.10, 0.30, 0.50, 0.70, 0.90, 1.10, 1.30, 1.50)  # edges of the bins that truth is drawn in
LOOK = Measurement(min_windows=4, max_windows=8)
ROUNDS = (4, 8, 16, 32, 64)
BEYOND = (0.05, 0.02)
LONGEST = 48  # boots of the longest fixed design that is tried
STRESSES = ("boots 5 % apart", "AR(1) of 0.9", "t with 3 df", "bistable within boots", "modes that last whole boots")


@dataclass(frozen=True, slots=True)
class Pair:
    """Noise of two arms by name; `stress` where it is made up instead of recorded."""

    name: str
    arms: tuple[ArmNoise, ArmNoise] | None = None
    stress: str | None = None

    def contrasts(self, noise: Noise, sweeps: int, boots: int, rounds: int, rng: np.random.Generator) -> Floats:
        """Log ratios of rounds about 0, sweeps x boots x rounds."""
        if self.arms is not None:
            rates, _ = draw(noise, self.arms, sweeps, boots, rounds, rng)
            return np.asarray(rates[:, :, 1] - rates[:, :, 0])
        return _stressed(self.stress or "", noise, (sweeps, boots, rounds), rng)


def recorded_pairs(noise: Noise) -> list[Pair]:
    """Every recorded cell's baseline with each of its other arms."""
    return [
        Pair(f"{world.name}: {arm.arm} / {world.baseline.arm}", (world.baseline, arm))
        for world in noise.worlds
        for arm in world.candidates
    ]


def equal_pairs(noise: Noise) -> list[Pair]:
    """Every recorded cell's baseline against another one like it."""
    return [Pair(f"{world.name}: {world.baseline.arm} twice", (world.baseline,) * 2) for world in noise.worlds]


def stressed_pairs() -> list[Pair]:
    return [Pair(f"made up: {stress}", stress=stress) for stress in STRESSES]


def _stressed(stress: str, noise: Noise, shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Contrasts that are worse in one way than what was recorded; 10 % scatter between windows."""
    level: Floats = np.zeros((*shape[:2], 1))
    scatter: Floats = rng.normal(0, 0.1, shape)
    cores = noise.cores
    gap, share = math.log(cores.high_mops / cores.low_mops), cores.low_share
    if stress == "boots 5 % apart":
        level = rng.normal(0, 0.05 * math.sqrt(2), (*shape[:2], 1))
    elif stress == "AR(1) of 0.9":
        for k in range(1, shape[2]):
            scatter[..., k] = 0.9 * scatter[..., k - 1] + math.sqrt(1 - 0.81) * scatter[..., k]
    elif stress == "t with 3 df":
        scatter = rng.standard_t(3, shape) * 0.1 / math.sqrt(3)
    elif stress == "bistable within boots":
        scatter = np.asarray(gap * (share - (rng.random(shape) < share)) + rng.normal(0, 0.02, shape))
    else:  # the candidate's core stays slow for a whole boot, the baseline's does not
        level = np.asarray(gap * (share - (rng.random((*shape[:2], 1)) < share)))
        scatter = rng.normal(0, 0.02, shape)
    return np.asarray(level + scatter)


def coverage(noise: Noise, sweeps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """By pair and bin of the planted gain: how often the interval at the stop held the truth, and at every look."""
    for pair in (*recorded_pairs(noise), *stressed_pairs()):
        gain = rng.uniform(GAINS[0], GAINS[-1], sweeps)
        truth = np.log1p(gain)
        seen = pair.contrasts(noise, sweeps, MAX_BOOTS, LOOK.max_windows, rng) + truth[:, None, None]
        ended = play(seen, truth, MARGIN, MAX_BOOTS, LOOK)
        right = np.select([truth > math.log1p(MARGIN), truth < math.log1p(-MARGIN)], [1, 2], 3)
        wrong = (ended.verdict > 0) & (ended.verdict != right)
        bins = np.digitize(gain, GAINS) - 1
        for i in range(len(GAINS) - 1):
            own = bins == i
            yield {
                "noise": pair.name, "recorded": pair.arms is not None, "gain_from": GAINS[i], "gain_to": GAINS[i + 1],
                "sweeps": int(own.sum()), "held": int(ended.held(truth)[own].sum()),
                "held_always": int(ended.held_always[own].sum()), "decided": int((ended.verdict[own] > 0).sum()),
                "wrong": int(wrong[own].sum()), "boots": int(ended.boots[own].sum()),
                "windows": int(ended.windows[own].sum()),
            }  # fmt: skip


def equal_arms(noise: Noise, sweeps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Equal arms at zero margin, every look taken: how often one of them is called the winner."""
    for pair in (*equal_pairs(noise), *recorded_pairs(noise), *stressed_pairs()):
        ended = play(pair.contrasts(noise, sweeps, MAX_BOOTS, LOOK.max_windows, rng), 0.0, 0.0, MAX_BOOTS, LOOK)
        winners = int(np.isin(ended.verdict, (1, 2)).sum())
        yield {"noise": pair.name, "recorded": pair.arms is not None, "sweeps": sweeps, "winners": winners}


def recorded_equal_arms(trials: pl.DataFrame, windows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Real comparisons at zero margin where nothing is to be found: of arms with equal settings, and of every arm with
    itself (`self_comparison.halves`). Each is looked at after every boot from the third on."""
    real = trials.filter(pl.col("backend") != "simulated")
    if real.is_empty():
        return
    for own, seen in ((real, windows), halves(real, windows)):
        yield from _equal(own, seen)


def _equal(trials: pl.DataFrame, windows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    settings = trials.filter(outcome="ok").group_by(*CELL, "arm").agg(pl.struct(SETTINGS).first().alias("settings"))
    key = [*CELL, "arm", "baseline", "metric"]
    looks = []
    for repeat in sorted(trials["repeat"].unique()):
        # No plan, whatever the trials carry: every boot is looked at.
        rows = judge(
            trials.filter(pl.col("repeat") <= repeat), windows, margin=0.0, planned_boots=pl.lit(None, pl.Int64)
        )
        own = rows.join(settings, on=[*CELL, "arm"], nulls_equal=True).join(
            settings, left_on=[*CELL, "baseline"], right_on=[*CELL, "arm"], nulls_equal=True, suffix="_base"
        )
        looks.append(own.filter(pl.col("settings").eq_missing(pl.col("settings_base"))))
    seen = pl.concat(looks)
    called = pl.col("verdict").is_in(["wins", "loses"])
    ends = seen.group_by(key, maintain_order=True).agg(
        pl.col("boots", "windows", "ratio", "ci_low", "ci_high").last(), called=called.any()
    )
    yield from ends.sort(key, nulls_last=True).iter_rows(named=True)


def power(noise: Noise, sweeps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A gain planted beyond the margin, by windows an arm and boot: decided how often, at what cost, within MAX_BOOTS.

    Beside each recorded pair stands what it would be if no core changed its speed: the same noise without that part.
    """
    few = max(sweeps // 2, 1)
    for pair in recorded_pairs(noise):
        assert pair.arms is not None
        calm = Pair(pair.name, (replace(pair.arms[0], slope=0.0), replace(pair.arms[1], slope=0.0)))
        for cores, own in (("as recorded", pair), ("one speed", calm)):
            whole = own.contrasts(noise, few, LONGEST, ROUNDS[-1], rng)
            for beyond, rounds in product(BEYOND, ROUNDS):
                truth = math.log(1 + MARGIN + beyond)
                seen = whole[:, :, :rounds] + truth
                look = Measurement(min_windows=LOOK.min_windows, max_windows=rounds)
                ended = play(seen[:, :MAX_BOOTS], truth, MARGIN, MAX_BOOTS, look)
                yield {
                    "noise": pair.name, "cores": cores, "beyond": beyond, "max_windows": rounds, "sweeps": few,
                    "contrast_sd": float(seen.mean(axis=2).std()), "decided": int((ended.verdict == 1).sum()),
                    "wrong": int((ended.verdict > 1).sum()), "boots_mean": float(ended.boots.mean()),
                    "windows_mean": float(ended.windows.mean()),
                    "planned_boots_for_90": _fixed_boots(seen, truth, 0.9),
                }  # fmt: skip


def _fixed_boots(seen: Floats, truth: float, least: float) -> int | None:
    """Boots of the shortest design without looks that decides as many; None where LONGEST do not."""
    for boots in range(MIN_BOOTS, seen.shape[1] + 1):
        ended = play(seen[:, :boots], truth, MARGIN, boots, planned=True)
        if (ended.verdict == 1).mean() >= least:
            return boots
    return None


def cost(noise: Noise, sweeps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Boots and windows that the rule spends on a landscape of gains, and those of fixed designs of equal power.

    Equal power: the fixed design (so many boots, all `max_windows`, Student's interval) decides a gain of 5 % beyond
    the margin as often as the rule does. Its number of boots has to be set before anything is known: one for all cells
    in the row `all`, one a noise, as if that were known, in the others.
    """
    pairs = recorded_pairs(noise)
    hard = math.log(1 + MARGIN + BEYOND[0])
    seen = [pair.contrasts(noise, sweeps, LONGEST, LOOK.max_windows, rng) for pair in pairs]
    shares, points, spent = [], [], []
    for contrasts in seen:
        truth = np.log1p(rng.uniform(GAINS[0], GAINS[-1], sweeps))
        points.append(play(contrasts[:, :MAX_BOOTS] + hard, hard, MARGIN, MAX_BOOTS, LOOK))
        spent.append(play(contrasts[:, :MAX_BOOTS] + truth[:, None, None], truth, MARGIN, MAX_BOOTS, LOOK))
        shares.append(float((points[-1].verdict == 1).mean()))
    parts = [([i], pair.name) for i, pair in enumerate(pairs)]
    for own, name in (*parts, (list(range(len(pairs))), "all")):
        called = float(np.mean([shares[i] for i in own]))
        fixed = _fixed_boots(np.concatenate([seen[i] for i in own]) + hard, hard, called)
        yield {
            "noise": name, "sweeps": sweeps * len(own), "power": called,
            "boots": _mean(spent[i].boots for i in own), "windows": _mean(spent[i].windows for i in own),
            "boots_at_point": _mean(points[i].boots for i in own),
            "windows_at_point": _mean(points[i].windows for i in own),
            "fixed_boots": fixed, "fixed_windows": None if fixed is None else fixed * 2 * LOOK.max_windows,
        }  # fmt: skip


def _mean(counts: Iterable[NDArray[np.int64]]) -> float:
    return float(np.mean([own.mean() for own in counts]))


def equal_speed(noise: Noise, sweeps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The interval at equal core speed: how often it holds the truth, its bias, its spread beside the headline's."""
    for pair in recorded_pairs(noise):
        assert pair.arms is not None
        for boots in (3, 4, 8):
            rates, speeds = draw(noise, pair.arms, sweeps, boots, LOOK.max_windows, rng)
            contrasts = rates[:, :, 1] - rates[:, :, 0]
            centre, half, speed = at_equal_speed(contrasts, speeds[:, :, 1], speeds[:, :, 0])
            error = centre - (pair.arms[1].slope - pair.arms[0].slope) * speed  # of the planted ratio at that speed
            plain = play(contrasts, 0.0, 0.0, boots, planned=True)
            yield {
                "noise": pair.name, "boots": boots, "sweeps": sweeps, "held": int((np.abs(error) <= half).sum()),
                "bias": float(error.mean()), "bias_se": float(error.std() / math.sqrt(sweeps)),
                "sd": float(error.std()), "headline_sd": float(((plain.low + plain.high) / 2).std()),
            }  # fmt: skip


def study(
    stores: Sequence[ResultStore], core_speeds: Path, sweeps: int, seed: int, noise_of: Sequence[str] | None = None
) -> tuple[Noise, dict[str, pl.DataFrame]]:
    """The fitted noise and one frame a question. Raises StoreError, or ValueError where the store has too little.

    Noise is that of the first store, of its sweeps `noise_of` (None: all); real comparisons of equal arms are of all.
    """
    trials, windows = (stores[0].read(table, noise_of) for table in ("trials", "windows"))
    noise = fit(trials, windows, pl.read_parquet(core_speeds))
    questions = (coverage, equal_arms, power, cost, equal_speed)
    frames = {
        question.__name__: pl.DataFrame(list(question(noise, sweeps, np.random.default_rng([seed, i]))))
        for i, question in enumerate(questions)
    }
    empty = pl.Schema({name: pl.String for name in (*CELL, "arm", "baseline", "metric")})
    real = [
        {"store": Path(store.uri).name} | row
        for store in stores
        for row in recorded_equal_arms(store.read("trials"), store.read("windows"))
    ]
    frames["recorded_equal_arms"] = pl.DataFrame(real) if real else empty.to_frame()
    return noise, frames


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: writes the record and prints what it wrote."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.coverage", description=__doc__.splitlines()[0])
    words = "measured windows: folders or URLs; noise is fitted to the first"
    parser.add_argument("stores", metavar="STORE", nargs="+", help=words)
    parser.add_argument("--noise-of", metavar="SWEEP", nargs="+", help="fit noise to these sweeps only (default: all)")
    parser.add_argument("--core-speeds", type=Path, required=True, help="Parquet: part, time_s, cpu, speed_mops")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the record")
    parser.add_argument("--sweeps", type=int, default=2000, help="simulated sweeps a noise and question")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    try:
        stores = [ResultStore.open(each, create=False) for each in asked.stores]
        noise, frames = study(stores, asked.core_speeds, asked.sweeps, asked.seed, asked.noise_of)
    except (MpscapeError, ValueError) as error:
        print(error, file=sys.stderr)
        return error.exit_status if isinstance(error, MpscapeError) else EXIT_BAD_INPUT
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "noise.json").write_text(json.dumps(noise.as_dict(), indent=1) + "\n", encoding="utf-8")
    for name, frame in sorted(frames.items()):
        frame.write_csv(asked.output / f"{name}.csv", float_precision=6)
        print(asked.output / f"{name}.csv", len(frame))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
