"""What an engine of a block is started with: vLLM's arguments, its environment, and its place among the cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.cores import EngineCores, Placement, Topology, placement
from orchestrator.gpu_devices import Gpu
from orchestrator.plan import Block
from orchestrator.trial import Arm, fingerprint
from workloads import engine_plugin
from workloads.catalogue import config_folder, load_model
from workloads.images import image_folder
from workloads.local_tokenizer import tokenizer_folder

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PROBE = "orchestrator.engine_probe.StepProbe"
# Ours, not vLLM's: dummy weights that are then filled in place (engine_probe.StepProbe.mpscape_fill_weights).
VARIANCE_SCALED = "variance_scaled"
# vLLM checks free memory against utilisation * total even where the KV bytes are given; the margin is for rounding.
UTILISATION_MARGIN = 0.02
CPU_UTILISATION = 0.2
# Tokens of Qwen 2's tokenizer, the larger part of the models here.
VOCABULARY = 151_643


def tokenizer_of(block: Block, vocabulary: int) -> Path | None:
    """The folder of the tokenizer that the block's engines load, made if need be; None where prompts are token ids.

    vocabulary: the model's, which the tokenizer's must not exceed.
    """
    if not any(repeat.cell.workload.as_text for repeat in block.repeats):
        return None
    return tokenizer_folder(cache_home(), min(VOCABULARY, vocabulary))


def model_folder(block: Block) -> Path:
    """What the block's engines boot from, below the caches, where the same model lies in the same place at every boot:
    vLLM's compile cache goes by the path, too."""
    config = load_model(block.model).config
    home = cache_home() / "models" / fingerprint(config)
    return image_folder(config, home) if block.with_images else config_folder(block.model, home)


def engine_args(block: Block, arm: Arm, model: Path, gpu: Gpu | None, tokenizer: Path | None = None) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs for one engine of `arm`. model: from `model_folder`.

    Prefix caching is off, and without `tokenizer` none is loaded: prompts are unique random token ids. With images it
    lies in the model's folder, and no image is kept, as none comes again. KV bytes are given, so that engines can boot
    side by side without profiling each other's memory.
    """
    if block.with_images:
        inputs: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0}
    else:
        inputs = {"skip_tokenizer_init": True} if tokenizer is None else {"tokenizer": str(tokenizer)}
    sizing = block.sizing[arm.name]
    asked = {key: value for key, value in {**block.engine_args, **arm.engine_args}.items() if value is not None}
    share = block.memory[arm.name].total / gpu.memory_bytes + UTILISATION_MARGIN if gpu else CPU_UTILISATION
    return {
        "model": str(model),
        **inputs,
        "max_model_len": sizing.max_model_len_tokens,
        "max_num_seqs": sizing.max_num_seqs,
        "kv_cache_memory_bytes": sizing.kv_bytes,
        "gpu_memory_utilization": min(share, 0.95),
        "enable_prefix_caching": False,
        "worker_extension_cls": PROBE,
        # Our own stat logger takes the place of the default ones, which print.
        "disable_log_stats": True,
        "seed": 0,
        **asked,
        "load_format": "dummy" if asked.get("load_format") == VARIANCE_SCALED else asked.get("load_format", "dummy"),
    }


def weights_of(block: Block, arm: Arm) -> str:
    """`dummy`, `random` or `checkpoint`: what stands in the store, because power depends on the data."""
    asked = {**block.engine_args, **arm.engine_args}.get("load_format", "dummy")
    return {"dummy": "dummy", VARIANCE_SCALED: "random"}.get(str(asked), "checkpoint")


def base_environment() -> dict[str, str]:
    """This process's environment without any MPS variable, from which this project and its vLLM plugin are found.

    No other plugin of vLLM is loaded: an engine is what the sweep says, whatever else is installed.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_MPS_")}
    plugin = engine_plugin.metadata_folder(cache_home())
    path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), str(plugin), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, "VLLM_PLUGINS": engine_plugin.NAME}


def cache_home() -> Path:
    """What lives longer than a sweep: compile caches, and where vLLM finds the plugin."""
    return Path(os.environ.get("MPSCAPE_CACHE", Path.home() / ".cache" / "mpscape"))


def environment(arm: Arm, gpu_name: str, connection: Mapping[str, str]) -> dict[str, str]:
    """A complete environment: this process's without any MPS variable, the caches, then `connection`.

    Compile caches are kept apart by GPU model and SM cap, since kernels are tuned to the SM count that they see.
    """
    percentage = getattr(arm.mode, "active_thread_percentage", 100)
    caches = cache_home() / f"{gpu_name.replace(' ', '-')}-{percentage}"
    return {
        **base_environment(),
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "30",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        **connection,
    }


def place(arm: Arm, arms: Sequence[Arm], topology: Topology, numa_node: int | None) -> Placement:
    """Cores of `arm`'s engines: engine i of every arm of the deployment gets the same ones.

    Raises MeasurementError where the machine has too few.
    """
    most = max(other.engines for other in arms)
    return placement(topology, most, arm.cores_per_engine, numa_node, arm.pinned)


def cores_of(placed: Placement, index: int) -> EngineCores | None:
    """What engine `index` is confined to; None where it floats."""
    return placed.engines[index] if placed.pinned else None
