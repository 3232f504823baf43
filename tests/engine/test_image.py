"""Prompts with an image, through an image processor that was made here and the real vLLM."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.certificate import certify, planned_for
from orchestrator.deployment import EngineDeployment, open_deployment
from orchestrator.host import host_nursery, settle_worker
from orchestrator.observation import WindowOrder
from orchestrator.plan import Block
from orchestrator.trial import Workload
from tests.engine.conftest import SINGLE, block_of

# A Gemma 3 of two layers, with a vision tower of two.
CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": 1000,
    "eoi_token_index": 1001,
    "image_token_index": 1002,
    "mm_tokens_per_image": 16,
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "image_size": 112,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
IMAGE = Workload("image", 64, 8)
CLIENTS = 3


@pytest.fixture(scope="module")
def deployment(vllm_cpu: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Block, EngineDeployment]]:
    model = tmp_path_factory.mktemp("model")
    (model / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    vision = [Path(__file__).parent / "vision_site", Path(sys.prefix) / "vision"]
    assert vision[1].is_dir(), "torchvision is not beside the engine's environment: make test-engine"
    block = block_of(model, IMAGE, (SINGLE,), concurrency=CLIENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPSCAPE_CACHE", str(tmp_path_factory.mktemp("caches")))
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, vision)))
        with host_nursery() as births, open_deployment(block, block.arms, settle_worker(), births) as deployment:
            yield block, deployment


def test_a_window_with_images_is_certified_and_counts_their_tokens(deployment: tuple[Block, EngineDeployment]) -> None:
    block, engines = deployment
    order = WindowOrder(SINGLE, IMAGE, CLIENTS, warmup_s=0.5, window_s=3.0, seed=5)
    seen = engines.measure(order)
    assert seen.notes["errors"] == []
    assert certify(order, seen, planned_for(block.repeats[0], engines.boots["single"])).failures == ()
    assert seen.prompt_tokens % 64 == 0 and seen.prompt_tokens > 0 and seen.output_tokens > 0


def test_what_the_frontend_spends_on_images_is_recorded(deployment: tuple[Block, EngineDeployment]) -> None:
    """Processor time of the frontend a request, with an image and without: resizing a megapixel is not free."""
    _, engines = deployment
    spent = {}
    for kind in ("image", "mixed"):
        seen = engines.measure(WindowOrder(SINGLE, Workload(kind, 64, 8), CLIENTS, 0.5, 3.0, seed=6))  # type: ignore[arg-type]
        cpu = seen.engines[0].frontend_cpu
        assert cpu is not None
        spent[kind] = cpu * seen.duration_s / (seen.prompt_tokens / 64)
    assert spent["image"] > 2 * spent["mixed"]
