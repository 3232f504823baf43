"""Power and clock of the simulated GPU: P = idle + active + compute + memory, and a cap that lowers the clock.

Compute power is proportional to the FLOP rate and to the square of the clock, as the voltage goes with it; memory power
to the bytes a second, and `active` to the time in which kernels run (`dashboards/power_law.py` fits the three to
windows of single engines, and tries them on those of pairs). Every `power_interval` the cap sets the clock at which the
load just seen would draw the limit. Work is counted when its step ends, so an interval also holds at least
`STEPS_AN_INTERVAL` steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.gpus import GpuKind
from orchestrator.simulated.constants import value
from orchestrator.simulated.kernels import StepCost

STEPS_AN_INTERVAL = 8


@dataclass(frozen=True, slots=True)
class PowerReading:
    """Means over the interval that ends at `time_s`."""

    time_s: float
    power_w: float
    clock: float  # share of the boost clock in force during the interval


class PowerCap:
    """Counts what the GPU does and, where `enabled`, keeps it below its power limit."""

    def __init__(self, gpu: GpuKind, enabled: bool = True) -> None:
        dynamic_w = gpu.power_limit_w - gpu.idle_power_w
        self.gpu, self.enabled = gpu, enabled
        self.compute_w = dynamic_w * value("matmul_power") / value("gemm_efficiency")  # at the peak FLOP rate
        self.memory_w = dynamic_w * value("memory_power") / value("copy_efficiency")  # at the peak byte rate
        self.active_w = dynamic_w * value("active_power")
        self.interval_s = value("power_interval")
        self.clock = 1.0
        self.readings: list[PowerReading] = []
        self._flops = self._bytes = self._busy_s = 0.0
        self._since_s = 0.0
        self._steps = 0

    def add(self, cost: StepCost, now: float) -> bool:
        """A step has ended; returns whether it is time to `read`."""
        self._steps += 1
        self._flops += cost.flops
        self._bytes += cost.dram_bytes
        self._busy_s += cost.compute_s / self.clock + cost.memory_s + cost.gap_s
        return self._steps >= STEPS_AN_INTERVAL and now >= self._since_s + self.interval_s

    def read(self, now: float) -> float:
        """Close the interval at `now`; returns the clock for the steps to come, as a share of the boost clock."""
        seconds = now - self._since_s
        compute = self._flops / (self.gpu.bf16_flops_per_s * seconds)
        memory_w = self.memory_w * self._bytes / (self.gpu.memory_bytes_per_s * seconds)
        fixed_w = self.gpu.idle_power_w + self.active_w * min(1.0, self._busy_s / seconds)
        power_w = fixed_w + self.compute_w * compute * self.clock**2 + memory_w
        self.readings.append(PowerReading(now, power_w, self.clock))
        if self.enabled and compute > 0:
            # At another clock f the same load runs at compute * f / clock, and a FLOP costs f^2.
            room_w = max(0.0, self.gpu.power_limit_w - fixed_w - memory_w)
            clock = (room_w / (self.compute_w * compute / self.clock)) ** (1 / 3)
            self.clock = min(1.0, max(value("lowest_clock"), clock))
        self._flops = self._bytes = self._busy_s = 0.0
        self._since_s, self._steps = now, 0
        return self.clock
