"""GPM, the GPU's own activity counters (Hopper and later), over exactly the time between two samples.

A metric belongs to a pair of samples, so a window is measured by one sample at each of its edges. Whether the counters
work is decided by taking two samples and computing every metric: virtual GPUs and MIG instances may claim support and
then refuse (NVIDIA/dcgm-exporter PR #701).
"""

from __future__ import annotations

import math
import time
from typing import Any

import pynvml

# Metric ids of NVML's GPM, by the column that they fill; NVML gives percent.
METRICS: dict[int, str] = {
    pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL: "gpu_active_share",
    pynvml.NVML_GPM_METRIC_SM_UTIL: "sm_active_share",
    pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: "sm_occupancy_share",
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active_share",
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_active_share",
}
SHORTEST_S = 0.1  # NVML asks for samples at least 100 ms apart
OVERSHOOT = 1.05  # rounding may carry a share just over 1; beyond this the reading is broken


def take(handle: Any, nvml: Any = pynvml) -> Any:
    """A sample of the device now; give it back with `free`. Raises pynvml.NVMLError."""
    sample = nvml.nvmlGpmSampleAlloc()
    try:
        nvml.nvmlGpmSampleGet(handle, sample)
    except pynvml.NVMLError:
        nvml.nvmlGpmSampleFree(sample)
        raise
    return sample


def free(sample: Any, nvml: Any = pynvml) -> None:
    """Give a sample's memory back. A sample must not be used afterwards."""
    nvml.nvmlGpmSampleFree(sample)


def shares(first: Any, second: Any, nvml: Any = pynvml) -> dict[str, float | None]:
    """Every metric of METRICS between two samples, as a share; None where NVML refuses that one. Raises NVMLError."""
    request = nvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = len(METRICS)
    request.sample1, request.sample2 = first, second
    for slot, metric_id in enumerate(METRICS):
        request.metrics[slot].metricId = metric_id
    nvml.nvmlGpmMetricsGet(request)
    found: dict[str, float | None] = {}
    for slot, name in enumerate(METRICS.values()):
        metric = request.metrics[slot]
        found[name] = _share(metric.value) if metric.nvmlReturn == pynvml.NVML_SUCCESS else None
    return found


def probe(handle: Any, nvml: Any = pynvml, pause_s: float = SHORTEST_S) -> str | None:
    """Take two samples and compute from them. None: the counters work; else why they do not.

    Works means that at least one metric was computed: the others are None wherever they are asked for.
    """
    try:
        first = take(handle, nvml)
        try:
            time.sleep(pause_s)
            second = take(handle, nvml)
            try:
                found = shares(first, second, nvml)
            finally:
                free(second, nvml)
        finally:
            free(first, nvml)
    except pynvml.NVMLError as error:
        return f"GPM refused: {error}"
    return None if any(value is not None for value in found.values()) else "GPM computes none of the metrics asked for"


def _share(percent: float) -> float | None:
    share = percent / 100.0
    if not math.isfinite(share) or not 0.0 <= share <= OVERSHOOT:
        return None
    return min(share, 1.0)
