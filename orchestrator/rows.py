"""From what was seen to the rows of the four tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from orchestrator.bound_by import bound_by
from orchestrator.certificate import certify, planned_for
from orchestrator.observation import BootFacts, EngineFacts, Observation, WindowOrder
from orchestrator.records import REQUESTS, SAMPLES
from orchestrator.taper import tapered_rate
from orchestrator.trial import Repeat, canonical_json

if TYPE_CHECKING:
    from orchestrator.plan import Block
    from orchestrator.runner import BlockContext, RepeatLog, TrialLog


def trial_row(log: RepeatLog, trial: TrialLog, block: Block, context: BlockContext) -> dict[str, Any]:
    """One row of `trials`."""
    repeat, arm, boot = log.repeat, trial.arm, trial.boot
    work = repeat.cell.workload
    sizing = block.sizing.get(arm.name)
    resident = block.residency == "resident" and repeat.alone is None
    return {
        "trial_id": trial.trial_id,
        "attempt_id": log.attempt_id,
        "repeat_id": repeat.repeat_id,
        "sweep": context.sweep,
        "repeat": repeat.number,
        "backend": repeat.backend,
        "gpu_kind": repeat.cell.gpu_kind,
        "gpu_name": boot.gpu_name if boot else None,
        "gpu_uuid": boot.gpu_uuid if boot else None,
        "host": boot.host if boot else None,
        "model": repeat.cell.model,
        "kind": work.kind,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "concurrency": repeat.cell.concurrency,
        "arm": arm.name,
        "baseline": repeat.baseline.name,
        "sharing": arm.sharing,
        "engines": arm.engines,
        "active_thread_percentage": getattr(arm.mode, "active_thread_percentage", None),
        "engine_args": canonical_json({**repeat.engine_args, **arm.engine_args}),
        "cores_per_engine": arm.cores_per_engine,
        "pinned": arm.pinned,
        "tie_margin": repeat.measurement.tie_margin,
        "planned_boots": context.planned_boots.get(repeat.repeat_id),
        "measurement": canonical_json(repeat.measurement),
        "residency": "resident" if resident else "alone",
        "resident_arms": [other.name for other in block.arms] if resident else [arm.name],
        "block_id": block.block_id,
        "boot_id": boot.boot_id if boot else None,
        "outcome": trial.outcome.value,
        "reason": trial.reason,
        "log_tail": trial.log_tail or None,
        "started_unix_s": trial.started_unix_s or None,
        "boot_s": boot.boot_s if boot else None,
        "measuring_s": trial.measuring_s,
        "kv_bytes_per_engine": boot.kv_bytes_per_engine if boot else (sizing.kv_bytes if sizing else None),
        "max_model_len_tokens": boot.max_model_len_tokens if boot else None,
        "max_num_seqs": boot.max_num_seqs if boot else None,
        "weights": boot.weights if boot else None,
        "placement": json.dumps(boot.placement, sort_keys=True) if boot else None,
        "software": json.dumps(boot.software, sort_keys=True) if boot else None,
        "engine": json.dumps(boot.engine, sort_keys=True) if boot else None,
        "spec_sha": context.spec_sha,
    }


def window_row(
    repeat: Repeat,
    trial: TrialLog,
    boot: BootFacts,
    seen: Observation,
    order: WindowOrder,
    round_index: int,
    order_index: int,
    previous_arm: str | None,
) -> dict[str, Any]:
    """One row of `windows`, certificate and `bound_by` included; ids of attempt and block are added by the caller."""
    engines, gpu = seen.engines, seen.gpu
    certificate = certify(order, seen, planned_for(repeat, boot))
    steps = _sum(engines, lambda engine: engine.steps)
    full = _sum(engines, lambda engine: engine.steps_full_graph)
    piecewise = _sum(engines, lambda engine: engine.steps_piecewise_graph)
    tokens = _sum(engines, lambda engine: engine.steps_tokens)
    padded = _sum(engines, lambda engine: engine.steps_padded_tokens)
    return {
        "trial_id": trial.trial_id,
        "boot_id": boot.boot_id,
        "order_index": order_index,
        "round_index": round_index,
        "window_index": len(trial.rows),
        "previous_arm": previous_arm,
        "start_ns": seen.start_ns,
        "duration_s": seen.duration_s,
        "warmup_s": seen.warmup_s,
        "output_tokens": seen.output_tokens,
        "prompt_tokens": seen.prompt_tokens,
        "prefill_tokens_s": prefill_tokens_s(repeat, seen),
        "output_tokens_s": output_tokens_s(repeat, seen),
        "requests_completed": sum(engine.requests_completed for engine in engines),
        "requests_failed": sum(engine.requests_failed for engine in engines),
        "in_flight_mean": sum(engine.in_flight_mean for engine in engines),
        **latencies(seen),
        "steps": steps,
        "steps_full_graph_share": _share(full, steps),
        "steps_piecewise_graph_share": _share(piecewise, steps),
        "steps_eager_share": _share(None if None in (steps, full, piecewise) else steps - full - piecewise, steps),
        "steps_tokens": tokens,
        "steps_padding_share": _share(None if None in (tokens, padded) else padded - tokens, padded),
        "running_mean": _sum(engines, lambda engine: engine.running_mean),
        "waiting_mean": _sum(engines, lambda engine: engine.waiting_mean),
        "kv_usage_max": _max(engines, lambda engine: engine.kv_usage_max),
        "preemptions": _sum(engines, lambda engine: engine.preemptions),
        "prefix_cache_hits": _sum(engines, lambda engine: engine.prefix_cache_hits),
        "engine_core_cpu_max": _max(engines, lambda engine: engine.engine_core_cpu),
        "engine_core_speed_mops": _min(engines, lambda engine: engine.engine_core_speed_mops),
        "frontend_cpu_max": _max(engines, lambda engine: engine.frontend_cpu),
        "driver_cpu": seen.driver_cpu,
        "steal_share": seen.steal_share,
        "loop_lag_p99_s": _max(engines, lambda engine: engine.loop_lag_p99_s),
        "gpu_active_share": gpu.gpu_active_share,
        "sm_active_share": gpu.sm_active_share,
        "sm_occupancy_share": gpu.sm_occupancy_share,
        "tensor_active_share": gpu.tensor_active_share,
        "dram_active_share": gpu.dram_active_share,
        "sm_clock_mhz": gpu.sm_clock_mhz,
        "power_w": gpu.power_w,
        "energy_j": gpu.energy_j,
        "power_capped_share": gpu.power_capped_share,
        "thermal_capped_share": gpu.thermal_capped_share,
        "gpu_memory_used_bytes": gpu.memory_used_bytes,
        "certified": certificate.certified,
        "certificate_failures": list(certificate.failures),
        "certificate": json.dumps(dict(certificate.checks) | {"notes": dict(seen.notes)}, sort_keys=True, default=str),
        "bound_by": bound_by(engines, gpu),
    }


def prefill_tokens_s(repeat: Repeat, seen: Observation) -> float | None:
    """The rate of a prefill window, free of the steps that its tokens come in; None for other kinds, and where no
    request was served.

    An engine that replays a step serves none meanwhile, and such steps are counted by the fraction; the simulator
    serves requests in its replays too, so those are tapered.
    """
    if repeat.cell.workload.phase != "prefill" or seen.requests.is_empty():
        return None
    return tapered_rate(seen.requests, seen.start_ns, seen.duration_s)


def output_tokens_s(repeat: Repeat, seen: Observation) -> float | None:
    """The rate of a window of prefill and decode, of which a part of a cycle more or less makes little; None for other
    kinds: a prefill window has the one above, and decode is even."""
    return seen.output_tokens_s if repeat.cell.workload.phase == "mixed" else None


def latencies(seen: Observation) -> dict[str, float | None]:
    """TTFT of requests whose first token came in the window, TPOT and end-to-end latency of those that ended in it.

    Percentiles interpolate linearly. A client's first request, cut to a random residual length, counts for TTFT only.
    """
    start, end = seen.start_ns, seen.start_ns + int(seen.duration_s * 1e9)
    asked = pl.col("output_tokens_asked")
    ended = pl.col("last_token_ns").is_between(start, end, closed="right") & (pl.col("status") == "ok")
    whole = ended & (pl.col("sequence") > 0)
    started = pl.col("first_token_ns").is_between(start, end, closed="right")
    decoding_s = (pl.col("last_token_ns") - pl.col("first_token_ns")) / 1e9
    columns = {
        "ttft": ((pl.col("first_token_ns") - pl.col("sent_ns")) / 1e9).filter(started),
        "tpot": (decoding_s / (asked - 1)).filter(whole & (asked > 1)),
        "e2e": ((pl.col("last_token_ns") - pl.col("sent_ns")) / 1e9).filter(whole),
    }
    return seen.requests.select(
        column.quantile(percent / 100, interpolation="linear").alias(f"{name}_p{percent}_s")
        for name, column in columns.items()
        for percent in (50, 99)
    ).row(0, named=True)


def requests_frame(trial_id: str, attempt_id: str, window_index: int, seen: Observation) -> pl.DataFrame:
    """Rows of `requests` for one window, in the table's column order."""
    return _stamped(seen.requests, trial_id, attempt_id, window_index, REQUESTS)


