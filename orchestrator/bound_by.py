"""What kept a window from going faster, from processor time, scheduler counts and GPU counters of the same window.

An EngineCore process polls while it waits for the GPU, so a busy core alone proves nothing: the host is named only
where the GPU had nothing to do for part of the time. What the rules would have to ask a missing counter is `unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from orchestrator.observation import EngineFacts, GpuFacts

Bound = Literal["engine_core", "frontend", "gpu_compute", "gpu_memory", "power", "kv", "unknown"]

# The GPU counts as busy from here: a tenth of the window without any kernel is more than the gaps between graph
# launches, so then something else set the pace.
GPU_BUSY = 0.9
# A thread that owns its core and never waits reads a little less than 1: the kernel's own work, and 10 ms ticks.
HOST_BUSY = 0.9
# A full cache; the scheduler turns requests away before the last block is gone.
KV_FULL = 0.98
# The counter is a share of the peak, of which about 0.9 can be had: a plain copy on an H200 moves 4.3 of 4.8 TB/s.
# From DRAM_WALL on, memory is the limit at whatever SM clock; from DRAM_MOST on, two thirds of what can be had is used.
DRAM_WALL = 0.8
DRAM_MOST = 0.6
# Capped in most of the clock readings: the SM clock, and with it compute, is set by the power limit.
POWER_CAPPED = 0.5


def bound_by(engines: Sequence[EngineFacts], gpu: GpuFacts) -> Bound:
    """The first rule that holds: KV, then the host where the GPU idles, then memory, power and compute of a busy GPU.

    `gpu_compute` means that kernels fill the time, not that they fill the SMs: see `sm_active_share` for that.
    """
    if any(_kv_binds(engine) for engine in engines):
        return "kv"
    if gpu.gpu_active_share is None:
        return "unknown"
    if gpu.gpu_active_share < GPU_BUSY:
        return _host(engines)
    if gpu.dram_active_share is None or gpu.power_capped_share is None:
        return "unknown"
    if gpu.dram_active_share >= DRAM_WALL:
        return "gpu_memory"
    if gpu.power_capped_share > POWER_CAPPED:
        return "power"
    return "gpu_memory" if gpu.dram_active_share >= DRAM_MOST else "gpu_compute"


def _kv_binds(engine: EngineFacts) -> bool:
    if engine.preemptions:
        return True
    return (engine.waiting_mean or 0.0) > 0 and (engine.kv_usage_max or 0.0) >= KV_FULL


def _host(engines: Sequence[EngineFacts]) -> Bound:
    """Which process sets the pace of a GPU that idles: the busier one, if it is busy in the mean over the engines."""
    cores = [engine.engine_core_cpu for engine in engines if engine.engine_core_cpu is not None]
    frontends = [engine.frontend_cpu for engine in engines if engine.frontend_cpu is not None]
    if not engines or len(cores) < len(engines) or len(frontends) < len(engines):
        return "unknown"
    core, frontend = fmean(cores), fmean(frontends)
    if max(core, frontend) < HOST_BUSY:
        return "unknown"
    return "engine_core" if core >= frontend else "frontend"
