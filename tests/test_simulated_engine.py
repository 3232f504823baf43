"""One simulated engine, step by step, with host time switched off or known."""

import pytest

from orchestrator.errors import BootError, WindowError
from orchestrator.gpus import KINDS
from orchestrator.memory import EngineSizing
from orchestrator.simulated.engine import EAGER, FULL_GRAPH, PIECEWISE_GRAPH, Engine
from orchestrator.simulated.kernels import StepCosts
from orchestrator.simulated.power import PowerCap
from orchestrator.simulated.settings import EngineSettings, HostCosts, engine_settings
from orchestrator.simulated.sharing import SideBySide
from orchestrator.simulated.simulation import simulate
from orchestrator.trial import Arm, Single, Workload
from workloads.architecture import Batch
from workloads.catalogue import load_model

H200 = KINDS["H200"]
COSTS = StepCosts(load_model("Qwen2.5-0.5B"), H200)
NO_HOST = HostCosts(0, 0, 0, 0, 0, 0, 0, 0)


def engine_of(work: Workload, host: HostCosts = NO_HOST, **settings) -> Engine:
    defaults = {
        "max_num_seqs": 64, "kv_tokens": 10**8, "max_num_batched_tokens": 8192, "capture_sizes": tuple(range(1, 129)),
        "async_scheduling": True,
    }  # fmt: skip
    return Engine(EngineSettings(**defaults | settings), COSTS, host, work)


def settings_of(args: dict) -> EngineSettings:
    return engine_settings(Arm("single", Single()), args, EngineSizing(2**34, 4096, 64), COSTS.architecture, 1)


def run(
    engine: Engine, clients: int, until_s: float, output_tokens: int | None = None, stagger_s: float = 0.0
) -> Engine:
    for client in range(clients):
        length = engine.workload.output_tokens if output_tokens is None else output_tokens
        engine.send(client, 0, length, client * stagger_s, client * stagger_s)
    simulate([engine], SideBySide(), PowerCap(H200, enabled=False), until_s)
    return engine


def test_without_host_time_a_step_takes_its_roofline_time():
    engine = run(engine_of(Workload("decode", 1000, 400)), clients=8, until_s=0.1)
    done = engine.gpu_done_s
    for step in (1, 20, 40):
        expected = COSTS.of(8, 8 * (1000 + step), ()).seconds
        assert done[step] - done[step - 1] == pytest.approx(expected)
        assert expected == pytest.approx(COSTS.exact(Batch(8, 8 * (1000 + step))).seconds, rel=0.02)
    assert engine.delivered_s == done


def test_asynchronous_scheduling_hides_the_host_and_synchronous_adds_it():
    host_s = 0.4 * COSTS.of(8, 8 * 1008, ()).seconds
    host = HostCosts(host_s, 0, 0, 0, 0, 0, 0, 0)
    steps = {}
    for flag in (True, False):
        done = run(engine_of(Workload("decode", 1000, 400), host, async_scheduling=flag), 8, 0.05).gpu_done_s
        steps[flag] = done[11] - done[10]
    assert steps[True] == pytest.approx(COSTS.of(8, 8 * 1011, ()).seconds)
    assert steps[False] == pytest.approx(steps[True] + host_s)


def test_a_host_bound_engine_steps_at_the_pace_of_its_host():
    host = HostCosts(10e-3, 0, 0, 0, 0, 0, 0, 0)
    done = run(engine_of(Workload("decode", 100, 400), host), 8, 0.3).gpu_done_s
    assert done[11] - done[10] == pytest.approx(10e-3, rel=1e-3)


def test_chunks_respect_the_token_budget_and_prompts_come_in_turn():
    engine = run(engine_of(Workload("mixed", 700, 20), max_num_batched_tokens=512), clients=10, until_s=0.3)
    steps = engine.steps
    assert max(step.scheduled for step in steps) == 512
    first_steps = [request.first_step for request in engine.requests[:10]]
    assert first_steps == sorted(first_steps) and len(set(first_steps)) == 10
    # 700 tokens do not fit into one step of 512: the first prompt is done in the second.
    assert steps[0].scheduled == 512 and steps[0].tokens == 0 and first_steps[0] == 1
    # Decodes go first: once all 10 have begun, a step of prompt chunks still carries every decoding sequence.
    assert all(step.tokens <= step.running for step in steps)
    assert any(step.tokens > 1 and step.scheduled == 512 for step in steps)


def test_a_decode_workload_never_prefills():
    engine = run(engine_of(Workload("decode", 5000, 50)), clients=20, until_s=0.5)
    assert max(step.scheduled for step in engine.steps) == 20
    assert all(step.mode == FULL_GRAPH and step.tokens == step.scheduled for step in engine.steps)


def test_a_prefill_workload_makes_one_token_a_request():
    engine = run(engine_of(Workload("prefill", 1000, 1)), clients=16, until_s=0.5)
    done = len(engine.gpu_done_s)
    finished = [request for request in engine.requests if 0 <= request.last_step < done]
    assert len(finished) == sum(step.tokens for step in engine.steps[:done]) > 16
    assert all(request.first_step == request.last_step for request in finished)


def test_every_token_belongs_to_one_request():
    engine = run(engine_of(Workload("mixed", 300, 17), max_num_batched_tokens=1024), 40, 0.4, stagger_s=2e-3)
    steps = len(engine.gpu_done_s)
    made = [0] * steps
    for request in engine.requests:
        if request.first_step >= 0:
            assert request.last_step == request.first_step + request.output_tokens - 1
            for step in range(request.first_step, min(request.last_step + 1, steps)):
                made[step] += 1
    assert made == [step.tokens for step in engine.steps[:steps]]
    assert sum(made) > 1000


