"""Half models in the real vLLM: what they are made of, and that the half that is left out does not run."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine import Engine, engine_process
from orchestrator.engine_settings import base_environment
from orchestrator.guardian import guardian
from orchestrator.nursery import Nursery
from tests.engine.conftest import CONFIG
from tests.engine.layer_calls import calls_of
from tests.engine.test_engine_boot import BLOCK_TOKENS, BOOT_LIMIT_S, launch
from workloads.catalogue import config_folder, load_model
from workloads.variants import ARCHITECTURES, VARIANTS

MODELS = ("Qwen2.5-0.5B", "Llama-3.2-1B")
LAYERS = CONFIG["num_hidden_layers"]


@pytest.fixture(scope="module")
def built(vllm_cpu: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every variant of a model of each family, built by vLLM in a process that knows this project by its path alone."""
    names = [f"{model}{ending}" for model in MODELS for ending in ("", *(f":{variant}" for variant in VARIANTS))]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.engine.model_shapes", *names],
        env=base_environment(), cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_the_plugin_adds_models_and_changes_none(built: dict[str, Any]) -> None:
    assert set(built["registered"]) == set(ARCHITECTURES)
    for name, entry in built["registered"].items():
        assert "workloads.ablation_models" in entry and name in entry
    assert "vllm.model_executor.models.qwen2" in built["plain"]["Qwen2ForCausalLM"]
    assert "vllm.model_executor.models.llama" in built["plain"]["LlamaForCausalLM"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_parameters_are_those_of_the_arithmetic(model: str, variant: str | None, built: dict[str, Any]) -> None:
    name = f"{model}:{variant}" if variant else model
    counted = sum(math.prod(shape) for shape in built["models"][name]["parameters"].values())
    assert counted == load_model(name).parameters()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("variant", "gone"),
    [("attention-only", (".mlp",)), ("mlp-only", (".qkv_proj", ".o_proj", ".rotary_emb"))],
)
def test_all_but_the_half_left_out_is_the_full_model(
    model: str, variant: str, gone: tuple[str, ...], built: dict[str, Any]
) -> None:
    full, half = built["models"][model], built["models"][f"{model}:{variant}"]
    kept = {key: shape for key, shape in full["parameters"].items() if not any(part in key for part in gone)}
    assert half["parameters"] == kept
    assert half["kv_holders"] == full["kv_holders"] != []
    assert half["attention_free"] is full["attention_free"] is False
    assert half["class"] in ARCHITECTURES and full["class"] not in ARCHITECTURES
    ours = {key for key, kind in half["modules"].items() if kind != full["modules"][key]}
    layers = {key for key in half["modules"] if re.fullmatch(r"model\.layers\.\d+", key)}
    holders = {f"{key}.self_attn" for key in layers} if variant == "mlp-only" else set()
    assert ours == {"", *layers, *holders}


def test_no_two_models_share_compiled_code(built: dict[str, Any]) -> None:
    """vLLM keeps compiled graphs by this hash; the traced code of the stack of layers is the same for all."""
    hashes = [model["hash"] for model in built["models"].values()]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # vLLM's, when its models are imported
@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_a_half_is_vllms_own_layer_with_the_identity_for_the_other(family: str, first: bool) -> None:
    """Norms and residual stream included; stand-ins for what a layer is made of, so that it needs no engine."""
    import torch
    from torch import nn
    from vllm.model_executor.models.llama import LlamaDecoderLayer
    from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer

    from workloads import ablation_models

    class Norm(nn.Module):
        def forward(self, x: Any, residual: Any = None) -> Any:
            summed = x if residual is None else x + residual
            normed = summed * summed.square().mean(-1, keepdim=True).rsqrt()
            return normed if residual is None else (normed, summed)

    class AttentionBlock(nn.Module):
        attn = nn.Module()

        def forward(self, positions: Any, hidden_states: Any) -> Any:
            return hidden_states.cumsum(0) + positions[:, None]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
            self.self_attn, self.mlp = AttentionBlock(), nn.Hardtanh(-0.5, 0.5)

    class Passing(nn.Module):
        def forward(self, positions: Any, hidden_states: Any) -> Any:
            return hidden_states

    own = {"Qwen2": Qwen2DecoderLayer, "Llama": LlamaDecoderLayer}[family]
    torch.manual_seed(0)
    positions, hidden, residual = torch.arange(5.0), torch.randn(5, 8), None if first else torch.randn(5, 8)
    for half, missing, identity in (
        (ablation_models.AttentionOnlyLayer, "mlp", nn.Identity()),
        (ablation_models.MLPOnlyLayer, "self_attn", Passing()),
    ):
        whole = Whole()
        setattr(whole, missing, identity)
        expected = own.forward(whole, positions, hidden, residual)
        found = type("Half", (half, Whole), {})()(positions, hidden, residual)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        # The other half makes a difference, or equality would say nothing.
        assert not torch.equal(found[0], own.forward(Whole(), positions, hidden, residual)[0])


