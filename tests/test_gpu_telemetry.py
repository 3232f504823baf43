"""The sampler against a GPU whose truth is known, in virtual time; its thread is asleep throughout."""

from __future__ import annotations

import polars as pl
import pynvml
import pytest

from orchestrator.errors import MeasurementError
from orchestrator.gpu_telemetry import GpuSampler
from orchestrator.observation import GpuFacts
from tests.fake_nvml import GIB, UUID, FakeNvml

NEVER_S = 3600.0
ACTIVITY = ("gpu_active_share", "sm_active_share", "sm_occupancy_share", "tensor_active_share", "dram_active_share")


def sampler(nvml: FakeNvml, interval_s: float = NEVER_S) -> GpuSampler:
    return GpuSampler(UUID, interval_s, nvml, nvml.clock_ns)


def window(nvml: FakeNvml, running: GpuSampler, seconds: float = 4.0) -> GpuFacts:
    start = running.edge()
    for _ in range(8):
        nvml.advance(seconds / 8)
        running.read()
    return running.facts(start, running.edge(), own_pids=())


def test_facts_cover_exactly_the_window() -> None:
    nvml = FakeNvml()
    with sampler(nvml) as running:
        nvml.advance(10)  # a warm-up at other rates
        start = running.edge()
        nvml.percent = {1: 100.0, 2: 80.0, 3: 30.0, 5: 20.0, 10: 50.0}
        nvml.power_w, nvml.sm_clock_mhz, nvml.used_bytes = 700.0, 1700, 51 * GIB
        nvml.reasons = pynvml.nvmlClocksEventReasonSwPowerCap
        nvml.advance(1)
        running.read()
        nvml.percent[2], nvml.reasons, nvml.sm_clock_mhz = 40.0, 0, 1980
        nvml.advance(3)
        end = running.edge()
        nvml.percent = {}
        nvml.advance(5)
        running.read()
        facts = running.facts(start, end, own_pids=())
    assert [getattr(facts, name) for name in ACTIVITY] == pytest.approx([1.0, 0.5, 0.3, 0.2, 0.5])
    assert facts.energy_j == pytest.approx(2800) and facts.power_w == pytest.approx(700)
    # two readings: one within the window, one at its end
    assert facts.sm_clock_mhz == pytest.approx((1700 + 1980) / 2)
    assert facts.power_capped_share == 0.5 and facts.thermal_capped_share == 0.0
    assert facts.memory_used_bytes == 51 * GIB and facts.foreign_pids == ()


def test_windows_follow_one_another_and_every_sample_is_given_back() -> None:
    nvml = FakeNvml()
    with sampler(nvml) as running:
        for sm_percent in (20.0, 70.0, 45.0):
            nvml.percent[2] = sm_percent
            assert window(nvml, running).sm_active_share == pytest.approx(sm_percent / 100)
        running.edge()  # an edge that nobody uses
    assert nvml.alive_samples == 0 and nvml.sessions == 0


def test_samples_are_the_readings_between_the_edges() -> None:
    nvml = FakeNvml()
    with sampler(nvml) as running:
        nvml.advance(1)
        start = running.edge()
        for power_w, dram_percent in ((100.0, 10.0), (300.0, 90.0)):
            nvml.power_w, nvml.percent[10] = power_w, dram_percent
            nvml.advance(0.5)
            running.read()
        nvml.advance(0.5)
        end = running.edge()
        nvml.advance(0.5)
        running.read()
        rows = running.samples(start, end)
    assert rows.columns == ["time_ns", "source", "metric", "value"] and set(rows["source"]) == {"gpu"}
    assert rows["time_ns"].min() == start.time_ns + 500_000_000 and rows["time_ns"].max() == end.time_ns
    series = {name: rows.filter(pl.col("metric") == name)["value"].to_list() for name in rows["metric"].unique()}
    assert series["power_w"] == [100.0, 300.0, 300.0]
    assert series["dram_active_share"] == pytest.approx([0.1, 0.9, 0.9])
    assert {"sm_clock_mhz", "temperature_c", "memory_used_bytes", "clocks_event_reasons"} <= set(series)


