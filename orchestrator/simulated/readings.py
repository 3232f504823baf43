"""What the instruments would have shown: a finished run of the simulation as the records that real engines give.

Times of a run start at 0 with the warm-up. `scale` turns them into the seconds of the deployment's clock: it is below
one only where a planted gain makes an arm faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from orchestrator.gpus import GpuKind
from orchestrator.observation import EngineFacts, GpuFacts
from orchestrator.records import REQUESTS_COLUMNS, SAMPLES_COLUMNS
from orchestrator.simulated.engine import FULL_GRAPH, PIECEWISE_GRAPH, Engine
from orchestrator.simulated.simulation import Run

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

GPU_SAMPLE_S = 0.5
ENGINE_SAMPLE_S = 1.0
REQUESTS_SCHEMA = {n: t for n, t in REQUESTS_COLUMNS.items() if n not in ("trial_id", "attempt_id", "window_index")}
SAMPLES_SCHEMA = {n: t for n, t in SAMPLES_COLUMNS.items() if n not in ("trial_id", "attempt_id", "window_index")}


@dataclass(frozen=True, slots=True)
class Window:
    """Where the window lies in a run: its edges in run time, and how run time maps to the deployment's clock.

    engines: how many the arm has; client c belongs to engine c % engines.
    """

    from_s: float
    until_s: float
    scale: float
    origin_ns: int
    engines: int
    prompt_tokens: int

    @property
    def seconds(self) -> float:
        return self.until_s - self.from_s

    def ns(self, run_s: Floats) -> Ints:
        return (self.origin_ns + np.rint(run_s * self.scale * 1e9)).astype(np.int64)

    def edges(self, every_s: float) -> Floats:
        """Run times of sample edges `every_s` of the deployment's clock apart; the last interval may be shorter."""
        steps = np.arange(self.from_s, self.until_s - 1e-9, every_s / self.scale)
        return np.append(steps, self.until_s)


@dataclass(frozen=True, slots=True)
class Requests:
    """All requests of a run as columns. Tokens of a request come in steps first..last of its engine, one a step."""

    engine: Ints
    client: Ints
    sequence: Ints
    asked: Ints
    sent_s: Floats
    first_s: Floats  # nan: no token came before the end
    last_s: Floats
    received: Ints
    completed: npt.NDArray[np.bool_]
    tokens_by_edge: Ints  # shape (requests, edges): tokens received before each sample edge

    @classmethod
    def of(cls, run: Run, window: Window) -> Requests:
        """Gather the requests of all engines; those sent at or after the window's end are not among them."""
        parts = [_engine_requests(engine, window) for engine in run.engines if engine.requests]
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def end_s(self, window: Window) -> Floats:
        return np.where(self.completed, self.last_s, window.until_s)


def _engine_requests(engine: Engine, window: Window) -> tuple[Any, ...]:
    delivered = np.asarray(engine.log.delivered_s)
    received_steps = int(np.searchsorted(delivered, window.until_s))
    rows = np.array(
        [
            (r.client, r.sequence, r.output_tokens, r.first_step, r.last_step)
            for r in engine.requests
            if r.sent_s < window.until_s
        ],
        dtype=np.int64,
    ).reshape(-1, 5)
    client, sequence, asked, first, last = rows.T
    sent = np.array([r.sent_s for r in engine.requests if r.sent_s < window.until_s])
    started = (first >= 0) & (first < received_steps)
    last_received = np.minimum(last, received_steps - 1)
    received = np.where(started, last_received - first + 1, 0)
    completed = started & (last < received_steps)
    stamps = delivered if delivered.size else np.full(1, np.nan)
    first_s = np.where(started, stamps[np.where(started, first, 0)], np.nan)
    last_s = np.where(started, stamps[np.where(started, last_received, 0)], np.nan)
    steps_by_edge = np.searchsorted(delivered, window.edges(ENGINE_SAMPLE_S))
    before = np.clip(steps_by_edge[None, :] - first[:, None], 0, received[:, None])
    return client % window.engines, client, sequence, asked, sent, first_s, last_s, received, completed, before


