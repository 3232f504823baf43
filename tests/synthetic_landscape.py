"""A made-up store: frames that obey the schemas, with a planted gain, labelled `simulated`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from orchestrator.records import TRIALS, WINDOWS
from orchestrator.store import ResultStore
from orchestrator.trial import Measurement, canonical_json, fingerprint

SIZES = {"Qwen/Qwen2.5-0.5B": 0.5, "Qwen/Qwen2.5-1.5B": 1.5, "Qwen/Qwen2.5-3B": 3.1, "Qwen/Qwen2.5-7B": 7.6}
CONTEXTS = (128, 512, 2048, 8192)
SPEC = "name: synthetic  # <b>as it was run</b>\n"
ARMS = (("single", "single", 1), ("timesliced2", "timesliced", 2), ("mps2", "mps", 2))


def planted_ratio(model: str, prompt_tokens: int, arm: str) -> float:
    """The true ratio to `single`: a smooth invention of this module, which no figure is meant to resemble."""
    idle = math.exp(-SIZES[model] / 3) / (1 + math.log2(prompt_tokens / 64) / 3)
    return {"single": 1.0, "timesliced2": 0.97 + 0.25 * idle, "mps2": 0.96 + 0.9 * idle}[arm]


def landscape(
    models: tuple[str, ...] = tuple(SIZES),
    contexts: tuple[int, ...] = CONTEXTS,
    concurrencies: tuple[int, ...] = (64,),
    kinds: tuple[str, ...] = ("mixed",),
    repeats: int = 3,
    windows: int = 4,
    backend: str = "simulated",
    noise: float = 0.01,
    seed: int = 7,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Trials and windows of a whole sweep. The largest model's longest context is skipped; one repeat fails."""
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for model in models:
        for repeat in range(repeats):
            drift = {arm: rng.normal(0, noise) for arm, _, _ in ARMS}
            for kind in kinds:
                for context in contexts:
                    for concurrency in concurrencies:
                        repeat_id = fingerprint([model, repeat, kind, context, concurrency])
                        skipped = model == "Qwen/Qwen2.5-7B" and context == max(contexts) and len(contexts) > 1
                        failed = repeat == 1 and model == "Qwen/Qwen2.5-3B" and context == contexts[0]
                        for position, (arm, sharing, engines) in enumerate(ARMS):
                            trial = _trial(repeat_id, repeat, backend, model, kind, context, concurrency, arm)
                            trial |= {"sharing": sharing, "engines": engines}
                            if sharing == "mps":
                                trial["active_thread_percentage"] = 100
                            if skipped:
                                trial |= {
                                    "outcome": "skipped",
                                    "reason": "KV of 64 requests does not fit: 91 GiB of 80 GiB",
                                    "boot_id": None,
                                }
                            elif failed:
                                trial |= {
                                    "outcome": "failed",
                                    "reason": "MpsFault: the server is in FAULT",
                                    "log_tail": "CUDA error <unspecified>",
                                }
                            else:
                                scale = planted_ratio(model, context, arm) * math.exp(drift[arm])
                                rows += _windows(trial, scale, position, windows, noise, rng)
                            trials.append(trial)
    return pl.DataFrame(trials, schema=TRIALS), pl.DataFrame(rows, schema=WINDOWS)


def _trial(
    repeat_id: str, repeat: int, backend: str, model: str, kind: str, context: int, concurrency: int, arm: str
) -> dict[str, Any]:
    return {name: None for name in TRIALS} | {
        "trial_id": fingerprint([repeat_id, arm]),
        "attempt_id": fingerprint([repeat_id, "attempt"]),
        "repeat_id": repeat_id,
        "sweep": "synthetic",
        "repeat": repeat,
        "backend": backend,
        "gpu_kind": "H100",
        "gpu_name": "H100 (data sheet)" if backend == "simulated" else "NVIDIA H100",
        "gpu_uuid": "GPU-0",
        "host": "host-0",
        "model": model,
        "kind": kind,
        "prompt_tokens": context,
        "output_tokens": 1 if kind == "prefill" else 128,
        "concurrency": concurrency,
        "arm": arm,
        "baseline": "single",
        "engine_args": json.dumps({"async_scheduling": True}),
        "cores_per_engine": 2,
        "pinned": True,
        "tie_margin": 0.03,
        "measurement": canonical_json(Measurement()),
        "residency": "resident",
        "resident_arms": [name for name, _, _ in ARMS],
        "block_id": fingerprint([model, repeat]),
        "boot_id": fingerprint([model, repeat, arm]),
        "outcome": "ok",
        "started_unix_s": 1.7e9 + repeat * 3600.0,
        "boot_s": 30.0,
        "measuring_s": 60.0,
        "kv_bytes_per_engine": 8 * 2**30,
        "max_model_len_tokens": context + 128,
        "max_num_seqs": concurrency,
        "weights": "none" if backend == "simulated" else "dummy",
        "placement": json.dumps({"engine0.core": [2]}),
        "software": json.dumps({"mpscape": "0.1.0", "python": "3.11"}),
        "spec_sha": "0123456789abcdef",
    }


