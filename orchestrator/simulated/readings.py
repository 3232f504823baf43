"""What the instruments would have shown: a finished run of the simulation as the records that real engines give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from orchestrator.gpus import GpuKind
from orchestrator.observation import EngineFacts, GpuFacts
from orchestrator.records import SAMPLES_COLUMNS
from orchestrator.simulated.engine import FULL_GRAPH, PIECEWISE_GRAPH, Engine
from orchestrator.simulated.requests import ENGINE_SAMPLE_S, Floats, Requests, Window, tokens_by_second
from orchestrator.simulated.simulation import Run

GPU_SAMPLE_S = 0.5
SAMPLES_SCHEMA = {n: t for n, t in SAMPLES_COLUMNS.items() if n not in ("trial_id", "attempt_id", "window_index")}


@dataclass(frozen=True, slots=True)
class StepLog:
    """The steps of one engine as columns, a row a step whose job has ended; `done_s` and the sums begin with a zero.

    work: sums of SM seconds, FLOPs and bytes up to each step, shape (3, steps + 1); host_s: the sum of host time.
    """

    engine: Engine
    done_s: Floats
    delivered_s: Floats
    tokens: list[int]
    running: list[int]
    waiting: list[int]
    modes: list[int]
    host_s: list[float]
    kv_tokens: list[int]
    scheduled: list[int]
    padded: list[int]
    work: Floats

    @classmethod
    def of(cls, engine: Engine) -> StepLog:
        """Gather the log of an engine once its run is over."""
        steps = engine.steps[: len(engine.gpu_done_s)]
        costs = [step.cost for step in steps]
        return cls(
            engine=engine,
            done_s=np.array([0.0, *engine.gpu_done_s]),
            delivered_s=np.array(engine.delivered_s),
            tokens=[step.tokens for step in steps],
            running=[step.running for step in steps],
            waiting=[step.waiting for step in steps],
            modes=[step.mode for step in steps],
            host_s=[step.host_s for step in steps],
            kv_tokens=[step.kv_tokens for step in steps],
            scheduled=[step.scheduled for step in steps],
            padded=[step.padded for step in steps],
            work=np.stack(
                [
                    _sums([cost.sm_seconds for cost in costs]),
                    _sums([cost.flops for cost in costs]),
                    _sums([cost.dram_bytes for cost in costs]),
                ]
            ),
        )


def _sums(amounts: Sequence[float]) -> Floats:
    return np.concatenate(([0.0], np.cumsum(amounts)))


def engine_facts(
    logs: Sequence[StepLog], requests: Requests, window: Window, clients: int, kv_bytes: int
) -> tuple[EngineFacts, ...]:
    """Facts by engine of the arm. Where one simulated engine stands for several, each reports that engine's steps."""
    facts = []
    in_flight_s = np.minimum(requests.end_s(window), window.until_s) - np.maximum(requests.sent_s, window.from_s)
    in_flight_s = np.maximum(in_flight_s, 0.0)
    with np.errstate(invalid="ignore"):
        done = requests.completed & (requests.last_s >= window.from_s)
    for index in range(window.engines):
        log = logs[index % len(logs)]
        engine = log.engine
        mine = requests.engine == index
        low, high = (int(edge) for edge in np.searchsorted(log.delivered_s, (window.from_s, window.until_s)))
        modes = log.modes[low:high]
        completed = int((done & mine).sum())
        frontend_s = (
            sum(log.tokens[low:high]) * engine.host.frontend_token_s + completed * engine.host.frontend_request_s
        )
        lag_s = log.delivered_s[low:high] - log.done_s[low + 1 : high + 1]
        facts.append(
            EngineFacts(
                engine=index,
                clients=len(range(index, clients, window.engines)),
                in_flight_mean=float(in_flight_s[mine].sum()) / window.seconds,
                requests_completed=completed,
                requests_failed=0,
                steps=high - low,
                steps_full_graph=modes.count(FULL_GRAPH),
                steps_piecewise_graph=modes.count(PIECEWISE_GRAPH),
                steps_tokens=sum(log.scheduled[low:high]),
                steps_padded_tokens=sum(log.padded[low:high]),
                running_mean=_mean(log.running[low:high]),
                waiting_mean=_mean(log.waiting[low:high]),
                kv_usage_max=max(log.kv_tokens[low:high], default=0) / engine.settings.kv_tokens,
                preemptions=0,
                prefix_cache_hits=0,
                engine_core_cpu=min(1.0, sum(log.host_s[low:high]) / window.seconds),
                frontend_cpu=min(1.0, frontend_s / window.seconds),
                loop_lag_p99_s=float(np.quantile(lag_s, 0.99)) * window.scale if high > low else None,
                kv_bytes=kv_bytes,
                core_set_ok=True,
            )
        )
    return tuple(facts)


def gpu_facts(run: Run, logs: Sequence[StepLog], window: Window, gpu: GpuKind, memory_used_bytes: int) -> GpuFacts:
    """The counters over the window."""
    edges = np.array([window.from_s, window.until_s])
    shares = {name: float(values[0]) for name, values in _gpu_shares(run, logs, edges, gpu).items()}
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


def _gpu_shares(run: Run, logs: Sequence[StepLog], edges: Floats, gpu: GpuKind) -> dict[str, Floats]:
    """Shares of each interval between edges. A step's work is spread evenly over the time since the step before it."""
    seconds = np.diff(edges)
    starts, ends = np.array(run.busy).reshape(-1, 2).T
    busy = np.clip(edges[:, None] - starts, 0.0, ends - starts).sum(axis=1) if starts.size else np.zeros(edges.size)
    work = np.zeros((3, edges.size))
    for log in logs:
        for row, sums in enumerate(log.work):
            work[row] += np.interp(edges, log.done_s, sums)
    sm_s, flops, dram_bytes = np.diff(work, axis=1) / seconds
    return {
        "gpu_active_share": np.minimum(1.0, np.diff(busy) / seconds),
        "sm_active_share": np.minimum(1.0, sm_s),
        "tensor_active_share": np.minimum(1.0, flops / gpu.bf16_flops_per_s),
        "dram_active_share": np.minimum(1.0, dram_bytes / gpu.memory_bytes_per_s),
    }


def samples_frame(run: Run, logs: Sequence[StepLog], requests: Requests, window: Window, gpu: GpuKind) -> pl.DataFrame:
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
        log = logs[index % len(logs)]
        busy_s = np.interp(seconds, log.done_s, _sums(log.host_s))
        put(seconds, f"engine{index}.core", "cpu_share", np.minimum(1.0, np.diff(busy_s) / np.diff(seconds)))
    edges = window.edges(GPU_SAMPLE_S)
    for metric, series in _gpu_shares(run, logs, edges, gpu).items():
        put(edges, "gpu", metric, series)
    readings = run.power.readings
    nearest = np.minimum(np.searchsorted([r.time_s for r in readings], edges[1:]), len(readings) - 1)
    put(edges, "gpu", "power_w", [readings[i].power_w for i in nearest])
    put(edges, "gpu", "sm_clock_mhz", [readings[i].clock * gpu.boost_clock_mhz for i in nearest])
    columns = {"time_ns": times, "source": sources, "metric": metrics, "value": values}
    return pl.DataFrame(columns, schema={name: SAMPLES_SCHEMA[name] for name in columns})


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
