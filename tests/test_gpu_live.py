"""The sampler on a real GPU, idle or not: what the fake cannot prove is that NVML answers as the fake does."""

from __future__ import annotations

import time

import pytest

from orchestrator.gpu_devices import list_gpus, memory_used
from orchestrator.gpu_telemetry import GpuSampler

pytestmark = pytest.mark.gpu


@pytest.fixture
def uuid() -> str:
    gpus = list_gpus()
    if not gpus:
        pytest.skip("no GPU here")
    return gpus[0].uuid


def test_a_window_on_a_real_gpu(uuid: str) -> None:
    with GpuSampler(uuid, interval_s=0.1) as sampler:
        start = sampler.edge()
        time.sleep(2.0)
        end = sampler.edge()
        facts, rows = sampler.facts(start, end, own_pids=()), sampler.samples(start, end)
        print(facts, sampler.notes, f"sampler {sampler.cpu_share:.4f} of a core", sep="\n")
    assert facts.power_w is not None and 10 < facts.power_w < 1500
    assert facts.energy_j == pytest.approx(facts.power_w * (end.time_ns - start.time_ns) / 1e9, rel=1e-6)
    assert facts.sm_clock_mhz is not None and 100 < facts.sm_clock_mhz < 4000
    assert facts.memory_used_bytes == pytest.approx(memory_used(uuid), abs=2**30)
    if "gpm" not in sampler.notes:
        assert facts.gpu_active_share is not None and facts.dram_active_share is not None
        assert "sm_active_share" in set(rows["metric"])
    assert len(set(rows["time_ns"])) >= 10
    assert rows["time_ns"].is_between(start.time_ns, end.time_ns, closed="right").all()
