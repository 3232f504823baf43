"""The GPU that a host owns: which one Ray gave it, and an inspection before and after every block.

    lease = GpuLease()
    with lease.held() as gpu:      # GpuNotClean before: somebody is on it; after: something of the block stayed
        ...

Inspected are processes (NVML's lists), memory against the idle base line that was read when this host first found the
GPU clean, and the folder of our MPS daemon. A host whose GPU fails an inspection must not be used again; it holds on to
the GPU, so that nobody else of the sweep gets it (orchestrator/pool.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from orchestrator.errors import GpuNotClean, MeasurementError, MpsError
from orchestrator.gpu_devices import CLEAN_TOLERANCE_BYTES, MIB, Gpu, idle_baseline, list_gpus, wait_clean
from orchestrator.mps_control import find_binary
from orchestrator.mps_home import mps_home

# A previous owner's processes may still be on their way out, and a colleague's short test ends; nobody else leaves.
CLEAN_BEFORE_S = 60.0
CLEAN_AFTER_S = 30.0
_LOOK_S = 0.2


def leased_gpu(nvml: Any = pynvml) -> Gpu:
    """The one GPU that CUDA_VISIBLE_DEVICES leaves visible, whether by index or by UUID.

    Raises MeasurementError where it leaves none or several: one host owns one GPU.
    """
    gpus = list_gpus(nvml)
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


@dataclass(slots=True)
class GpuLease:
    """A host's GPU for as long as the host lives. baseline_bytes: in use while nobody was on it; None: not yet seen."""

    nvml: Any = pynvml
    mps_root: Path = field(default_factory=lambda: Path(f"/tmp/mps-{os.getuid()}"))
    before_s: float = CLEAN_BEFORE_S
    after_s: float = CLEAN_AFTER_S
    sleep: Callable[[float], None] = time.sleep
    baseline_bytes: int | None = None

    @contextmanager
    def held(self) -> Iterator[Gpu]:
        """From clean to clean, whatever happens between. Raises GpuNotClean, and MeasurementError if NVML fails."""
        gpu = leased_gpu(self.nvml)
        end_mps_leftovers(gpu.uuid, self.mps_root, self.before_s, self.sleep)
        self.baseline_bytes = wait_idle(gpu.uuid, self.before_s, self.baseline_bytes, self.nvml, self.sleep)
        try:
            yield gpu
        finally:
            wait_clean(gpu.uuid, self.baseline_bytes, self.after_s, self.nvml, self.sleep)
            if (folder := mps_folder(gpu.uuid, self.mps_root)).exists():
                raise GpuNotClean(f"GPU {gpu.uuid} is not clean: an MPS daemon or its clients still use {folder}")


@contextmanager
def clean_gpu(gpu: Gpu) -> Iterator[int]:
    """One set of boots on `gpu`, from clean to clean; yields the bytes in use while nobody is on it.

    Raises GpuNotClean: somebody is on it before, or memory or processes are left after. A body that fails keeps its
    own error; what it left is found by the next inspection.
    """
    baseline = wait_idle(gpu.uuid, CLEAN_BEFORE_S)
    yield baseline
    wait_clean(gpu.uuid, baseline, CLEAN_AFTER_S)


def wait_idle(
    gpu_uuid: str,
    timeout_s: float,
    baseline_bytes: int | None = None,
    nvml: Any = pynvml,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Wait until nobody is on the GPU; the base line then, which is the one given where there was one.

    Raises GpuNotClean after timeout_s, naming processes and memory, and MeasurementError when NVML fails.
    """
    if baseline_bytes is not None:
        wait_clean(gpu_uuid, baseline_bytes, timeout_s, nvml, sleep)
        return baseline_bytes
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            seen = idle_baseline(gpu_uuid, nvml)
            sleep(_LOOK_S)
            # Memory that is still being given back would make a base line that is never reached again.
            if abs(idle_baseline(gpu_uuid, nvml) - seen) <= CLEAN_TOLERANCE_BYTES // 8:
                return seen
        except GpuNotClean:
            if time.monotonic() >= deadline_s:
                raise
        else:
            if time.monotonic() >= deadline_s:
                raise GpuNotClean(f"GPU {gpu_uuid}: memory in use does not settle near {seen / MIB:.0f} MiB")
        sleep(_LOOK_S)


def mps_folder(gpu_uuid: str, root: Path) -> Path:
    """Where our daemon of this GPU lives, and nothing is when none does (orchestrator/mps_home.py)."""
    return root / gpu_uuid.removeprefix("GPU-")[:8]


def end_mps_leftovers(gpu_uuid: str, root: Path, timeout_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """End what a sweep that died left of its MPS daemon; an owner that is being killed gets timeout_s to be gone.

    Raises GpuNotClean where it still lives then.
    """
    deadline_s = time.monotonic() + timeout_s
    while mps_folder(gpu_uuid, root).exists():
        try:
            with mps_home(gpu_uuid, root, find_binary()):
                return  # entering ends what a dead owner left, leaving removes the folder
        except MpsError as error:
            if time.monotonic() >= deadline_s:
                raise GpuNotClean(f"GPU {gpu_uuid} is not clean: {error}", error.log_tail) from error
        sleep(_LOOK_S)