def requests_frame(requests: Requests, window: Window) -> pl.DataFrame:
    """One row a request that was alive in the window, in the columns of records.REQUESTS without the ids."""
    end = requests.end_s(window)
    alive = np.flatnonzero((end >= window.from_s) & (requests.sent_s < window.until_s))
    alive = alive[np.lexsort((requests.sequence[alive], requests.client[alive]))]
    came = requests.received[alive] > 0
    first_ns = window.ns(np.nan_to_num(requests.first_s[alive]))
    last_ns = window.ns(np.nan_to_num(requests.last_s[alive]))
    frame = pl.DataFrame(
        {
            "engine": requests.engine[alive],
            "client": requests.client[alive],
            "sequence": requests.sequence[alive],
            "prompt_tokens": np.full(alive.size, window.prompt_tokens),
            "output_tokens_asked": requests.asked[alive],
            "output_tokens": requests.received[alive],
            "sent_ns": window.ns(requests.sent_s[alive]),
            "first_token_ns": first_ns,
            "last_token_ns": last_ns,
            "came": came,
            "ok": requests.completed[alive],
        }
    )
    return frame.with_columns(
        pl.when("came").then("first_token_ns").alias("first_token_ns"),
        pl.when("came").then("last_token_ns").alias("last_token_ns"),
        pl.when("ok").then(pl.lit("ok")).otherwise(pl.lit("aborted")).alias("status"),
    ).select(pl.col(name).cast(kind) for name, kind in REQUESTS_SCHEMA.items())


def tokens_by_second(requests: Requests, window: Window) -> Ints:
    """Output tokens by engine and sample interval: shape (engines, intervals)."""
    counts = np.diff(requests.tokens_by_edge, axis=1)
    return np.stack([counts[requests.engine == engine].sum(axis=0) for engine in range(window.engines)])


def prompt_tokens(requests: Requests, window: Window) -> int:
    """Prompt tokens of the requests whose first token came in the window."""
    with np.errstate(invalid="ignore"):
        inside = (requests.first_s >= window.from_s) & (requests.first_s < window.until_s)
    return int(inside.sum()) * window.prompt_tokens


def engine_facts(run: Run, requests: Requests, window: Window, clients: int, kv_bytes: int) -> tuple[EngineFacts, ...]:
    """Facts by engine of the arm. Where one simulated engine stands for several, each reports that engine's steps."""
    facts = []
    in_flight_s = np.minimum(requests.end_s(window), window.until_s) - np.maximum(requests.sent_s, window.from_s)
    in_flight_s = np.maximum(in_flight_s, 0.0)
    with np.errstate(invalid="ignore"):
        done = requests.completed & (requests.last_s >= window.from_s)
    for index in range(window.engines):
        engine = run.engines[index % len(run.engines)]
        log, mine = engine.log, requests.engine == index
        delivered = np.asarray(log.delivered_s)
        low, high = (int(edge) for edge in np.searchsorted(delivered, (window.from_s, window.until_s)))
        steps = slice(low, high)
        mode = np.asarray(log.mode[steps], dtype=np.int64)
        tokens = int(np.asarray(log.tokens[steps], dtype=np.int64).sum())
        completed = int((done & mine).sum())
        frontend_s = tokens * engine.host.frontend_token_s + completed * engine.host.frontend_request_s
        lag_s = delivered[steps] - np.asarray(log.gpu_done_s[steps])
        facts.append(
            EngineFacts(
                engine=index,
                clients=len(range(index, clients, window.engines)),
                in_flight_mean=float(in_flight_s[mine].sum()) / window.seconds,
                requests_completed=completed,
                requests_failed=0,
                steps=high - low,
                steps_full_graph=int((mode == FULL_GRAPH).sum()),
                steps_piecewise_graph=int((mode == PIECEWISE_GRAPH).sum()),
                running_mean=_mean(log.running[steps]),
                waiting_mean=_mean(log.waiting[steps]),
                kv_usage_max=max(log.kv_tokens[steps], default=0) / engine.settings.kv_tokens,
                preemptions=0,
                prefix_cache_hits=0,
                engine_core_cpu=min(1.0, sum(log.host_s[steps]) / window.seconds),
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
        done = np.asarray([0.0, *engine.log.gpu_done_s])
        costs = engine.log.cost[: done.size - 1]
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
        log = run.engines[index % len(run.engines)].log
        done = np.asarray([0.0, *log.gpu_done_s])
        busy_s = np.interp(seconds, done, np.concatenate(([0.0], np.cumsum(log.host_s[: done.size - 1]))))
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
