"""The launch recipe of an arm: the `vllm serve` and `nvidia-cuda-mps-control` commands that stand for what was run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ModelError
from orchestrator.gpus import KINDS
from orchestrator.memory import CONTEXT_BYTES
from workloads.catalogue import load_model

FIRST_PORT = 8000
# How weights were made, which a server that is to answer does not copy.
OURS = ("load_format", "simulation")
# vLLM compares free memory with its share even where the KV bytes are given; beside weights, KV and context.
SPARE_SHARE = 0.04


def recipe(trial: Mapping[str, Any]) -> str:
    """Shell lines for the arm of a trial of `records`; sizes, cores and arguments are those that were measured."""
    lines = [
        "# the GPU by its UUID: MPS numbers the devices of its clients anew",
        "export CUDA_VISIBLE_DEVICES=$(nvidia-smi -i 0 --query-gpu=uuid --format=csv,noheader)",
        "",
    ]
    inside = trial["sharing"] == "mps"
    if inside:
        lines += [
            "export CUDA_MPS_PIPE_DIRECTORY=/tmp/mps-pipe CUDA_MPS_LOG_DIRECTORY=/tmp/mps-log",
            'mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"',
            "nvidia-cuda-mps-control -d",
            'echo "start_server -uid $(id -u)" | nvidia-cuda-mps-control',
            "",
        ]
    else:
        lines += [
            "# no MPS: in an empty folder no daemon is found, where the default would lead to one of the machine",
            "export CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)",
            "",
        ]
    for index in range(trial["engines"]):
        lines += [_engine(trial, index), ""]
    ports = " ".join(str(FIRST_PORT + index) for index in range(trial["engines"]))
    if inside:
        lines += [
            "# proof that every engine is a client of the daemon: their EngineCore processes are in this list",
            "echo get_server_list | nvidia-cuda-mps-control",
            'for server in $(echo get_server_list | nvidia-cuda-mps-control); do echo "get_client_list $server"'
            " | nvidia-cuda-mps-control; done",
        ]
    if trial["engines"] > 1:
        lines += [f"# spread requests evenly over ports {ports}: that is how they were measured"]
    if inside:
        lines += ["# at the end, after the engines: echo quit | nvidia-cuda-mps-control"]
    return "\n".join(lines)


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """vLLM engine arguments as options of `vllm serve`: `--key value`, `--key`, `--no-key`; mappings as JSON."""
    words = []
    for key, value in arguments.items():
        name = key.replace("_", "-")
        if value is None or key in OURS:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            words.append(f"--{name} {shlex.quote(text)}")
    return words


def memory_share(trial: Mapping[str, Any]) -> float | None:
    """The share of the GPU's memory to name for one engine; None where model or GPU kind are not known."""
    try:
        weights = load_model(trial["model"]).weight_bytes()
    except ModelError:
        return None
    kind = KINDS.get(trial["gpu_kind"])
    if kind is None or trial["kv_bytes_per_engine"] is None:
        return None
    needed = weights + trial["kv_bytes_per_engine"] + CONTEXT_BYTES
    return float(min(0.95, round(needed / kind.memory_bytes + SPARE_SHARE, 2)))


def _engine(trial: Mapping[str, Any], index: int) -> str:
    arguments = {
        "max_model_len": trial["max_model_len_tokens"],
        "max_num_seqs": trial["max_num_seqs"],
        "kv_cache_memory_bytes": trial["kv_bytes_per_engine"],
        "gpu_memory_utilization": memory_share(trial),
        "enable_prefix_caching": False,
        **json.loads(trial["engine_args"] or "{}"),
    }
    cap = trial["active_thread_percentage"]
    before = f"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={cap} " if cap is not None and cap < 100 else ""
    cores = _cores(trial, index)
    before += f"taskset -c {','.join(map(str, cores))} " if cores else ""
    head = f"{before}vllm serve {shlex.quote(trial['model'])} --port {FIRST_PORT + index}"
    return " \\\n    ".join([head, *flags(arguments)]) + " &"


def _cores(trial: Mapping[str, Any], index: int) -> list[int]:
    """Cores of one engine as they were; none where it floated or was simulated."""
    engines = json.loads(trial["placement"] or "{}").get("engines", [])
    if not trial["pinned"] or index >= len(engines):
        return []
    return [*engines[index].get("core", []), *engines[index].get("frontend", [])]
