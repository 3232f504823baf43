"""The GPUs of this host as NVML names them: which there are, who is on them, and whether one is clean."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from orchestrator.errors import GpuNotClean, MeasurementError

MIB = 2**20
# A CUDA context alone takes some hundred MiB, so anything above this over the baseline is somebody's.
CLEAN_TOLERANCE_BYTES = 64 * MIB
# Used memory of an idle data-centre GPU is some hundred MiB at most, the driver's own reservation included.
IDLE_BYTES = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. pids: who has a context on it, as far as this process may see. mig: partitioned, so not ours to use."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    bus_id: str
    mig: bool
    compute_mode: int
    pids: tuple[int, ...]


@contextmanager
def nvml_session(nvml: Any = pynvml) -> Iterator[Any]:
    """NVML started and ended. Raises MeasurementError where the driver does not answer or the GPU is gone."""
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MeasurementError(f"NVML does not answer ({error}): is the NVIDIA driver loaded?") from error
    try:
        yield nvml
    except pynvml.NVMLError as error:
        raise MeasurementError(f"NVML failed ({error}): see `nvidia-smi` and `dmesg | grep Xid`") from error
    finally:
        nvml.nvmlShutdown()


def list_gpus(nvml: Any = pynvml) -> tuple[Gpu, ...]:
    """Every GPU of this host, CUDA_VISIBLE_DEVICES notwithstanding. Empty where there is no NVIDIA driver."""
    try:
        with nvml_session(nvml):
            return tuple(_gpu(index, nvml) for index in range(nvml.nvmlDeviceGetCount()))
    except MeasurementError as error:
        if isinstance(error.__cause__, pynvml.NVMLError) and error.__cause__.value in _NO_DRIVER:
            return ()
        raise


def free_gpus(nvml: Any = pynvml) -> tuple[Gpu, ...]:
    """The GPUs that nobody uses: no process in sight, next to no memory in use, not partitioned."""
    return tuple(gpu for gpu in list_gpus(nvml) if not gpu.pids and not gpu.mig and gpu.used_bytes < IDLE_BYTES)


def memory_used(gpu_uuid: str, nvml: Any = pynvml) -> int:
    """Bytes of device memory in use, the driver's reservation included. Raises MeasurementError."""
    with nvml_session(nvml):
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(gpu_uuid)).used)


def foreign_processes(gpu_uuid: str, own_pids: Collection[int], nvml: Any = pynvml) -> tuple[int, ...] | None:
    """Processes on the GPU that are not ours; None where NVML's list cannot tell. Raises MeasurementError."""
    with nvml_session(nvml):
        return foreign_processes_of(nvml.nvmlDeviceGetHandleByUUID(gpu_uuid), own_pids, nvml)


def foreign_processes_of(handle: Any, own_pids: Collection[int], nvml: Any = pynvml) -> tuple[int, ...] | None:
    """As `foreign_processes`, within an open NVML session.

    A container may see an empty list, or the pids of another namespace. So a list in which none of our own processes
    appears, though we have some, proves nothing: None.
    """
    seen = _pids(handle, nvml)
    if seen is None or (own_pids and not seen & set(own_pids)):
        return None
    return tuple(sorted(seen - set(own_pids)))


def idle_baseline(gpu_uuid: str, nvml: Any = pynvml) -> int:
    """Bytes in use while nobody is on the GPU: what it must come back to. Raises GpuNotClean when somebody is."""
    strangers = foreign_processes(gpu_uuid, (), nvml)
    used = memory_used(gpu_uuid, nvml)
    if strangers or used >= IDLE_BYTES:
        raise GpuNotClean(_unclean(gpu_uuid, strangers, used, 0))
    return used


def wait_clean(
    gpu_uuid: str,
    baseline_bytes: int,
    timeout_s: float,
    nvml: Any = pynvml,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Wait until the GPU is back at its baseline with no process on it; bytes in use then.

    Raises GpuNotClean after timeout_s, naming processes and memory, and MeasurementError when NVML fails.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        used = memory_used(gpu_uuid, nvml)
        strangers = foreign_processes(gpu_uuid, (), nvml)
        if not strangers and used <= baseline_bytes + CLEAN_TOLERANCE_BYTES:
            return used
        if time.monotonic() >= deadline_s:
            raise GpuNotClean(_unclean(gpu_uuid, strangers, used, baseline_bytes))
        sleep(0.2)


def lost(error: Any) -> bool:
    """Whether an NVML error means that the GPU is gone for this process."""
    return error.value in (
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
    )


_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


def _gpu(index: int, nvml: Any) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] != 0
    except pynvml.NVMLError:  # GPUs without MIG answer "not supported"
        mig = False
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=int(memory.total),
        used_bytes=int(memory.used),
        bus_id=nvml.nvmlDeviceGetPciInfo(handle).busId,
        mig=mig,
        compute_mode=int(nvml.nvmlDeviceGetComputeMode(handle)),
        pids=tuple(sorted(_pids(handle, nvml) or ())),
    )


def _pids(handle: Any, nvml: Any) -> set[int] | None:
    """Everybody on the GPU, of all three lists; None where NVML shows no list of compute processes."""
    try:
        seen = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError as error:
        if lost(error):
            raise MeasurementError(f"the GPU is lost ({error}): see `dmesg | grep Xid`") from error
        return None
    # MPS clients and graphics contexts are listed apart, and not by every driver.
    for more in (nvml.nvmlDeviceGetMPSComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            seen |= {process.pid for process in more(handle)}
        except pynvml.NVMLError:
            continue
    return seen


def _unclean(gpu_uuid: str, strangers: tuple[int, ...] | None, used_bytes: int, baseline_bytes: int) -> str:
    who = ", ".join(str(pid) for pid in strangers) if strangers else "no process in sight"
    return (
        f"GPU {gpu_uuid} is not clean: {used_bytes / MIB:.0f} MiB in use where {baseline_bytes / MIB:.0f} MiB is idle; "
        f"pids: {who}. End them (`nvidia-smi` names them) or leave the GPU out."
    )
