"""The GPU that a host owns: which one Ray gave it, clean before the work and clean after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import GpuNotClean, MeasurementError
from orchestrator.gpu_devices import Gpu, idle_baseline, list_gpus, wait_clean

# A previous owner's processes may still be on their way out; a foreign one will not leave by itself.
CLEAN_BEFORE_S = 30.0
CLEAN_AFTER_S = 30.0


def leased_gpu() -> Gpu:
    """The one GPU that CUDA_VISIBLE_DEVICES leaves visible, whether by index or by UUID.

    Raises MeasurementError where it leaves none or several: one host owns one GPU.
    """
    gpus = list_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [item for item in visible.split(",") if item]
        gpus = tuple(gpu for gpu in gpus if str(gpu.index) in wanted or any(gpu.uuid.startswith(w) for w in wanted))
    if len(gpus) != 1:
        raise MeasurementError(
            f"a host owns one GPU; CUDA_VISIBLE_DEVICES={visible!r} leaves {len(gpus)} of this machine's: "
            "set it to the GPU's index or UUID"
        )
    if gpus[0].mig:
        raise MeasurementError(f"{gpus[0].uuid} is partitioned by MIG: measuring needs a whole GPU")
    return gpus[0]


@contextmanager
def clean_gpu(gpu: Gpu) -> Iterator[int]:
    """Hold `gpu` from clean to clean; yields the bytes in use while nobody is on it.

    Raises GpuNotClean: somebody is on it before, or memory or processes are left after.
    """
    try:
        baseline = idle_baseline(gpu.uuid)
    except GpuNotClean:
        baseline = wait_clean(gpu.uuid, 0, CLEAN_BEFORE_S)
    yield baseline
    wait_clean(gpu.uuid, baseline, CLEAN_AFTER_S)
