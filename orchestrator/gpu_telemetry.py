"""What one GPU did over a window: activity counters, clocks, power, energy, memory, and who else was on it.

    with GpuSampler(uuid) as sampler:
        start = sampler.edge()
        ...                                     # the window
        end = sampler.edge()
        facts = sampler.facts(start, end, own_pids)
        rows = sampler.samples(start, end)

NVML needs no CUDA context, so reading it adds no time slices. A thread reads every half second; each reading is about a
dozen library calls that release the interpreter lock, and the thread's own processor time is in `cpu_share`.
A counter that cannot be read is None with a note, never 0; a GPU that has fallen off the bus is an error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import polars as pl
import pynvml

from orchestrator import gpm
from orchestrator.errors import MeasurementError
from orchestrator.gpu_devices import foreign_processes_of, lost
from orchestrator.observation import GpuFacts

POWER_REASONS = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
THERMAL_REASONS = pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonHwThermalSlowdown
READINGS_KEPT = 100_000  # about an hour of history at two readings a second: far more than any window

Reading = tuple[int, str, float]  # time_ns, metric, value


@dataclass(frozen=True, slots=True)
class GpuEdge:
    """One edge of a window: when, the energy counter, and the key of its GPM sample. None: not readable here."""

    time_ns: int
    energy_mj: int | None
    gpm_key: int | None


class GpuSampler:
    """Reads one GPU while it is entered.

    interval_s: between readings of clocks, power, memory and the activity series. clock_ns: the time base, monotonic.
    Raises MeasurementError on entry where NVML or the GPU does not answer, and from `edge` and `facts` once the GPU is
    lost.
    """

    def __init__(
        self,
        gpu_uuid: str,
        interval_s: float = 0.5,
        nvml: Any = pynvml,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.gpu_uuid = gpu_uuid
        self.notes: dict[str, str] = {}  # metric -> why it could not be read
        self._interval_s = interval_s
        self._nvml = nvml
        self._clock_ns = clock_ns
        self._readings: deque[Reading] = deque(maxlen=READINGS_KEPT)
        self._lock = threading.Lock()
        self._edge_samples: dict[int, Any] = {}
        self._next_key = 0
        self._last_gpm: tuple[int, Any] | None = None
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"nvml-{gpu_uuid[:12]}", daemon=True)
        self._thread_cpu_s = 0.0
        self._started_s = 0.0

    def __enter__(self) -> GpuSampler:
        try:
            self._nvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise MeasurementError(f"NVML does not answer ({error}): is the NVIDIA driver loaded?") from error
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self.gpu_uuid)
        except pynvml.NVMLError as error:
            self._nvml.nvmlShutdown()
            raise MeasurementError(f"NVML knows no GPU {self.gpu_uuid} ({error}): see `nvidia-smi -L`") from error
        refusal = gpm.probe(self._handle, self._nvml)
        self._gpm_works = refusal is None
        if refusal is not None:
            self.notes["gpm"] = refusal
        self._started_s = time.monotonic()
        self.read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for sample in self._edge_samples.values():
            gpm.free(sample, self._nvml)
        self._edge_samples.clear()
        if self._last_gpm is not None:
            gpm.free(self._last_gpm[1], self._nvml)
            self._last_gpm = None
        self._nvml.nvmlShutdown()

    @property
    def cpu_share(self) -> float:
        """What the sampling thread itself costs, as a share of one core since it was started."""
        elapsed_s = time.monotonic() - self._started_s
        return self._thread_cpu_s / elapsed_s if self._started_s and elapsed_s > 0 else 0.0

    def edge(self) -> GpuEdge:
        """Mark an edge of a window now. Its GPM sample lives until `facts` used it or the sampler is left."""
        self._raise_if_lost()
        self.read()
        key = None
        if self._gpm_works:
            sample = self._try("gpm", lambda: gpm.take(self._handle, self._nvml))
            if sample is not None:
                key, self._next_key = self._next_key, self._next_key + 1
                self._edge_samples[key] = sample
        energy_mj = self._try("energy_j", lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return GpuEdge(self._clock_ns(), energy_mj, key)

    def facts(self, start: GpuEdge, end: GpuEdge, own_pids: Collection[int]) -> GpuFacts:
        """The GPU between two edges, which are used up by it. own_pids: every process of ours, the MPS server included.

        power_w is the energy counter's mean where there is one, else the mean of the readings (NVML's power reading is
        itself a one-second average); memory_used_bytes is the largest reading. Raises MeasurementError once the GPU is
        lost, ValueError for an edge that is used up.
        """
        self._raise_if_lost()
        shares = self._gpm_between(start, end)
        duration_s = (end.time_ns - start.time_ns) / 1e9
        energy_j = None
        if start.energy_mj is not None and end.energy_mj is not None and end.energy_mj >= start.energy_mj:
            energy_j = (end.energy_mj - start.energy_mj) / 1e3
        by_metric: dict[str, list[float]] = {}
        for _, metric, value in self._between(start, end):
            by_metric.setdefault(metric, []).append(value)
        memory = by_metric.get("memory_used_bytes")
        return GpuFacts(
            **shares,
            sm_clock_mhz=_mean(by_metric.get("sm_clock_mhz")),
            power_w=energy_j / duration_s
            if energy_j is not None and duration_s > 0
            else _mean(by_metric.get("power_w")),
            energy_j=energy_j,
            power_capped_share=_mean(by_metric.get("power_capped")),
            thermal_capped_share=_mean(by_metric.get("thermal_capped")),
            memory_used_bytes=int(max(memory)) if memory else None,
            foreign_pids=foreign_processes_of(self._handle, own_pids, self._nvml),
        )

    def samples(self, start: GpuEdge, end: GpuEdge) -> pl.DataFrame:
        """The readings between two edges, one row each: time_ns, source (`gpu`), metric, value."""
        rows = self._between(start, end)
        return pl.DataFrame(
            {
                "time_ns": [row[0] for row in rows],
                "source": ["gpu"] * len(rows),
                "metric": [row[1] for row in rows],
                "value": [row[2] for row in rows],
            },
            schema={"time_ns": pl.Int64, "source": pl.String, "metric": pl.String, "value": pl.Float64},
        )

    def read(self) -> None:
        """Read every counter once, now; the thread does this by itself."""
        nvml, handle = self._nvml, self._handle
        found = {
            "sm_clock_mhz": self._try(
                "sm_clock_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
            ),
            "power_w": self._try("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            "temperature_c": self._try(
                "temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            ),
            "memory_used_bytes": self._try("memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            "clocks_event_reasons": self._try(
                "clocks_event_reasons", lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
            ),
        }
        reasons = found["clocks_event_reasons"]
        if reasons is not None:
            found["power_capped"] = float(bool(reasons & POWER_REASONS))
            found["thermal_capped"] = float(bool(reasons & THERMAL_REASONS))
        with self._lock:
            now_ns = self._clock_ns()
            found.update(self._gpm_series(now_ns))
            self._readings.extend((now_ns, name, float(value)) for name, value in found.items() if value is not None)

    def _gpm_series(self, now_ns: int) -> dict[str, float | None]:
        """Activity since the last reading. A reading that follows the last one too closely leaves it standing."""
        if not self._gpm_works or (self._last_gpm and now_ns - self._last_gpm[0] < gpm.SHORTEST_S * 1e9):
            return {}
        sample = self._try("gpm", lambda: gpm.take(self._handle, self._nvml))
        if sample is None:
            return {}
        before, self._last_gpm = self._last_gpm, (now_ns, sample)
        if before is None:
            return {}
        try:
            return self._try("gpm", lambda: gpm.shares(before[1], sample, self._nvml)) or {}
        finally:
            gpm.free(before[1], self._nvml)

    def _gpm_between(self, start: GpuEdge, end: GpuEdge) -> dict[str, Any]:
        first, second = self._use_up(start), self._use_up(end)
        try:
            if first is None or second is None:
                return {}
            if end.time_ns - start.time_ns < gpm.SHORTEST_S * 1e9:
                self.notes["gpm"] = "the edges are less than 100 ms apart: too close for GPM"
                return {}
            return self._try("gpm", lambda: gpm.shares(first, second, self._nvml)) or {}
        finally:
            for sample in (first, second):
                if sample is not None:
                    gpm.free(sample, self._nvml)

    def _use_up(self, edge: GpuEdge) -> Any:
        if edge.gpm_key is None:
            return None
        if edge.gpm_key not in self._edge_samples:
            raise ValueError("this edge's GPM sample is used up: take a new edge for every window")
        return self._edge_samples.pop(edge.gpm_key)

    def _between(self, start: GpuEdge, end: GpuEdge) -> list[Reading]:
        with self._lock:
            return [row for row in self._readings if start.time_ns < row[0] <= end.time_ns]

    def _try(self, metric: str, call: Callable[[], Any]) -> Any:
        """The call's answer, or None with a note. A lost GPU is remembered: `edge` and `facts` raise it."""
        try:
            return call()
        except pynvml.NVMLError as error:
            self.notes.setdefault(metric, f"{metric}: {error}")
            if lost(error):
                self._lost = (
                    f"GPU {self.gpu_uuid} is lost ({error}): see `dmesg | grep Xid`, then reset or drain the node"
                )
            return None

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise MeasurementError(self._lost)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s) and self._lost is None:
            self.read()
            self._thread_cpu_s = time.thread_time()


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
