"""Builds models as vLLM does, without memory for them, and prints their shapes as JSON: `model_shapes.py NAME...`

In a process of its own, which ends with vLLM's process groups.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.plugins import load_general_plugins

from workloads import ablation_models
from workloads.catalogue import config_folder
from workloads.variants import ARCHITECTURES


def shapes(name: str, folder: Path) -> dict[str, Any]:
    # All of them from one folder: its path is part of vLLM's hash of a model too.
    place = folder / "place"
    place.mkdir(exist_ok=True)
    shutil.copy(config_folder(name, folder) / "config.json", place)
    arguments: dict[str, Any] = {"skip_tokenizer_init": True, "load_format": "dummy", "max_model_len": 256}
    config = EngineArgs(model=str(place), enforce_eager=True, **arguments).create_engine_config()
    with set_current_vllm_config(config), torch.device("meta"):
        model = initialize_model(vllm_config=config)
    return {
        "class": type(model).__name__,
        "attention_free": config.model_config.is_attention_free,
        "hash": config.model_config.compute_hash(),
        "parameters": {key: list(value.shape) for key, value in model.named_parameters()},
        "modules": {key: type(value).__name__ for key, value in model.named_modules()},
        "kv_holders": sorted(config.compilation_config.static_forward_context),
    }


def main(names: list[str]) -> None:
    load_general_plugins()
    known = {name: str(model) for name, model in ModelRegistry.models.items() if name in ARCHITECTURES}
    plain = {name: str(ModelRegistry.models[name]) for name in ("Qwen2ForCausalLM", "LlamaForCausalLM")}
    for architecture in ARCHITECTURES:
        # As classes, or vLLM would inspect each in a process of its own; the engines of other tests go that way.
        ModelRegistry.register_model(architecture, getattr(ablation_models, architecture))
    with tempfile.TemporaryDirectory() as folder:
        init = f"file://{folder}/rendezvous"
        arguments = EngineArgs(model=str(config_folder(names[0], Path(folder))), skip_tokenizer_init=True)
        with set_current_vllm_config(arguments.create_engine_config()):
            init_distributed_environment(1, 0, init, 0, "gloo")
            initialize_model_parallel(1)
        models = {name: shapes(name, Path(folder)) for name in names}
    print(json.dumps({"registered": known, "plain": plain, "models": models}))


if __name__ == "__main__":
    main(sys.argv[1:])
