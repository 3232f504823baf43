"""What the instruments would have shown: a finished run of the simulation as the records that real engines give."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from orchestrator.gpus import GpuKind
from orchestrator.observation import EngineFacts, GpuFacts
from orchestrator.records import SAMPLES_COLUMNS
from orchestrator.simulated.engine import FULL_GRAPH, PIECEWISE_GRAPH
from orchestrator.simulated.requests import ENGINE_SAMPLE_S, Floats, Requests, Window, tokens_by_second
from orchestrator.simulated.simulation import Run

GPU_SAMPLE_S = 0.5
SAMPLES_SCHEMA = {n: t for n, t in SAMPLES_COLUMNS.items() if n not in ("trial_id", "attempt_id", "window_index")}


def engine_facts(run: Run, requests: Requests, window: Window, clients: int, kv_bytes: int) -> tuple[EngineFacts, ...]:
    """Facts by engine of the arm. Where one simulated engine stands for several, each reports that engine's steps."""
    facts = []
    in_flight_s = np.minimum(requests.end_s(window), window.until_s) - np.maximum(requests.sent_s, window.from_s)
    in_flight_s = np.maximum(in_flight_s, 0.0)
    with np.errstate(invalid="ignore"):
        done = requests.completed & (requests.last_s >= window.from_s)
    for index in range(window.engines):
        engine = run.engines[index % len(run.engines)]
        mine = requests.engine == index
        delivered = np.asarray(engine.delivered_s)
        low, high = (int(edge) for edge in np.searchsorted(delivered, (window.from_s, window.until_s)))
        steps = engine.steps[low:high]
        modes = Counter(step.mode for step in steps)
        tokens = sum(step.tokens for step in steps)
        completed = int((done & mine).sum())
        frontend_s = tokens * engine.host.frontend_token_s + completed * engine.host.frontend_request_s
        lag_s = delivered[low:high] - np.asarray(engine.gpu_done_s[low:high])
        facts.append(
            EngineFacts(
                engine=index,
                clients=len(range(index, clients, window.engines)),
                in_flight_mean=float(in_flight_s[mine].sum()) / window.seconds,
                requests_completed=completed,
                requests_failed=0,
                steps=high - low,
                steps_full_graph=modes[FULL_GRAPH],
                steps_piecewise_graph=modes[PIECEWISE_GRAPH],
                running_mean=_mean([step.running for step in steps]),
                waiting_mean=_mean([step.waiting for step in steps]),
                kv_usage_max=max((step.kv_tokens for step in steps), default=0) / engine.settings.kv_tokens,
                preemptions=0,
                prefix_cache_hits=0,
                engine_core_cpu=min(1.0, sum(step.host_s for step in steps) / window.seconds),
                frontend_cpu=min(1.0, frontend_s / window.seconds),
                loop_lag_p99_s=float(np.quantile(lag_s, 0.99)) * window.scale if high > low else None,
                kv_bytes=kv_bytes,
                core_set_ok=True,
            )
        )
    return tuple(facts)


def gpu_facts(run: Run, window: Window, gpu: GpuKind, memory_used_bytes: int) -> GpuFacts:
    """The counters over the window."""
    edges = np.array([window.from_s, window.until_s])
    shares = {name: float(values[0]) for name, values in _gpu_shares(run, edges, gpu).items()}
    readings = [r for r in run.power.readings if window.from_s <= r.time_s < window.until_s] or run.power.readings[-1:]
    power_w = _mean([r.power_w for r in readings]) or 0.0
    return GpuFacts(
        gpu_active_share=shares["gpu_active_share"],
        sm_active_share=shares["sm_active_share"],
        tensor_active_share=shares["tensor_active_share"],
        dram_active_share=shares["dram_active_share"],
        sm_clock_mhz=(_mean([r.clock for r in readings]) or 0.0) * gpu.boost_clock_mhz,
        power_w=power_w,
        energy_j=power_w * window.seconds * window.scale,
        power_capped_share=_mean([float(r.clock < 1.0) for r in readings]),
        thermal_capped_share=0.0,
        memory_used_bytes=memory_used_bytes,
    )


def _gpu_shares(run: Run, edges: Floats, gpu: GpuKind) -> dict[str, Floats]:
    """Shares of each interval between edges. A step's work is spread evenly over the time since the step before it."""
    seconds = np.diff(edges)
    starts = np.array([start for start, _ in run.busy])
    ends = np.array([end for _, end in run.busy])
    busy = np.clip(edges[:, None] - starts, 0.0, ends - starts).sum(axis=1) if starts.size else np.zeros(edges.size)
    work = np.zeros((3, edges.size))
    for engine in run.engines:
        done = np.asarray([0.0, *engine.gpu_done_s])
        costs = [step.cost for step in engine.steps[: done.size - 1]]
        for row, amounts in enumerate(
            ([c.sm_seconds for c in costs], [c.flops for c in costs], [c.dram_bytes for c in costs])
        ):
            work[row] += np.interp(edges, done, np.concatenate(([0.0], np.cumsum(amounts))))
    sm_s, flops, dram_bytes = np.diff(work, axis=1) / seconds
    return {
        "gpu_active_share": np.minimum(1.0, np.diff(busy) / seconds),
        "sm_active_share": np.minimum(1.0, sm_s),
        "tensor_active_share": np.minimum(1.0, flops / gpu.bf16_flops_per_s),
        "dram_active_share": np.minimum(1.0, dram_bytes / gpu.memory_bytes_per_s),
    }


def samples_frame(run: Run, requests: Requests, window: Window, gpu: GpuKind) -> pl.DataFrame:
    """Readings in the columns of records.SAMPLES without the ids: tokens a second by engine, GPU every half second."""
    times: list[int] = []
    sources: list[str] = []
    metrics: list[str] = []
    values: list[float] = []

    def put(edges: Floats, source: str, metric: str, series: Any) -> None:
        times.extend(window.ns(edges[1:]).tolist())
        sources.extend([source] * (edges.size - 1))
        metrics.extend([metric] * (edges.size - 1))
        values.extend(np.asarray(series, dtype=np.float64).tolist())

    seconds = window.edges(ENGINE_SAMPLE_S)
    for index, counts in enumerate(tokens_by_second(requests, window)):
        put(seconds, f"engine{index}", "output_tokens", counts)
        engine = run.engines[index % len(run.engines)]
        done = np.asarray([0.0, *engine.gpu_done_s])
        host_s = [step.host_s for step in engine.steps[: done.size - 1]]
        busy_s = np.interp(seconds, done, np.concatenate(([0.0], np.cumsum(host_s))))
        put(seconds, f"engine{index}.core", "cpu_share", np.minimum(1.0, np.diff(busy_s) / np.diff(seconds)))
    edges = window.edges(GPU_SAMPLE_S)
    for metric, series in _gpu_shares(run, edges, gpu).items():
        put(edges, "gpu", metric, series)
    readings = run.power.readings
    nearest = np.minimum(np.searchsorted([r.time_s for r in readings], edges[1:]), len(readings) - 1)
    put(edges, "gpu", "power_w", [readings[i].power_w for i in nearest])
    put(edges, "gpu", "sm_clock_mhz", [readings[i].clock * gpu.boost_clock_mhz for i in nearest])
    columns = {"time_ns": times, "source": sources, "metric": metrics, "value": values}
    return pl.DataFrame(columns, schema={name: SAMPLES_SCHEMA[name] for name in columns})


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
