"""GPU kinds by data sheet: what planning and simulation need to know of a GPU that is not here.

Sources: NVIDIA H100 Tensor Core GPU data sheet (2023), NVIDIA H200 Tensor Core GPU data sheet (2024), NVIDIA A100
80GB data sheet (2021); dense bf16 rates (the sheets print them with sparsity, which is twice these). SM counts, boost
clocks and L2 sizes: NVIDIA H100 and A100 architecture white papers (2022, 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class GpuKind:
    """memory_bytes is what NVML reports as total; rates are peak, dense, bf16."""

    name: str
    memory_bytes: int
    sms: int
    boost_clock_mhz: float
    bf16_flops_per_s: float
    memory_bytes_per_s: float
    l2_bytes: int
    power_limit_w: float
    idle_power_w: float


KINDS: dict[str, GpuKind] = {
    kind.name: kind
    for kind in (
        GpuKind("A100", 80 * GIB, 108, 1410, 312e12, 2.039e12, 40 * 2**20, 400, 50),
        GpuKind("H100", 80 * GIB, 132, 1980, 989.5e12, 3.35e12, 50 * 2**20, 700, 70),
        GpuKind("H200", 141 * 10**9, 132, 1980, 989.5e12, 4.8e12, 50 * 2**20, 700, 75),
    )
}