def test_steps_are_launched_by_what_was_captured():
    work = Workload("mixed", 200, 100)
    steps = run(engine_of(work, capture_sizes=(64, 256)), clients=50, until_s=0.5, stagger_s=5e-3).steps
    for step in steps:
        within = FULL_GRAPH if step.scheduled == step.tokens else PIECEWISE_GRAPH
        assert step.mode == (EAGER if step.scheduled > 256 else within)
    assert {EAGER, FULL_GRAPH, PIECEWISE_GRAPH} == {step.mode for step in steps}


def test_steps_are_filled_up_to_the_graphs_that_they_run_in():
    work = Workload("mixed", 200, 100)
    engine = run(engine_of(work, capture_sizes=(64, 256)), clients=50, until_s=0.5, stagger_s=5e-3)
    assert {(step.mode == EAGER, step.padded if step.mode != EAGER else 0) for step in engine.steps} == {
        (True, 0), (False, 64), (False, 256)
    }  # fmt: skip
    for step in engine.steps:
        assert step.padded >= step.scheduled and (step.mode != EAGER or step.padded == step.scheduled)
    dense = run(engine_of(work, capture_sizes=tuple(range(1, 257))), clients=50, until_s=0.5, stagger_s=5e-3)
    assert all(step.padded == step.scheduled for step in dense.steps)
    assert len(dense.gpu_done_s) > len(engine.gpu_done_s)


def test_with_full_graphs_no_step_is_launched_in_pieces():
    host = HostCosts(0, 0, 0, 0, 0, 0, 0, 1e-3)
    work = Workload("mixed", 200, 100)
    pieces, whole = (
        run(engine_of(work, host, capture_sizes=(64, 256), full_graphs=full), 50, 0.5, stagger_s=5e-3)
        for full in (False, True)
    )
    assert {step.mode for step in whole.steps} == {EAGER, FULL_GRAPH}
    assert {step.host_s for step in whole.steps if step.mode == FULL_GRAPH} == {1e-3}
    (slow_s,) = {step.host_s for step in pieces.steps if step.mode == PIECEWISE_GRAPH}
    assert slow_s == pytest.approx((COSTS.architecture.layers + 1) * 1e-3)


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        ({}, [1, 2, 4, *range(8, 129, 8)]),
        ({"max_cudagraph_capture_size": 300}, [1, 2, 4, *range(8, 256, 8), 256, 272, 288]),
        ({"max_cudagraph_capture_size": 4096, "max_num_batched_tokens": 1000}, [*range(976, 993, 16), 1000]),
        ({"cudagraph_capture_sizes": [512, 64, 64, 4096], "max_num_batched_tokens": 1024}, [64, 512]),
        ({"enforce_eager": True, "cudagraph_capture_sizes": [64]}, []),
    ],
)
def test_graphs_are_captured_for_the_sizes_that_vllm_captures(args, sizes):
    found = settings_of(args).capture_sizes
    assert list(found[-len(sizes) :] if sizes else found) == sizes
    assert not args or "max_num_batched_tokens" in args or len(found) == len(sizes)


def test_sizes_that_do_not_go_with_the_largest_are_refused():
    with pytest.raises(BootError, match="not the largest of cudagraph_capture_sizes"):
        settings_of({"cudagraph_capture_sizes": [64, 128], "max_cudagraph_capture_size": 256})


def test_full_graphs_are_asked_for_by_the_compilation_config():
    assert settings_of({"compilation_config": {"cudagraph_mode": "FULL"}}).full_graphs
    assert not settings_of({}).full_graphs and not settings_of({"compilation_config": {"level": 3}}).full_graphs


def test_a_step_launched_kernel_by_kernel_waits_for_its_launches():
    host = HostCosts(0, 0, 0, 0, 0, 0, 50e-6, 0)
    engine = run(engine_of(Workload("prefill", 64, 1), host, capture_sizes=(), async_scheduling=False), 1, 0.2)
    cost, done = engine.steps[3].cost, engine.gpu_done_s
    assert done[3] - done[2] == pytest.approx(cost.launches * 50e-6)
    assert cost.seconds < cost.launches * 50e-6


def test_sequences_and_kv_room_limit_what_runs():
    work = Workload("mixed", 100, 28)
    assert max(step.running for step in run(engine_of(work, max_num_seqs=5), 20, 0.2).steps) == 5
    tight = run(engine_of(work, kv_tokens=7 * 128), 20, 0.2).steps
    assert max(step.running for step in tight) == 7 and max(step.kv_tokens for step in tight) == 7 * 128
    assert max(step.waiting for step in tight) > 0


def test_the_frontend_delays_tokens_and_bounds_the_rate():
    host = HostCosts(0, 0, 0, 0, 1e-3, 0, 0, 0)
    engine = run(engine_of(Workload("decode", 100, 10), host), clients=8, until_s=1.0)
    delivered = [time_s for time_s in engine.delivered_s if time_s < 1.0]
    assert 0.9 * 1000 < sum(step.tokens for step in engine.steps[: len(delivered)]) <= 1000
    assert all(late >= done for late, done in zip(engine.delivered_s, engine.gpu_done_s, strict=True))


def test_a_client_that_never_gets_a_token_is_an_error_and_not_a_wait():
    # Eight slots, decodes that outlast any window, steps of five seconds: the ninth client waits for ever.
    engine = engine_of(Workload("decode", 64, 10**6), HostCosts(5.0, 0, 0, 0, 0, 0, 0, 0), max_num_seqs=8)
    for client in range(9):
        engine.send(client, 0, 10**6, 0.0, 0.0)
    with pytest.raises(WindowError, match="still had no token"):
        simulate([engine], SideBySide(), PowerCap(H200, enabled=False), 10.0, 10.0)
