"""The GPU under inspection: clean before a block and clean after it, against a GPU whose truth is known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.errors import EngineCrashed, GpuNotClean, MeasurementError
from orchestrator.gpu_lease import GpuLease, leased_gpu, mps_folder
from orchestrator.mps_control import PIPE_VARIABLE
from orchestrator.mps_home import mps_home
from orchestrator.quarantine import Quarantine, quarantined
from orchestrator.store import ResultStore
from tests.fake_nvml import GIB, UUID, FakeNvml
from tests.test_gpu_devices import MIB

IDLE = 500 * MIB


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A short path for sockets."""
    folder = Path(f"/tmp/lease-{os.getpid()}-{tmp_path.name[-8:]}")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def lease(nvml: FakeNvml, root: Path, sleep: Callable[[float], None] = lambda _: None) -> GpuLease:
    return GpuLease(nvml, root, before_s=0.05, after_s=0.05, sleep=sleep)


def test_a_clean_gpu_is_held_and_its_base_line_kept(root: Path) -> None:
    nvml = FakeNvml(used_bytes=IDLE)
    held = lease(nvml, root)
    for _ in range(2):
        with held.held() as gpu:
            assert gpu.uuid == UUID and held.baseline_bytes == IDLE
            nvml.used_bytes, nvml.compute_pids = 60 * GIB, (7, 8)
            nvml.used_bytes, nvml.compute_pids = IDLE, ()
    assert nvml.sessions == 0


def test_a_stranger_is_waited_for_and_then_named(root: Path) -> None:
    nvml = FakeNvml(used_bytes=3 * GIB, compute_pids=(4711,))
    with pytest.raises(GpuNotClean, match=r"3072 MiB in use .* pids: 4711\."), lease(nvml, root).held():
        pytest.fail("held a GPU that somebody is on")

    def leaves(seconds: float) -> None:
        nvml.used_bytes, nvml.compute_pids = IDLE, ()

    # Its memory was in use when we came: the base line is what is in use without it.
    held = lease(nvml, root, leaves)
    with held.held():
        assert held.baseline_bytes == IDLE


def test_memory_that_is_still_being_given_back_is_no_base_line(root: Path) -> None:
    nvml = FakeNvml(used_bytes=900 * MIB)

    def gives_back(seconds: float) -> None:
        nvml.used_bytes = max(IDLE, nvml.used_bytes - 100 * MIB)

    held = GpuLease(nvml, root, before_s=60.0, sleep=gives_back)
    with held.held():
        assert held.baseline_bytes == IDLE


@pytest.mark.parametrize(("used", "pids"), [(IDLE + 100 * MIB, ()), (IDLE, (9,))], ids=["memory", "process"])
def test_what_a_block_leaves_is_found_even_if_the_block_failed(root: Path, used: int, pids: tuple[int, ...]) -> None:
    for failing in (False, True):
        nvml = FakeNvml(used_bytes=IDLE)
        with pytest.raises(GpuNotClean, match="500 MiB is idle") as found, lease(nvml, root).held():
            nvml.used_bytes, nvml.compute_pids = used, pids
            if failing:
                raise EngineCrashed("the engine died")
        assert isinstance(found.value.__context__, EngineCrashed) == failing


def test_memory_that_creeps_from_block_to_block_is_held_against_the_first_base_line(root: Path) -> None:
    nvml = FakeNvml(used_bytes=IDLE)
    held = lease(nvml, root)
    with held.held():
        nvml.used_bytes += 40 * MIB
    with pytest.raises(GpuNotClean), held.held():
        nvml.used_bytes += 40 * MIB


def test_an_error_of_the_block_on_a_clean_gpu_stays_what_it_is(root: Path) -> None:
    with pytest.raises(EngineCrashed), lease(FakeNvml(used_bytes=IDLE), root).held():
        raise EngineCrashed("the engine died")


def test_an_mps_daemon_whose_owner_died_is_ended_before(root: Path, tmp_path: Path, monkeypatch) -> None:
    binary = tmp_path / "nvidia-cuda-mps-control"
    binary.write_text(f"#!{sys.executable}\nimport time; time.sleep(600)\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    folder = mps_folder(UUID, root)
    (folder / "pipe").mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    orphan = subprocess.Popen([binary, "-f"], env={**os.environ, PIPE_VARIABLE: str(folder / "pipe")})
    with lease(FakeNvml(used_bytes=IDLE), root).held():
        assert orphan.wait(10) != 0 and not folder.exists()


def test_an_mps_daemon_whose_owner_lives_is_waited_for_and_left_alone(root: Path, tmp_path: Path, monkeypatch) -> None:
    binary = tmp_path / "nvidia-cuda-mps-control"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    uuid = "GPU-5b1f0d6c-0000-0000-0000-000000000001"
    with ExitStack() as owner:
        owner.enter_context(mps_home(uuid, root, binary))
        with pytest.raises(GpuNotClean, match="belongs to the live process"), lease(FakeNvml(), root).held():
            pytest.fail("took a GPU whose daemon has an owner")
        held = lease(FakeNvml(used_bytes=IDLE), root, lambda _: owner.close())
        held.before_s = 60.0
        with held.held() as gpu:
            assert gpu.uuid == uuid


def test_mps_state_that_stays_is_not_clean(root: Path) -> None:
    folder = mps_folder(UUID, root)
    with pytest.raises(GpuNotClean, match=f"still use {folder}"), lease(FakeNvml(used_bytes=IDLE), root).held():
        (folder / "pipe").mkdir(parents=True)


def test_one_host_owns_one_whole_gpu(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert leased_gpu(FakeNvml()).uuid == UUID
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(MeasurementError, match="leaves 0"):
        leased_gpu(FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUID)
    with pytest.raises(MeasurementError, match="MIG"):
        leased_gpu(FakeNvml(mig=True))


def test_a_quarantine_is_kept_in_the_store_and_read_back(tmp_path: Path) -> None:
    store = ResultStore.open(str(tmp_path / "store"), create=True)
    told = [Quarantine.because(f"GPU {UUID} is not clean: x", "node-3", 2.0), Quarantine.because("no id", "n", 1.0)]
    for one in told:
        one.keep(store, "s")
    store.objects.create("quarantine/sweep=s/torn.json", json.dumps({"gpu": 1})[:-3].encode())
    foreign = {"gpu": UUID, "host": "h", "reason": "r", "noticed_unix_s": "noon"}
    store.objects.create("quarantine/sweep=s/foreign.json", json.dumps(foreign).encode())
    assert quarantined(store, "s") == told[::-1] and quarantined(store, "t") == []
    assert [fault.partition(":")[0] for fault in store.faults] == [
        "quarantine/sweep=s/foreign.json", "quarantine/sweep=s/torn.json"
    ]  # fmt: skip
    assert told[0].gpu == UUID and str(told[0]).startswith(f"{UUID} of node-3 was left out: GPU")
    assert store.verify("s") == []
