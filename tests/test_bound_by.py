"""One table of what was seen and what it means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.bound_by import bound_by
from orchestrator.observation import EngineFacts, GpuFacts

# An engine that polls: EngineCore's processor time alone must never decide.
ENGINE = EngineFacts(0, 32, 32.0, 100, 0, waiting_mean=0.0, kv_usage_max=0.3, preemptions=0, engine_core_cpu=0.97)
BUSY = GpuFacts(gpu_active_share=0.97, dram_active_share=0.3, power_capped_share=0.0)
IDLE = replace(BUSY, gpu_active_share=0.7)


@pytest.mark.parametrize(
    ("engine", "gpu", "bound"),
    [
        ({"frontend_cpu": 0.4}, IDLE, "engine_core"),
        ({"frontend_cpu": 0.4}, BUSY, "gpu_compute"),
        ({"frontend_cpu": 0.99, "engine_core_cpu": 0.93}, IDLE, "frontend"),
        ({"frontend_cpu": 0.95, "engine_core_cpu": 0.4}, IDLE, "frontend"),
        ({"frontend_cpu": 0.95, "engine_core_cpu": 0.4}, BUSY, "gpu_compute"),
        ({"frontend_cpu": 0.4, "engine_core_cpu": 0.6}, IDLE, "unknown"),  # neither waits for the other: latency
        ({"frontend_cpu": None}, IDLE, "unknown"),
        ({"frontend_cpu": 0.4, "engine_core_cpu": None}, IDLE, "unknown"),
        ({"frontend_cpu": 0.4}, replace(BUSY, dram_active_share=0.65), "gpu_memory"),
        ({"frontend_cpu": 0.4}, replace(BUSY, dram_active_share=0.65, power_capped_share=0.9), "power"),
        ({"frontend_cpu": 0.4}, replace(BUSY, dram_active_share=0.85, power_capped_share=0.9), "gpu_memory"),
        ({"frontend_cpu": 0.4}, replace(BUSY, power_capped_share=0.9), "power"),
        ({"frontend_cpu": 0.4}, replace(BUSY, power_capped_share=0.5), "gpu_compute"),
        ({"frontend_cpu": 0.4}, replace(IDLE, power_capped_share=0.9), "engine_core"),
        ({"frontend_cpu": 0.4}, replace(BUSY, gpu_active_share=None), "unknown"),
        ({"frontend_cpu": 0.4}, replace(BUSY, dram_active_share=None), "unknown"),
        ({"frontend_cpu": 0.4}, replace(BUSY, power_capped_share=None), "unknown"),
        ({"frontend_cpu": 0.4, "preemptions": 3}, BUSY, "kv"),
        ({"frontend_cpu": 0.4, "waiting_mean": 5.0, "kv_usage_max": 0.99}, BUSY, "kv"),
        ({"frontend_cpu": 0.4, "waiting_mean": 5.0, "kv_usage_max": 0.6}, BUSY, "gpu_compute"),
        ({"frontend_cpu": 0.4, "waiting_mean": 0.0, "kv_usage_max": 1.0}, BUSY, "gpu_compute"),
        ({"preemptions": 1}, GpuFacts(), "kv"),
        ({}, GpuFacts(), "unknown"),
    ],
)
def test_what_bounds_a_window(engine: dict[str, Any], gpu: GpuFacts, bound: str) -> None:
    assert bound_by([replace(ENGINE, **engine)], gpu) == bound


def test_engines_count_in_the_mean_but_kv_of_any() -> None:
    first, second = replace(ENGINE, frontend_cpu=0.4), replace(ENGINE, engine=1, frontend_cpu=0.4, engine_core_cpu=0.87)
    assert bound_by([first, second], IDLE) == "engine_core"
    assert bound_by([first, replace(second, engine_core_cpu=0.5)], IDLE) == "unknown"
    assert bound_by([first, replace(second, engine_core_cpu=None)], IDLE) == "unknown"
    assert bound_by([first, replace(second, preemptions=1)], IDLE) == "kv"
    assert bound_by([], IDLE) == "unknown"
