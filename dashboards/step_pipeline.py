"""One engine's steps from what its host and its GPU need for each: does that explain how fast it is, and who waits?

vLLM with asynchronous scheduling has two steps in flight: while one is on the GPU, EngineCore prepares the next, and no
further. What EngineCore needs is the law of a step's cost at the speed of its core (dashboards/step_cost.py); what the
GPU needs is the arithmetic of its kernels at its clock (orchestrator/simulated/kernels.py). A step holds a prompt or
not as requests come and go, so steps are long and short, and each waits for the slower of the two at that moment:
EngineCore and GPU may both rest for part of the time, and yet nothing else sets the pace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from dashboards import cells
from dashboards.findings_tables import table
from dashboards.step_cost import REFERENCE_MOPS, Law
from orchestrator.gpus import KINDS
from orchestrator.simulated.kernels import StepCosts
from orchestrator.student import Floats
from workloads.architecture import Batch
from workloads.catalogue import load_model

SWEEP = "scaling-landscape"
# Steps with another share of whole graphs have gaps between their pieces, which the arithmetic of kernels leaves out.
WHOLE_SHARE = 0.95
STEPS = 4000  # played; the mean of a step is then known to a hundredth
SEED = 1
CELL = ["model", "context", "concurrency"]
PARTS = ("host_s", "gpu_s", "step_s", "foretold_s", "active", "foretold_active", "busy", "foretold_busy", "speed")
HEAD = (
    *("model", "context", "clients", "core, Mops", "EngineCore's part of a step, ms", "the GPU's part, ms"),
    *("step, ms: measured", "from the parts", "GPU active: measured", "from the parts"),
    *("EngineCore busy: measured", "from the parts"),
)


def mean_step_s(host_s: float, gpu_s: Floats, steps_in_flight: int = 2) -> float:
    """Mean time between steps in seconds. host_s: EngineCore's time for each step; gpu_s: the GPU's, shape (steps,).

    EngineCore begins to prepare a step when it has prepared the one before it, and the one `steps_in_flight` before it
    has left the GPU.
    """
    prepared, left = 0.0, [0.0] * steps_in_flight
    for seconds in gpu_s:
        prepared = max(prepared, left[-steps_in_flight]) + host_s
        left.append(max(prepared, left[-1]) + float(seconds))
        del left[0]
    return left[-1] / len(gpu_s)


def from_parts(trials: pl.DataFrame, windows: pl.DataFrame, law: Law) -> pl.DataFrame:
    """One row a certified window of a landscape's single engine that had one graph for each step: CELL and PARTS.

    trials, windows: tables of `records`. host_s and gpu_s: means of a step's parts; step_s, active, busy: mean step,
    share of the time with a kernel on the GPU, processor share of EngineCore, as measured; foretold_*: from the parts.
    """
    own = trials.filter(sweep=SWEEP, outcome="ok", backend="vllm", engines=1, sharing="single", pinned=True)
    asked = own.select(
        *("trial_id", "attempt_id", "model", "concurrency", "gpu_kind"),
        context="prompt_tokens",
        out="output_tokens",
        most_tokens=pl.col("engine").str.json_path_match("$.max_num_batched_tokens").cast(pl.Int64),
    )
    seen = windows.filter("certified", pl.col("steps_full_graph_share") > WHOLE_SHARE)
    seen = seen.drop("prompt_tokens", "output_tokens").drop_nulls("engine_core_speed_mops")
    rows = [_row(row) for row in _with_host(seen.join(asked, on=["trial_id", "attempt_id"]), law)]
    schema = {"model": pl.String, "context": pl.Int64, "concurrency": pl.Int64} | dict.fromkeys(PARTS, pl.Float64)
    return pl.DataFrame(rows, schema=schema)


def _with_host(windows: pl.DataFrame, law: Law) -> Iterator[dict[str, Any]]:
    step, sequence, *_ = law.terms
    for row in windows.iter_rows(named=True):
        slowness = REFERENCE_MOPS / row["engine_core_speed_mops"]
        yield row | {"host_s": (step.seconds + sequence.seconds * row["running_mean"]) * slowness}


def _row(window: Mapping[str, Any]) -> dict[str, Any]:
    step_s = window["duration_s"] / window["steps"]
    gpu_s = _gpu_s(window, step_s)
    foretold_s = mean_step_s(window["host_s"], gpu_s)
    return {
        **{name: window[name] for name in (*CELL, "host_s")},
        "gpu_s": gpu_s.mean(),
        "step_s": step_s,
        "foretold_s": foretold_s,
        "active": window["gpu_active_share"],
        "foretold_active": gpu_s.mean() / foretold_s,
        "busy": window["engine_core_cpu_max"],
        "foretold_busy": window["host_s"] / foretold_s,
        "speed": window["engine_core_speed_mops"],
    }


def _gpu_s(window: Mapping[str, Any], step_s: float) -> Floats:
    """The GPU's time for each of STEPS steps, shape (STEPS,). Prompts come at the window's rate, independently of one
    another, and as many go into a step as it has tokens for."""
    gpu, context, running = KINDS[window["gpu_kind"]], window["context"], window["running_mean"]
    costs, clock = StepCosts(load_model(window["model"]), gpu), window["sm_clock_mhz"] / gpu.boost_clock_mhz
    room = max(1, int((window["most_tokens"] - running) // context))
    per_step = window["output_tokens_s"] / window["out"] * step_s
    seconds: dict[int, float] = {}
    played, waiting = np.empty(STEPS), 0
    for index, come in enumerate(np.random.default_rng(SEED).poisson(per_step, STEPS)):
        prompts = min(waiting + int(come), room)
        waiting += int(come) - prompts
        if prompts not in seconds:
            decodes = max(0, round(running - prompts))
            cost = costs.exact(Batch(decodes, decodes * (context + window["out"] // 2), ((context, 0),) * prompts))
            seconds[prompts] = cost.compute_s / clock + cost.memory_s + cost.gap_s
        played[index] = seconds[prompts]
    return played


def parts_in_words(rows: pl.DataFrame) -> str:
    """How far the steps from their parts are from those measured. rows: of `from_parts`, not empty."""
    off = np.log(rows["foretold_s"].to_numpy() / rows["step_s"].to_numpy())
    active, busy = (
        np.sqrt(np.mean((rows[f"foretold_{name}"].to_numpy() - rows[name].to_numpy()) ** 2))
        for name in ("active", "busy")
    )
    return (
        f"Over {rows.height} windows the steps from their parts are {np.exp(off.mean()):.2f} times those measured, "
        f"with a scatter of {off.std():.0%}; the shares of time in which the GPU is active and EngineCore busy are off "
        f"by {100 * active:.0f} and {100 * busy:.0f} points (root mean squares)."
    )


def parts_table(rows: pl.DataFrame) -> str:
    """One row a cell, means over its windows. rows: of `from_parts`."""
    means = rows.group_by(CELL).mean().sort(cells.by_size(rows["model"]), *CELL[1:])
    return table(HEAD, [_shown(row) for row in means.iter_rows(named=True)])


def _shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = ("host_s", "gpu_s", "step_s", "foretold_s")
    shares = ("active", "foretold_active", "busy", "foretold_busy")
    return (
        *(row["model"].split("/")[-1], str(row["context"]), str(row["concurrency"]), f"{row['speed']:.0f}"),
        *(f"{1e3 * row[name]:.2f}" for name in seconds),
        *(f"{100 * row[name]:.0f} %" for name in shares),
    )
