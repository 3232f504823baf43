"""A GPU with a known truth behind NVML's function names: what the telemetry's tests pass in place of `pynvml`.

Time is virtual: `advance` moves it and accumulates what the counters accumulate. Samples that were not given back, or
were used after that, are errors here where the real library would leak or crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

UUID = "GPU-5b1f0d6c-0000-0000-0000-000000000001"
GIB = 2**30


@dataclass
class FakeSample:
    """Accumulated percent-nanoseconds by metric id at one time."""

    time_ns: int = -1
    totals: Mapping[int, float] = field(default_factory=dict)
    freed: bool = False


@dataclass
class FakeMetric:
    metricId: int = 0
    nvmlReturn: int = 0
    value: float = 0.0


@dataclass
class FakeRequest:
    version: int = 0
    numMetrics: int = 0
    sample1: Any = None
    sample2: Any = None
    metrics: list[FakeMetric] = field(default_factory=lambda: [FakeMetric() for _ in range(16)])


@dataclass
class FakeNvml:
    """One GPU. failing: by function name, the NVML error code that it returns."""

    percent: dict[int, float] = field(default_factory=lambda: {1: 90.0, 2: 60.0, 3: 25.0, 5: 12.5, 10: 40.0})
    refused_metrics: tuple[int, ...] = ()
    power_w: float = 350.0
    sm_clock_mhz: int = 1980
    reasons: int = 0
    used_bytes: int = 1 * GIB
    compute_pids: tuple[int, ...] = ()
    mps_pids: tuple[int, ...] = ()
    mig: bool = False
    compute_mode: int = pynvml.NVML_COMPUTEMODE_DEFAULT
    failing: dict[str, int] = field(default_factory=dict)
    now_ns: int = 10**12
    sessions: int = 0
    alive_samples: int = 0
    _totals: dict[int, float] = field(default_factory=dict)
    _energy_mj: float = 5e6

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
        self._energy_mj += self.power_w * seconds * 1e3
        for metric_id, percent in self.percent.items():
            self._totals[metric_id] = self._totals.get(metric_id, 0.0) + percent * seconds * 1e9

    def clock_ns(self) -> int:
        return self.now_ns

    def _answer(self, name: str, value: Callable[[], Any]) -> Any:
        if name in self.failing:
            raise pynvml.NVMLError(self.failing[name])
        assert self.sessions > 0, f"{name} outside nvmlInit and nvmlShutdown"
        return value()

    def nvmlInit(self) -> None:
        if "nvmlInit" in self.failing:
            raise pynvml.NVMLError(self.failing["nvmlInit"])
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        assert self.sessions > 0
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return str(self._answer("nvmlSystemGetDriverVersion", lambda: "580.159.03"))

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return int(self._answer("nvmlSystemGetCudaDriverVersion", lambda: 13000))

    def nvmlDeviceGetCount(self) -> int:
        return int(self._answer("nvmlDeviceGetCount", lambda: 1))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._answer("nvmlDeviceGetHandleByIndex", lambda: UUID)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        if uuid != UUID:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self._answer("nvmlDeviceGetHandleByUUID", lambda: UUID)

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return UUID

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        return SimpleNamespace(busId="00000000:1B:00.0")

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        return list(self._answer("nvmlDeviceGetMigMode", lambda: [int(self.mig)] * 2))

    def nvmlDeviceGetComputeMode(self, handle: Any) -> int:
        return int(self._answer("nvmlDeviceGetComputeMode", lambda: self.compute_mode))

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return self._answer("nvmlDeviceGetMemoryInfo", lambda: SimpleNamespace(used=self.used_bytes, total=141 * GIB))

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        assert kind == pynvml.NVML_CLOCK_SM
        return int(self._answer("nvmlDeviceGetClockInfo", lambda: self.sm_clock_mhz))

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return int(self._answer("nvmlDeviceGetPowerUsage", lambda: self.power_w * 1e3))

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return int(self._answer("nvmlDeviceGetTemperature", lambda: 51))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return int(self._answer("nvmlDeviceGetCurrentClocksEventReasons", lambda: self.reasons))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return int(self._answer("nvmlDeviceGetTotalEnergyConsumption", lambda: self._energy_mj))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:
        return self._answer("nvmlDeviceGetComputeRunningProcesses", lambda: _processes(self.compute_pids))

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle: Any) -> Any:
        return self._answer("nvmlDeviceGetMPSComputeRunningProcesses", lambda: _processes(self.mps_pids))

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlGpmSampleAlloc(self) -> FakeSample:
        self.alive_samples += 1
        return FakeSample()

    def nvmlGpmSampleFree(self, sample: FakeSample) -> None:
        assert not sample.freed, "freed twice"
        sample.freed = True
        self.alive_samples -= 1

    def nvmlGpmSampleGet(self, handle: Any, sample: FakeSample) -> FakeSample:
        sample.totals = self._answer("nvmlGpmSampleGet", lambda: dict(self._totals))
        sample.time_ns = self.now_ns
        return sample

    def c_nvmlGpmMetricsGet_t(self) -> FakeRequest:
        return FakeRequest()

    def nvmlGpmMetricsGet(self, request: FakeRequest) -> None:
        first, second = request.sample1, request.sample2
        assert request.version == 1 and not first.freed and not second.freed, "used after it was freed"
        if "nvmlGpmMetricsGet" in self.failing:
            raise pynvml.NVMLError(self.failing["nvmlGpmMetricsGet"])
        elapsed_ns = second.time_ns - first.time_ns
        for metric in request.metrics[: request.numMetrics]:
            if metric.metricId in self.refused_metrics:
                metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
                continue
            grown = second.totals.get(metric.metricId, 0.0) - first.totals.get(metric.metricId, 0.0)
            metric.value = grown / elapsed_ns if elapsed_ns else 0.0


def _processes(pids: tuple[int, ...]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=GIB) for pid in pids]