def _windows(
    trial: dict[str, Any], scale: float, position: int, count: int, noise: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    size, context, concurrency = SIZES[trial["model"]], trial["prompt_tokens"], trial["concurrency"]
    saturation = concurrency / (concurrency + 40)
    rate = 30_000 / (1 + size) / (1 + context / 2000) * saturation * 1.6
    rows = []
    for index in range(count):
        seen = rate * scale * math.exp(rng.normal(0, noise))
        tokens = trial["output_tokens"]
        e2e = concurrency * tokens / seen
        torn = index == 1 and trial["repeat"] == 0 and trial["arm"] == "mps2" and size == 0.5
        busy = {"single": 0.55, "timesliced": 0.65, "mps": 0.8}[trial["sharing"]] * min(1.0, 0.5 + size / 8)
        host_bound = size < 2 and trial["sharing"] != "mps"
        rows.append(
            {name: None for name in WINDOWS}
            | {key: trial[key] for key in ("trial_id", "attempt_id", "boot_id", "block_id")}
            | {
                "order_index": index * len(ARMS) + position,
                "round_index": index,
                "window_index": index,
                "start_ns": (index * len(ARMS) + position) * 6_000_000_000,
                "duration_s": 4.0,
                "warmup_s": 2.0,
                "output_tokens": round(seen * 4),
                "prompt_tokens": round(seen * 4 / tokens * context),
                "requests_completed": round(seen * 4 / tokens),
                "requests_failed": 0,
                "in_flight_mean": float(concurrency),
                "ttft_p50_s": 0.1 * e2e,
                "ttft_p99_s": 0.2 * e2e,
                "tpot_p50_s": 0.9 * e2e / tokens,
                "tpot_p99_s": 1.1 * e2e / tokens,
                "e2e_p50_s": e2e,
                "e2e_p99_s": 1.2 * e2e,
                "gpu_active_share": min(1.0, busy + 0.15),
                "sm_active_share": busy,
                "tensor_active_share": busy * 0.3,
                "dram_active_share": busy * 0.6,
                "sm_clock_mhz": 1980.0,
                "power_w": 200 + 450 * busy,
                "energy_j": 4 * (200 + 450 * busy),
                "engine_core_cpu_max": 0.98 if host_bound else 0.6,
                "certified": not torn,
                "certificate_failures": ["in-flight: 61 of 64 clients <asked>"] if torn else [],
                "certificate": "{}",
                "bound_by": "engine_core" if host_bound else ("gpu_memory" if index % 2 else "gpu_compute"),
            }
        )
    return rows


def write(store: ResultStore, trials: pl.DataFrame, windows: pl.DataFrame) -> None:
    """Commit the frames, a repeat at a time."""
    for (sweep, repeat_id, attempt_id), rows in trials.group_by("sweep", "repeat_id", "attempt_id"):
        own = windows.filter(pl.col("trial_id").is_in(rows["trial_id"].implode()))
        store.write_repeat(sweep, repeat_id, attempt_id, {"trials": rows, "windows": own}, generation=1)


def store_of(folder: Path, trials: pl.DataFrame, windows: pl.DataFrame) -> ResultStore:
    """A store in `folder` with the frames and a sweep file that is hostile to HTML."""
    store = ResultStore.open(str(folder), create=True)
    write(store, trials, windows)
    store.write_spec("synthetic", "0123456789abcdef", SPEC)
    return store
