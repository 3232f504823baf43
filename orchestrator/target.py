"""Where a sweep runs: the backend and GPU kind that `auto` and `any` turn out to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.errors import ClusterError, SpecError
from orchestrator.gpu_devices import list_gpus
from orchestrator.gpus import KINDS, GpuKind
from orchestrator.spec import SweepSpec
from orchestrator.trial import Backend

# What a machine without a GPU stands for in the memory arithmetic: never used to predict speed.
CPU_HOST = GpuKind("cpu", 8 * 2**30, 1, 1.0, 1.0, 1.0, 1, 1.0, 1.0)
# Simulated where the sweep says `any`: the GPU of the published comparisons.
SIMULATED_DEFAULT = "H100"


@dataclass(frozen=True, slots=True)
class Target:
    """The backend, and the data sheet of the GPU kind that the sweep is planned for."""

    backend: Backend
    kind: GpuKind


def foregone(spec: SweepSpec, asked: str | None) -> bool:
    """Whether the target is known without a look at the cluster's GPUs."""
    return (asked or spec.backend) in ("simulated", "vllm-cpu")


def resolve(spec: SweepSpec, asked: str | None, gpus: Mapping[str, int]) -> Target:
    """Decide where `spec` runs. asked: the command line's backend, which outranks the file's; gpus: count by kind.

    Raises ClusterError when a GPU is wanted and there is none of the kind, or several kinds and none is named.
    """
    wanted = asked or spec.backend
    if wanted == "auto":
        wanted = "vllm" if gpus else "simulated"
    if wanted == "simulated":
        return Target("simulated", KINDS[SIMULATED_DEFAULT if spec.gpu == "any" else spec.gpu])
    if wanted == "vllm-cpu":
        return Target("vllm-cpu", CPU_HOST)
    if wanted != "vllm":
        raise SpecError(f"{spec.source}: backend: {wanted!r} is none of auto, vllm, vllm-cpu, simulated")
    known = [kind for kind in gpus if kind in KINDS]
    if spec.gpu == "any" and len(known) != 1:
        raise ClusterError(
            f"{spec.source} says `gpu: any`, and the cluster has {dict(gpus) or 'no GPU'}: name one of "
            f"{', '.join(KINDS)} there, or use --backend simulated"
        )
    if spec.gpu != "any" and spec.gpu not in gpus:
        raise ClusterError(
            f"{spec.source} wants a GPU of kind {spec.gpu}, the cluster has {dict(gpus) or 'no GPU'}: run it where "
            "such a GPU is, change `gpu`, or use --backend simulated"
        )
    return Target("vllm", KINDS[known[0] if spec.gpu == "any" else spec.gpu])


def gpus_here() -> dict[str, int]:
    """GPUs of this machine by kind, as `--dry-run` sees them without a cluster."""
    found: dict[str, int] = {}
    for gpu in list_gpus():
        kind = next((name for name in KINDS if name in gpu.name), gpu.name)
        found[kind] = found.get(kind, 0) + 1
    return found
