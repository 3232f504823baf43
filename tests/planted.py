"""Frames with the truth planted in them: log rates by cell, boot, arm and round become trials and windows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from orchestrator.records import TRIALS, WINDOWS

Floats = NDArray[np.float64]
ARMS = (("single", "single", 1), ("mps2", "mps", 2))
THREE_ARMS = (("single", "single", 1), ("timesliced2", "timesliced", 2), ("mps2", "mps", 2))


def frames(
    log_rates: Floats, arms: tuple[tuple[str, str, int], ...] = ARMS, **constants: Any
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Trials and windows whose output tokens/s are exp(`log_rates`), shaped cells × boots × arms × rounds.

    Latencies are 100 / rate. `constants` set columns of either table. Every boot has boots of its own.
    """
    boots, rounds = log_rates.shape[1], log_rates.shape[3]
    names, sharing, engines = (np.array(column) for column in zip(*arms, strict=True))
    c, b, a = (index.ravel() for index in np.indices(log_rates.shape[:3]))
    trial = np.array([f"t{i}" for i in range(c.size)])
    repeat = c * boots + b
    trials = pl.DataFrame(
        {
            "trial_id": trial,
            "attempt_id": trial,
            "repeat_id": [f"r{i}" for i in repeat],
            "repeat": b,
            "concurrency": c + 1,
            "arm": names[a],
            "sharing": sharing[a],
            "engines": engines[a],
            "boot_id": [f"b{i}" for i in range(c.size)],
            "gpu_uuid": [f"GPU-{i % 4}" for i in repeat],
        }
    )
    settings = {
        "sweep": "planted", "backend": "simulated", "gpu_kind": "H100", "gpu_name": "NVIDIA H100", "model": "m",
        "kind": "mixed", "prompt_tokens": 128, "output_tokens": 64, "baseline": arms[0][0], "tie_margin": 0.03,
        "residency": "resident", "outcome": "ok", "boot_s": 60.0, "measuring_s": 30.0, "engine_args": "{}",
        "software": json.dumps({"vllm": "0.25.1"}), "cores_per_engine": 2, "pinned": True,
    }  # fmt: skip
    index = np.repeat(np.arange(c.size), rounds)
    turn = np.tile(np.arange(rounds), c.size)
    rate = np.exp(log_rates.ravel())
    windows = pl.DataFrame(
        {
            "trial_id": trial[index],
            "attempt_id": trial[index],
            "boot_id": [f"b{i}" for i in index],
            "round_index": turn,
            "window_index": turn,
            "order_index": turn * len(arms) + a[index],
            "previous_arm": names[(a[index] + 1 + turn) % len(arms)],
            "output_tokens": np.round(np.nan_to_num(rate) * 4e3).astype(np.int64),
            "prompt_tokens": np.round(np.nan_to_num(rate) * 8e3).astype(np.int64),
            **{f"{name}_{p}_s": 100 / rate for name in ("ttft", "tpot", "e2e") for p in ("p50", "p99")},
        }
    )
    window_settings = {"duration_s": 4e3, "certified": True}
    settings |= {key: value for key, value in constants.items() if key in TRIALS and key not in window_settings}
    window_settings |= {key: value for key, value in constants.items() if key in window_settings}
    return _filled(trials, TRIALS, settings), _filled(windows, WINDOWS, window_settings)


def _filled(frame: pl.DataFrame, schema: pl.Schema, constants: dict[str, Any]) -> pl.DataFrame:
    known = frame.with_columns(**{key: pl.lit(value) for key, value in constants.items()})
    rest = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in known.columns]
    return known.with_columns(rest).select(schema.names()).cast(dict(schema))  # type: ignore[arg-type]


def noisy(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    noise: str = "gauss",
    boot_sd: float = 0.02,
    sd: float = 0.02,
) -> Floats:
    """Log rates about 0: boot effects of each arm and window noise of one kind, `sd` each, and a drift shared by arms.

    noise: gauss | ar1 (0.6 from one round to the next) | t3 (Student's with 3 degrees of freedom, scaled to `sd`) |
    modes (each window in one of two levels 6 sd apart, the lower 30 % of the time, and little else).
    """
    cells, boots, arms, rounds = shape
    level = rng.normal(0, boot_sd, (cells, boots, arms, 1))
    drift = rng.normal(0, 0.05, (cells, boots, 1, 1)) * np.linspace(0, 1, rounds)
    if noise == "t3":
        scatter = rng.standard_t(3, shape) * sd / np.sqrt(3)
    elif noise == "modes":
        scatter = -6 * sd * ((rng.random(shape) < 0.3) - 0.3) + rng.normal(0, sd / 4, shape)
    else:
        scatter = rng.normal(0, sd, shape)
        if noise == "ar1":
            for turn in range(1, rounds):
                scatter[..., turn] = 0.6 * scatter[..., turn - 1] + 0.8 * scatter[..., turn]
    return np.asarray(level + drift + scatter)