@pytest.fixture(scope="module")
def engines(model: Path, births: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """The small model and its halves, booted side by side, with every call of a part of a layer counted."""
    folder = tmp_path_factory.mktemp("halves")
    with guardian(grace_s=1.0) as guard, ExitStack() as stack:
        engines = {}
        for ending in ("", *(f":{variant}" for variant in VARIANTS)):
            start = launch(
                f"engine{ending.replace(':', '-')}",
                config_folder(f"{model}{ending}", folder),
                folder,
                worker_extension_cls="tests.engine.layer_calls.LayerCalls",
            )
            engines[ending.removeprefix(":") or "full"] = stack.enter_context(
                engine_process(replace(start, environment=base_environment()), guard, births)
            )
        for engine in engines.values():
            engine.wait_ready(BOOT_LIMIT_S)
        yield engines
        for engine in engines.values():
            engine.dismiss()


def test_halves_are_run_and_given_kv_as_the_full_model_is(engines: dict[str, Engine], model: Path) -> None:
    for name in ("model_runner", "step_hook", "kv_blocks", "kv_block_tokens", "max_num_batched_tokens"):
        assert len({engine.facts[name] for engine in engines.values()}) == 1, name
    full = engines["full"].facts
    assert full["kv_blocks"] == 16 * 2**20 // (BLOCK_TOKENS * load_model(f"{model}:mlp-only").kv_bytes_per_token())
    # What the CPU build leaves to fill: embeddings, norms and the biases of queries, keys and values.
    biases = LAYERS * (2 * 64 + 2 * 64)
    assert engines["attention-only"].facts["weights_filled"] == full["weights_filled"]
    assert engines["mlp-only"].facts["weights_filled"] == full["weights_filled"] - biases


def settled(engine: Engine) -> dict[str, int]:
    """Calls once the step that the end of a load cut into is over."""
    calls = calls_of(engine.counters.path)
    time.sleep(0.3)
    while (now := calls_of(engine.counters.path)) != calls:
        calls = now
        time.sleep(0.3)
    return calls


@pytest.mark.parametrize("name", ["full", *VARIANTS])
def test_only_the_half_that_is_wanted_runs(name: str, engines: dict[str, Engine]) -> None:
    engine = engines[name]
    before, steps = settled(engine), engine.counters.read()["steps"]
    load = {
        "clients": 2,
        "prompt_tokens": 64,
        "output_tokens": 8,
        "residual": False,
        "seed": 3,
        "text": False,
        "image": False,
    }
    engine.order({"op": "load", "prompts": 200, **load})
    engine.expect("loaded", 30)
    start_ns = time.monotonic_ns()
    engine.order({"op": "start", "start_ns": start_ns})
    engine.expect("ramped", 60)
    engine.order({"op": "window", "start_ns": start_ns, "end_ns": time.monotonic_ns() + 500_000_000})
    answer, _ = engine.expect("window", 60)
    engine.order({"op": "stop"})
    assert engine.expect("stopped", 30)[0]["errors"] == []
    assert answer["output_tokens"] > 0 and answer["preemptions"] == 0 and answer["kv_usage_max"] > 0
    calls = {part: count - before[part] for part, count in settled(engine).items()}
    assert calls["layers"] >= LAYERS * (engine.counters.read()["steps"] - steps) > 0
    assert calls["attention"] == (0 if name == "mlp-only" else calls["layers"])
    assert calls["mlp"] == (0 if name == "attention-only" else calls["layers"])
    assert calls["norms"] == calls["layers"] * (2 * LAYERS + 1) // LAYERS
