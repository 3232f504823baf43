"""Each part of a measuring sweep ended with SIGKILL in the middle of a window, on a real GPU.

One sweep loses, block after block, an engine's frontend, an EngineCore, the MPS server and the actor, while two engines
under MPS are at work; when it tries those blocks again, the driver. After each, what is left is looked at; the same
command then completes the sweep. With MPSCAPE_KILL_RECORD in the environment, what was seen is written there as JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from orchestrator.gpu_devices import list_gpus, memory_used
from orchestrator.process import ProcessIdentity, carrying, descendants, wait_gone
from orchestrator.store import ResultStore
from tests.ray_head import MARK, REPOSITORY, clean_environment, end_marked

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(580)]

SPEC: dict[str, Any] = {
    "schema_version": 1,
    "name": "kills",
    "question": "What becomes of a sweep whose parts are killed in the middle of a window?",
    "backend": "vllm",
    "gpu": "any",
    "engine_args": {"dtype": "bfloat16", "max_cudagraph_capture_size": 1024},
    "arms": {"single": {"sharing": "single"}, "mps2": {"sharing": "mps", "engines": 2}},
    "workload": {"kind": "mixed", "prompt_tokens": 128, "output_tokens": 128, "concurrency": 64},
    "sweep": {"grid": {"model": ["Qwen2.5-0.5B"]}},
    "repeats": 4,
    "measurement": {"window_s": 4.0, "warmup_s": 0.5, "min_windows": 1, "max_windows": 1},
}
VICTIMS = ("frontend", "EngineCore", "MPS server", "actor")
LIMIT_S = 200.0
BUSY = 0.25  # of one core
SLACK_BYTES = 64 * 2**20


@pytest.fixture
def uuid() -> str:
    gpus = list_gpus()
    if not gpus:
        pytest.skip("no GPU here")
    return gpus[0].uuid


class Sweep:
    """The sweep's processes, found by a mark in their environment or below one that has it."""

    def __init__(self, folder: Path) -> None:
        self.spec, self.store, self.log = folder / "kills.yaml", folder / "store", folder / "kills.log"
        self.spec.write_text(json.dumps(SPEC), encoding="utf-8")
        self.mark = secrets.token_hex(8)

    @contextmanager
    def run(self, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "orchestrator.sweep", str(self.spec), "--store", str(self.store), *more]
        with self.log.open("ab") as sink:
            environment = clean_environment(**{MARK: self.mark})
            process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=sink, stderr=sink)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def members(self, name: str, words: int = 2) -> list[psutil.Process]:
        marked = carrying(MARK, self.mark)
        found = []
        for member in marked | descendants(marked):
            if member.command() and name in " ".join(member.command()[:words]):
                found.append(psutil.Process(member.pid))
        return found

    def engine_cores(self) -> list[psutil.Process]:
        """The nursery's children are frontends and their children EngineCores; titles are not set everywhere."""
        nurseries = [
            process
            for process in self.members("nursery_main", words=6)
            if (parent := process.parent()) is None or "nursery_main" not in " ".join(parent.cmdline())
        ]
        frontends = [child for nursery in nurseries for child in nursery.children()]
        cores = [child for frontend in frontends for child in frontend.children()]
        return [core for core in cores if "resource_tracker" not in " ".join(core.cmdline())]

    def busy_cores(self) -> list[psutil.Process]:
        """EngineCores at work now: two of them mean a window of the arm under MPS."""
        try:
            cores = self.engine_cores()
            before = {core: sum(core.cpu_times()[:2]) for core in cores}
            time.sleep(0.5)
            return [core for core in cores if sum(core.cpu_times()[:2]) - before[core] > 0.5 * BUSY]
        except psutil.NoSuchProcess:
            return []

    def await_mps_window(self, driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            assert driver.poll() is None, self.log.read_text(errors="replace")
            # Engines that boot are busy too, but not two of three for one second and more.
            if all(len(self.busy_cores()) == 2 for _ in range(3)) and len(self.engine_cores()) == 3:
                return self.busy_cores()
        raise AssertionError(f"no window of two engines came; {self.log.read_text(errors='replace')}")

    def victim(self, name: str, cores: list[psutil.Process]) -> psutil.Process:
        assert cores, "the window ended before its engines could be told apart"
        if name == "EngineCore":
            return cores[0]
        if name == "frontend":
            parent = cores[0].parent()
            assert parent is not None
            return parent
        return self.members({"MPS server": "nvidia-cuda-mps-server", "actor": "ray::GpuHost"}[name])[0]


def test_whatever_is_killed_the_gpu_comes_back_and_the_sweep_completes(uuid: str, tmp_path: Path) -> None:
    idle_bytes = memory_used(uuid)
    sweep, record = Sweep(tmp_path), []
    try:
        with sweep.run() as driver:
            for name in VICTIMS:
                record.append(strike(sweep, driver, name, uuid))
            record.append(strike(sweep, driver, "driver", uuid))
        assert not wait_gone(carrying(MARK, sweep.mark), 60.0)
        record[-1]["gpu_bytes_after_all"] = settled_bytes(uuid, idle_bytes)
        with sweep.run("--retry-failed") as driver:
            status = driver.wait(LIMIT_S)
        assert not wait_gone(carrying(MARK, sweep.mark), 60.0)
    finally:
        end_marked(sweep.mark)
    seen = {
        "idle_bytes": idle_bytes,
        "bytes_at_the_end": settled_bytes(uuid, idle_bytes),
        "status_of_the_rerun": status,
        "kills": record,
        "failure_rows": failure_rows(sweep.store),
        "log": sweep.log.read_text(errors="replace").splitlines(),
    }
    if path := os.environ.get("MPSCAPE_KILL_RECORD"):
        Path(path).write_text(json.dumps(seen, indent=1), encoding="utf-8")
    trials = ResultStore.open(str(sweep.store), create=False).read("trials")
    assert status == 0, seen
    assert trials.height == 8 and set(trials["outcome"]) == {"ok"}
    assert max(seen["bytes_at_the_end"], record[-1]["gpu_bytes_after_all"]) <= idle_bytes + SLACK_BYTES
    assert all(not kill["survivors_of_its_block"] for kill in record)


def strike(sweep: Sweep, driver: subprocess.Popen[bytes], name: str, uuid: str) -> dict[str, Any]:
    """Kill one part while two engines are at work; what is left of its block once it has ended."""
    cores = sweep.await_mps_window(driver)
    block = {ProcessIdentity.of(core.pid) for core in sweep.engine_cores()}
    block |= {ProcessIdentity.of(server.pid) for server in sweep.members("nvidia-cuda-mps-server")}
    held_bytes = memory_used(uuid)
    victim = None if name == "driver" else sweep.victim(name, cores)
    began = time.monotonic()
    if victim is None:
        driver.kill()
    else:
        victim.kill()
    time.sleep(1.0)
    alive_after_1s = sum(member.alive for member in block)
    left = wait_gone(block, 90.0)
    return {
        "victim": name,
        "gpu_processes_of_its_block": len(block),
        "alive_after_1_s": alive_after_1s,
        "gone_after_s": round(time.monotonic() - began, 1),
        "survivors_of_its_block": [" ".join(member.command()[:3]) for member in left],
        "gpu_bytes_before": held_bytes,
        "gpu_bytes_then": memory_used(uuid),
    }


def settled_bytes(uuid: str, idle_bytes: int) -> int:
    """GPU memory in use once it has come down to what it was, or after 30 s."""
    deadline = time.monotonic() + 30.0
    while memory_used(uuid) > idle_bytes + SLACK_BYTES and time.monotonic() < deadline:
        time.sleep(0.5)
    return memory_used(uuid)


def failure_rows(store: Path) -> list[dict[str, Any]]:
    """Rows of failed attempts, those that a later attempt has replaced too: read from the files themselves."""
    files = sorted((store / "trials").rglob("*.parquet"))
    rows = pl.concat([pl.read_parquet(file) for file in files]).filter(pl.col("outcome") == "failed")
    return rows.select("repeat", "arm", "attempt_id", "reason").sort("repeat", "arm").to_dicts()