def samples_frame(trial_id: str, attempt_id: str, window_index: int, seen: Observation) -> pl.DataFrame:
    """Rows of `samples` for one window, in the table's column order."""
    return _stamped(seen.samples, trial_id, attempt_id, window_index, SAMPLES)


def _stamped(frame: pl.DataFrame, trial_id: str, attempt_id: str, window_index: int, schema: pl.Schema) -> pl.DataFrame:
    stamps = {"trial_id": pl.lit(trial_id), "attempt_id": pl.lit(attempt_id), "window_index": pl.lit(window_index)}
    return frame.select(stamps.get(name, pl.col(name)).cast(kind).alias(name) for name, kind in schema.items())


def _values(engines: Sequence[EngineFacts], read: Callable[[EngineFacts], Any]) -> list[Any] | None:
    values = [read(engine) for engine in engines]
    return None if not values or any(value is None for value in values) else values


def _sum(engines: Sequence[EngineFacts], read: Callable[[EngineFacts], Any]) -> Any:
    values = _values(engines, read)
    return None if values is None else sum(values)


def _max(engines: Sequence[EngineFacts], read: Callable[[EngineFacts], Any]) -> Any:
    values = _values(engines, read)
    return None if values is None else max(values)


def _min(engines: Sequence[EngineFacts], read: Callable[[EngineFacts], Any]) -> Any:
    values = _values(engines, read)
    return None if values is None else min(values)


def _share(part: Any, whole: Any) -> float | None:
    return None if part is None or not whole else part / whole
