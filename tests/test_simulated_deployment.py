"""The simulated deployment as the runner sees it: conservation, determinism, planted truth, planned failures."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from orchestrator.certificate import certify, planned_for
from orchestrator.errors import BootError, EngineCrashed, MpsFault, SpecError
from orchestrator.gpus import KINDS
from orchestrator.observation import Observation, WindowOrder
from orchestrator.plan import Block, plan
from orchestrator.records import REQUESTS_COLUMNS, SAMPLES_COLUMNS
from orchestrator.runner import BlockContext, run_block
from orchestrator.simulated.deployment import open_deployment
from orchestrator.trial import Arm, Cell, Measurement, Mps, Repeat, Single, TimeSliced, Workload

IDS = ("trial_id", "attempt_id", "window_index")
SINGLE, SLICED, MPS = Arm("single", Single()), Arm("sliced-2", TimeSliced(2)), Arm("mps-2", Mps(2))
ARMS = (SINGLE, SLICED, MPS)
MIXED = Workload("mixed", 128, 64)


def block_of(work=MIXED, concurrency=48, model="Qwen2.5-0.5B", arms=ARMS, number=0, engine_args=None, **simulation):
    engine_args = {"simulation": {"noise": "none"} | simulation, **(engine_args or {})}
    cell = Cell("H200", model, work, concurrency)
    repeat = Repeat("simulated", cell, tuple(arms), engine_args, Measurement(), number, 11)
    (block,) = plan([repeat], KINDS["H200"]).blocks
    return block


def order_of(block: Block, arm: Arm, window_s=2.0, warmup_s=1.0, seed=5) -> WindowOrder:
    cell = block.repeats[0].cell
    return WindowOrder(arm, cell.workload, cell.concurrency, warmup_s, window_s, seed)


def look(block: Block, *arms: Arm, **order) -> list[Observation]:
    with open_deployment(block, block.arms, None) as deployment:
        return [deployment.measure(order_of(block, arm, **order)) for arm in arms]


def tokens_per_s(seen: Observation) -> float:
    return seen.output_tokens / seen.duration_s


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
@pytest.mark.parametrize(
    "work", [MIXED, Workload("prefill", 300, 1), Workload("decode", 700, 200)], ids=lambda w: w.kind
)
def test_tokens_are_conserved_between_requests_samples_and_window(work, arm):
    (seen,) = look(block_of(work), arm)
    by_second = seen.samples.filter(metric="output_tokens")
    assert by_second["value"].sum() == seen.output_tokens > 0
    end_ns = seen.start_ns + round(seen.duration_s * 1e9)
    rows = seen.requests
    inside = rows.filter((pl.col("first_token_ns") >= seen.start_ns) & (pl.col("last_token_ns") < end_ns))
    crossing = rows.filter((pl.col("first_token_ns") < seen.start_ns) & (pl.col("last_token_ns") >= seen.start_ns))
    # A request within the window gives it all of its tokens; one that crosses its start gives a part, at least one.
    least = int(inside["output_tokens"].sum()) + crossing.height
    assert least <= seen.output_tokens <= int(inside["output_tokens"].sum() + crossing["output_tokens"].sum())
    # In decode the KV of a request is there from its beginning.
    assert seen.prompt_tokens == (0 if work.kind == "decode" else inside.height * work.prompt_tokens)
    finished = rows.filter((pl.col("status") == "ok") & (pl.col("last_token_ns") >= seen.start_ns))
    assert sum(engine.requests_completed for engine in seen.engines) == finished.height > 0


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_a_window_waits_until_every_client_had_its_first_token(arm):
    # 48 prompts of 16,384 tokens are more than half a second of prefill
    block = block_of(Workload("mixed", 16_384, 64), concurrency=48)
    (seen,) = look(block, arm, window_s=2.0, warmup_s=0.5)
    began_ns = seen.start_ns - round(seen.warmup_s * 1e9)
    assert seen.warmup_s > 0.5 and seen.duration_s == 2.0
    alive = seen.requests.filter(pl.col("sequence") == 0)
    assert alive["first_token_ns"].null_count() == 0
    assert alive["first_token_ns"].max() == pytest.approx(seen.start_ns, abs=2)
    assert began_ns + round(seen.warmup_s * 1e9) == seen.start_ns
    (patient,) = look(block_of(), arm, window_s=2.0, warmup_s=1.0)
    assert patient.warmup_s == 1.0


def test_request_rows_keep_the_rules_of_a_closed_loop():
    (seen,) = look(block_of(), MPS)
    rows = seen.requests
    assert dict(rows.schema) == {name: kind for name, kind in REQUESTS_COLUMNS.items() if name not in IDS}
    assert dict(seen.samples.schema) == {name: kind for name, kind in SAMPLES_COLUMNS.items() if name not in IDS}
    done, cut = rows.filter(status="ok"), rows.filter(status="aborted")
    assert (done["output_tokens"] == done["output_tokens_asked"]).all()
    assert (cut["output_tokens"] < cut["output_tokens_asked"]).all()
    assert cut.height == 48 and cut["client"].n_unique() == 48
    assert ((rows["first_token_ns"] > rows["sent_ns"]) | rows["first_token_ns"].is_null()).all()
    assert (rows["last_token_ns"] >= rows["first_token_ns"]).drop_nulls().all()
    assert (rows["first_token_ns"].is_null() == (rows["output_tokens"] == 0)).all()
    # The next request of a client is sent when its last one ended.
    gaps = rows.select(
        gap=pl.col("sent_ns").shift(-1).over("client") - pl.col("last_token_ns"), status="status"
    ).filter(status="ok")
    assert gaps["gap"].abs().max() <= 1
    # Only a first request is shorter than asked of the workload: a random residual.
    assert (rows.filter(pl.col("sequence") > 0)["output_tokens_asked"] == 64).all()
    assert set(rows.select(pl.col("client") % 2 == pl.col("engine")).to_series()) == {True}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_littles_law_holds(arm):
    (seen,) = look(block_of(), arm, window_s=6.0)
    assert sum(engine.in_flight_mean for engine in seen.engines) == pytest.approx(48, rel=0.001)
    done = seen.requests.filter((pl.col("status") == "ok") & (pl.col("last_token_ns") >= seen.start_ns))
    latency_s = float((done["last_token_ns"] - done["sent_ns"]).mean()) / 1e9
    completions_per_s = done.height / seen.duration_s
    assert completions_per_s * latency_s == pytest.approx(48, rel=0.04)


def test_the_same_order_gives_the_same_window_and_another_seed_another():
    block = block_of(noise="realistic")
    (first,), (again,), (other,) = look(block, MPS), look(block, MPS), look(block, MPS, seed=6)
    assert first.requests.equals(again.requests) and first.samples.equals(again.samples)
    assert dataclasses.replace(first, requests=None, samples=None) == dataclasses.replace(
        again, requests=None, samples=None
    )
    assert not first.requests.equals(other.requests)


def test_boots_of_another_repeat_differ_and_noise_has_the_size_it_says():
    rates = np.log([tokens_per_s(look(block_of(noise="realistic", number=number), SINGLE)[0]) for number in range(12)])
    assert 0.004 < rates.std(ddof=1) < 0.04
    quiet = {tokens_per_s(look(block_of(number=number), SINGLE)[0]) for number in range(2)}
    assert max(quiet) / min(quiet) < 1.03


def test_the_virtual_clock_goes_on_from_window_to_window():
    first, second = look(block_of(), SINGLE, MPS)
    assert second.start_ns - second.warmup_s * 1e9 > first.start_ns + first.duration_s * 1e9
    assert second.requests["last_token_ns"].max() < second.start_ns + second.duration_s * 1e9


@pytest.mark.parametrize("gain", [0.8, 1.25])
@pytest.mark.parametrize(
    "work", [MIXED, Workload("mixed", 1024, 128), Workload("prefill", 512, 1), Workload("decode", 700, 200)], ids=str
)
def test_a_planted_gain_comes_back(work, gain):
    block = block_of(work, 256, planted_gain={"mps-2": gain})
    single, sliced, mps = look(block, *ARMS, window_s=6.0, warmup_s=3.0)
    assert tokens_per_s(mps) / tokens_per_s(single) == pytest.approx(gain, rel=0.005)
    assert tokens_per_s(sliced) == tokens_per_s(single)
    assert len(mps.engines) == 2 and sum(engine.clients for engine in mps.engines) == 256
    assert sum(engine.in_flight_mean for engine in mps.engines) == pytest.approx(256, rel=0.001)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_replayed_step_is_served_by_a_host_that_takes_no_time(phase):
    """A small model hangs on its host: without one it is faster, and its GPU is never idle."""
    served, replayed = (
        look(block_of(Workload(kind, 128, 1 if phase == "prefill" else 4096), concurrency=32), SINGLE)[0]
        for kind in (phase, f"{phase}-replay")
    )
    rate = {"decode": tokens_per_s, "prefill": lambda seen: seen.prompt_tokens / seen.duration_s}[phase]
    assert rate(replayed) > 1.2 * rate(served)
    assert replayed.gpu.gpu_active_share > 0.99 > served.gpu.gpu_active_share


@pytest.mark.parametrize("kind", ["decode", "decode-replay", "prefill-replay"])
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_windows_of_one_phase_are_certified(kind, arm):
    block = block_of(Workload(kind, 128, 1 if kind == "prefill-replay" else 4096), concurrency=32)
    with open_deployment(block, block.arms, None) as deployment:
        order = order_of(block, arm)
        planned = planned_for(block.repeats[0], deployment.boots[arm.name])
        assert certify(order, deployment.measure(order), planned).failures == ()


def test_planting_nothing_leaves_the_physics_on():
    (seen,) = look(block_of(planted_gain={}), MPS)
    assert seen.notes["planted_gain"] is False
    assert seen.engines[0].running_mean != seen.engines[1].running_mean


def test_two_gpu_bound_engines_in_time_slices_gain_nothing_over_one():
    block = block_of(Workload("prefill", 2048, 1), concurrency=16, model="Qwen2.5-7B")
    single, sliced, mps = look(block, *ARMS, window_s=20.0, warmup_s=4.0)
    switching = 0.1  # 0.1 ms a switch of 2 ms slices, and whole steps at the window's edges
    assert 1 - switching < tokens_per_s(sliced) / tokens_per_s(single) <= 1.0
    assert tokens_per_s(mps) / tokens_per_s(single) < 1.1
    for seen in (single, sliced, mps):
        assert seen.gpu.gpu_active_share > 0.98


def test_sharing_never_beats_the_sum_of_hosts():
    # Each of two engines has half of the clients; alone on a GPU it would make no more than a single engine with them.
    decode = Workload("decode", 500, 300)
    alone = look(block_of(decode, concurrency=24), SINGLE, window_s=4.0)[0]
    sliced, mps = look(block_of(decode, concurrency=48), SLICED, MPS, window_s=4.0)
    assert tokens_per_s(sliced) <= 2.02 * tokens_per_s(alone)
    assert tokens_per_s(mps) <= 2.02 * tokens_per_s(alone)


def test_counters_and_attachment_are_those_of_the_arm():
    sliced, mps = look(block_of(), SLICED, MPS)
    assert sliced.attachment.expected == () and len(sliced.attachment.detached) == 2
    assert len(mps.attachment.expected) == 2 and mps.attachment.attached == mps.attachment.expected
    assert not set(mps.attachment.attached) & set(mps.attachment.should_be_detached)
    for seen in (sliced, mps):
        gpu = seen.gpu
        assert 0 < gpu.sm_active_share <= gpu.gpu_active_share <= 1
        assert 0 < gpu.dram_active_share < 1 and 0 < gpu.tensor_active_share < 1
        assert KINDS["H200"].idle_power_w < gpu.power_w <= 1.1 * KINDS["H200"].power_limit_w
        assert all(engine.steps > 0 and engine.preemptions == 0 for engine in seen.engines)


def test_boot_facts_say_that_they_are_simulated():
    with open_deployment(block_of(), ARMS) as deployment:
        facts = deployment.boots["mps-2"]
    assert facts.gpu_name == "Simulated H200" and facts.gpu_uuid.startswith("SIM-") and facts.weights == "none"
    assert "simulator" in facts.software


def test_a_cap_on_sms_costs_a_compute_bound_engine():
    capped = Arm("mps-2-30", Mps(2, active_thread_percentage=30))
    block = block_of(Workload("prefill", 2048, 1), 16, "Qwen2.5-3B", (SINGLE, MPS, capped))
    mps, less = look(block, MPS, capped, window_s=8.0)
    # All SMs run into the power limit, 60 % of them do not: what they lose is paid back in part by the clock.
    clocks = less.gpu.sm_clock_mhz / mps.gpu.sm_clock_mhz
    assert clocks > 1.1
    assert tokens_per_s(less) / tokens_per_s(mps) == pytest.approx(0.6 * clocks, abs=0.05)


def test_synchronous_scheduling_is_slower_and_confined_cores_are_too():
    plain, sync = (look(block_of(engine_args={"async_scheduling": flag}), SINGLE)[0] for flag in (True, False))
    shared = dataclasses.replace(SINGLE, name="one-core", cores_per_engine=1)
    confined = look(block_of(arms=(shared,)), shared)[0]
    assert tokens_per_s(sync) < 0.95 * tokens_per_s(plain)
    assert tokens_per_s(confined) < 0.95 * tokens_per_s(plain)


@pytest.mark.parametrize(("error", "kind"), [("EngineCrashed", EngineCrashed), ("MpsFault", MpsFault)])
def test_a_planted_failure_strikes_its_arm_and_window_only(error, kind):
    block = block_of(fail={"arm": "mps-2", "at_window": 1, "error": error})
    with open_deployment(block, block.arms) as deployment:
        deployment.measure(order_of(block, MPS))
        deployment.measure(order_of(block, SINGLE))
        deployment.measure(order_of(block, SINGLE))
        with pytest.raises(kind, match="mps-2 at its window 1"):
            deployment.measure(order_of(block, MPS))


def test_a_failure_can_be_planted_once_and_at_the_boot(tmp_path):
    fail = {"arm": "mps-2", "error": "BootError", "once": str(tmp_path / "struck")}
    block = block_of(fail=fail)
    with pytest.raises(BootError, match="at its boot"), open_deployment(block, ARMS):
        raise AssertionError("it must not come up")
    assert look(block, MPS)[0].output_tokens > 0
    assert look(block_of(fail=fail | {"repeat": 1, "once": None}), MPS)[0].output_tokens > 0


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        ({"nois": "none"}, "unknown key 'nois'"),
        ({"noise": "loud"}, "none or realistic"),
        ({"planted_gain": {"mps-2": -1}}, "above zero"),
        ({"fail": {"arm": "mps-2"}}, "'error' is missing"),
        ({"fail": {"arm": "mps-2", "error": "Nonsense"}}, "must be one of"),
    ],
)
def test_wrong_options_are_named(simulation, message):
    with pytest.raises(SpecError, match=message), open_deployment(block_of(**simulation), ARMS):
        raise AssertionError("it must not come up")


def test_a_token_budget_below_the_sequences_is_refused_as_vllm_does():
    with pytest.raises(BootError, match="max_num_batched_tokens"):
        look(block_of(engine_args={"max_num_batched_tokens": 32}), SINGLE)


def test_a_short_look_at_long_steps_still_sizes_windows_of_three_latencies():
    """Requests of 13 s, pilots of 0.3 s, of which five steps are all that is seen."""
    block = block_of(Workload("mixed", 4096, 128), 128, "Qwen2.5-7B", (SINGLE, MPS))
    look = Measurement(window_s=1.0, warmup_s=0.2, min_windows=2, max_windows=2)
    long = dataclasses.replace(block, repeats=tuple(dataclasses.replace(r, measurement=look) for r in block.repeats))
    (done,) = run_block(long, open_deployment, BlockContext("toy", "sha"))
    windows = done.frames["windows"]
    assert windows.height == 4 and windows["certified"].all()
    assert (windows["requests_completed"] >= 3 * 128).all() and (windows["duration_s"] < 6 * windows["e2e_p50_s"]).all()
