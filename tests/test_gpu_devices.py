"""Who is on a GPU, and whether it is clean, against a GPU whose truth is known."""

from __future__ import annotations

import pynvml
import pytest

from orchestrator import gpu_devices
from orchestrator.errors import GpuNotClean, MeasurementError
from tests.fake_nvml import GIB, UUID, FakeNvml

MIB = 2**20


def test_the_gpus_of_a_host() -> None:
    nvml = FakeNvml(compute_pids=(7,), used_bytes=3 * GIB)
    (gpu,) = gpu_devices.list_gpus(nvml)
    assert (gpu.uuid, gpu.name, gpu.memory_bytes, gpu.used_bytes) == (UUID, "NVIDIA H200", 141 * GIB, 3 * GIB)
    assert gpu.pids == (7,) and not gpu.mig and gpu.bus_id == "00000000:1B:00.0"
    assert nvml.sessions == 0


@pytest.mark.parametrize(
    ("nvml", "free"),
    [
        (FakeNvml(used_bytes=300 * MIB), 1),
        (FakeNvml(used_bytes=300 * MIB, compute_pids=(7,)), 0),
        (FakeNvml(used_bytes=300 * MIB, mps_pids=(7,)), 0),
        (FakeNvml(used_bytes=3 * GIB), 0),  # somebody whom this container may not see
        (FakeNvml(used_bytes=300 * MIB, mig=True), 0),
        (FakeNvml(used_bytes=300 * MIB, failing={"nvmlDeviceGetMigMode": pynvml.NVML_ERROR_NOT_SUPPORTED}), 1),
    ],
)
def test_free_gpus(nvml: FakeNvml, free: int) -> None:
    assert len(gpu_devices.free_gpus(nvml)) == free


def test_no_driver_is_no_gpu_but_a_broken_driver_is_an_error() -> None:
    assert gpu_devices.list_gpus(FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})) == ()
    assert gpu_devices.free_gpus(FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_DRIVER_NOT_LOADED})) == ()
    with pytest.raises(MeasurementError, match="NVML does not answer"):
        gpu_devices.list_gpus(FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}))


@pytest.mark.parametrize(
    ("nvml", "own", "foreign"),
    [
        (FakeNvml(compute_pids=(1, 2, 3)), (1, 2), (3,)),
        (FakeNvml(compute_pids=(1,), mps_pids=(2,)), (1, 2), ()),
        (FakeNvml(compute_pids=(5,)), (), (5,)),
        (FakeNvml(), (), ()),
        (FakeNvml(), (1, 2), None),  # an empty list though we are on it
        (FakeNvml(compute_pids=(40001,)), (1, 2), None),  # pids of another namespace
        (FakeNvml(failing={"nvmlDeviceGetComputeRunningProcesses": pynvml.NVML_ERROR_NO_PERMISSION}), (1,), None),
        (
            FakeNvml(
                compute_pids=(1,), failing={"nvmlDeviceGetMPSComputeRunningProcesses": pynvml.NVML_ERROR_NOT_SUPPORTED}
            ),
            (1,),
            (),
        ),
    ],
)
def test_strangers(nvml: FakeNvml, own: tuple[int, ...], foreign: tuple[int, ...] | None) -> None:
    assert gpu_devices.foreign_processes(UUID, own, nvml) == foreign


def test_a_lost_gpu_is_an_error_and_no_empty_list() -> None:
    nvml = FakeNvml(failing={"nvmlDeviceGetComputeRunningProcesses": pynvml.NVML_ERROR_GPU_IS_LOST})
    with pytest.raises(MeasurementError, match="lost"):
        gpu_devices.foreign_processes(UUID, (), nvml)


def test_the_baseline_is_taken_while_nobody_is_there() -> None:
    assert gpu_devices.idle_baseline(UUID, FakeNvml(used_bytes=500 * MIB)) == 500 * MIB
    with pytest.raises(GpuNotClean, match=r"pids: 7\."):
        gpu_devices.idle_baseline(UUID, FakeNvml(used_bytes=500 * MIB, compute_pids=(7,)))
    with pytest.raises(GpuNotClean, match="51200 MiB"):
        gpu_devices.idle_baseline(UUID, FakeNvml(used_bytes=50 * GIB))


def test_waiting_ends_when_memory_and_processes_are_gone() -> None:
    nvml = FakeNvml(used_bytes=50 * GIB, compute_pids=(7,))

    def a_while(seconds: float) -> None:
        if nvml.compute_pids:
            nvml.compute_pids = ()
        else:
            nvml.used_bytes = 520 * MIB

    assert gpu_devices.wait_clean(UUID, 500 * MIB, 60, nvml, a_while) == 520 * MIB


@pytest.mark.parametrize(("used", "pids"), [(600 * MIB, ()), (500 * MIB, (7,))])
def test_waiting_gives_up_on_a_gpu_that_stays_dirty(used: int, pids: tuple[int, ...]) -> None:
    nvml = FakeNvml(used_bytes=used, compute_pids=pids)
    with pytest.raises(GpuNotClean, match=r"not clean: .* where 500 MiB is idle"):
        gpu_devices.wait_clean(UUID, 500 * MIB, 0, nvml)