@pytest.mark.parametrize("function", ["nvmlGpmSampleGet", "nvmlGpmMetricsGet"])
def test_activity_is_unknown_and_never_zero_where_gpm_refuses(function: str) -> None:
    nvml = FakeNvml(failing={function: pynvml.NVML_ERROR_NOT_SUPPORTED})
    with sampler(nvml) as running:
        facts = window(nvml, running)
        assert "Not Supported" in running.notes["gpm"]
    assert [getattr(facts, name) for name in ACTIVITY] == [None] * 5
    assert facts.power_w == pytest.approx(350) and nvml.alive_samples == 0


def test_one_refused_metric_leaves_the_others() -> None:
    nvml = FakeNvml(refused_metrics=(10,))
    with sampler(nvml) as running:
        facts = window(nvml, running)
    assert facts.dram_active_share is None and facts.sm_active_share == pytest.approx(0.6)


@pytest.mark.parametrize("broken", [float("nan"), -1.0, 400.0])
def test_a_broken_counter_is_unknown(broken: float) -> None:
    nvml = FakeNvml()
    nvml.percent[2] = broken
    with sampler(nvml) as running:
        assert window(nvml, running).sm_active_share is None


def test_a_refused_counter_is_unknown_with_a_note() -> None:
    nvml = FakeNvml(
        failing={
            "nvmlDeviceGetTotalEnergyConsumption": pynvml.NVML_ERROR_NOT_SUPPORTED,
            "nvmlDeviceGetCurrentClocksEventReasons": pynvml.NVML_ERROR_NO_PERMISSION,
        }
    )
    with sampler(nvml) as running:
        facts = window(nvml, running)
        assert set(running.notes) == {"energy_j", "clocks_event_reasons"}
    assert facts.energy_j is None and facts.power_capped_share is None and facts.thermal_capped_share is None
    assert facts.power_w == pytest.approx(350)  # the mean of the readings


def test_edges_too_close_for_gpm() -> None:
    nvml = FakeNvml()
    with sampler(nvml) as running:
        facts = window(nvml, running, seconds=0.05)
        assert "100 ms" in running.notes["gpm"]
    assert facts.sm_active_share is None and facts.energy_j == pytest.approx(17.5, abs=0.01)


def test_an_edge_is_used_once() -> None:
    nvml = FakeNvml()
    with sampler(nvml) as running:
        start = running.edge()
        nvml.advance(1)
        end = running.edge()
        running.facts(start, end, own_pids=())
        with pytest.raises(ValueError, match="used up"):
            running.facts(start, end, own_pids=())


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_lost_gpu_is_an_error(code: int) -> None:
    nvml = FakeNvml()
    with sampler(nvml) as running:
        start = running.edge()
        nvml.advance(1)
        nvml.failing["nvmlDeviceGetPowerUsage"] = code
        running.read()
        with pytest.raises(MeasurementError, match="lost"):
            running.edge()
        with pytest.raises(MeasurementError, match="lost"):
            running.facts(start, start, own_pids=())
    assert nvml.alive_samples == 0


def test_strangers_on_the_gpu_are_named() -> None:
    nvml = FakeNvml(compute_pids=(10, 99), mps_pids=(11, 98))
    with sampler(nvml) as running:
        start = running.edge()
        nvml.advance(1)
        assert running.facts(start, running.edge(), own_pids=(10, 11)).foreign_pids == (98, 99)


def test_the_thread_reads_by_itself_and_says_what_it_costs() -> None:
    nvml = FakeNvml()
    with sampler(nvml, interval_s=0.001) as running:
        start = running.edge()
        nvml.advance(1)
        while len(running._readings) < 60:
            running._stop.wait(0.001)
        assert not running.samples(start, running.edge()).is_empty()
        while running.cpu_share == 0.0:
            running._stop.wait(0.001)
    assert nvml.alive_samples == 0 and not running._thread.is_alive()


def test_no_driver_and_no_such_gpu() -> None:
    missing = FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})
    with pytest.raises(MeasurementError, match="NVML does not answer"), sampler(missing):
        pass
    nvml = FakeNvml()
    with pytest.raises(MeasurementError, match="knows no GPU"), GpuSampler("GPU-other", NEVER_S, nvml):
        pass
    assert nvml.sessions == 0
