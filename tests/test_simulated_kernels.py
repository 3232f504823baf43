"""The roofline of a step and the sharing of a GPU against numbers worked out by hand."""

from pathlib import Path

import pytest

from orchestrator.gpus import KINDS
from orchestrator.simulated.constants import CONSTANTS, table, value
from orchestrator.simulated.engine import Job
from orchestrator.simulated.kernels import StepCost, StepCosts
from orchestrator.simulated.power import PowerCap
from orchestrator.simulated.sharing import SideBySide, TimeSlices, phases, slowdown
from workloads.architecture import Batch, Matmul, Work
from workloads.catalogue import load_model

H200 = KINDS["H200"]
BATCH = Batch(1, 16)


class OneKernel:
    """A model whose step is one kernel, the same for every batch."""

    layers, head_dim = 1, 128

    def __init__(self, **work):
        self.work = Work(**({"layer_type": "mlp", "launches": 1, "flops": 0.0, "weight_bytes": 0.0, "kv_bytes": 0.0,
                             "activation_bytes": 0.0, "tiles": 132.0} | work))  # fmt: skip

    def step_work(self, batch, bytes_per_element=2.0, bytes_per_parameter=None):
        return (self.work,)


def cost_of(sms=None, **work) -> StepCost:
    return StepCosts(OneKernel(**work), H200, sms).exact(BATCH)


def step(compute_s=0.0, memory_s=0.0, gap_s=0.0, compute_sm=1.0, memory_bw=1.0, gap_sm=0.0) -> Job:
    cost = StepCost(compute_s, memory_s, gap_s, compute_sm, 0.0, 0.5, memory_bw, 0.0, 0.0, 0.0, 1, 0, gap_sm)
    return Job(cost, cost.seconds, 0.0)


def finish_times(sharing, jobs: dict[str, Job]) -> dict[str, float]:
    """When each of the jobs, all started at 0, is done."""
    for name, job in jobs.items():
        sharing.start(name, job, 0.0)
    done, now = {}, 0.0
    while len(done) < len(jobs):
        now = sharing.next_at(now)
        name = sharing.event(now)
        if name is not None:
            done[name] = now
    assert sharing.next_at(now) == float("inf")
    return done


def test_a_full_wave_of_compute_takes_flops_over_the_measured_rate():
    matmul = Matmul(12 * 128, 8192, 11 * 128, 3)  # 132 tiles
    cost = cost_of(matmuls=(matmul,), flops=matmul.flops, launches=3)
    ramp = 1 + value("gemm_ramp") / 8192
    assert cost.compute_s == pytest.approx(matmul.flops * ramp / (989.5e12 * value("gemm_efficiency")))
    assert cost.flops == matmul.flops == 3 * 2 * 1536 * 8192 * 1408
    assert cost.gap_s == pytest.approx(3 * value("kernel_tail"))
    assert cost.memory_s == 0 and cost.compute_sm == pytest.approx(1.0)


def test_a_shallow_product_pays_for_the_beginning_and_end_of_its_tiles():
    deep, shallow = (cost_of(matmuls=(Matmul(1536, depth, 1408, 1),)).compute_s for depth in (8960, 896))
    ramp = value("gemm_ramp")
    assert deep / shallow == pytest.approx((8960 + ramp) / (896 + ramp))


def test_what_moves_after_the_products_is_not_hidden_behind_them():
    matmuls, moved = (Matmul(1536, 8192, 1408, 1),), 64 * 2**20
    hidden, after = (
        cost_of(matmuls=matmuls, activation_bytes=moved, pointwise_bytes=share * moved) for share in (0.0, 1.0)
    )
    assert hidden.memory_s == 0 and after.memory_s == pytest.approx(moved / (4.8e12 * 0.9))
    assert after.compute_s == hidden.compute_s and after.dram_bytes == hidden.dram_bytes == moved


def test_attention_over_few_keys_and_with_narrow_heads_is_slow():
    rate = 989.5e12 * value("attention_efficiency")
    plain = cost_of(layer_type="attention", flops=1e12)
    assert plain.compute_s == pytest.approx(1e12 / rate)
    ramped = cost_of(layer_type="attention", flops=1e12, flops_a_key=1e9)
    assert ramped.compute_s == pytest.approx((1e12 + value("attention_ramp") * 1e9) / rate)
    model = OneKernel(layer_type="attention", flops=1e12)
    model.head_dim = 64
    assert StepCosts(model, H200).exact(BATCH).compute_s == pytest.approx(plain.compute_s / value("attention_narrow"))


def test_a_wave_and_one_block_takes_as_long_as_two_waves():
    # Attention cannot be split further, so 133 blocks on 132 SMs run at half the rate of 132.
    one, two = (cost_of(layer_type="attention", flops=f, tiles=t) for f, t in ((132e9, 132), (133e9, 133)))
    assert two.compute_s == pytest.approx(2 * one.compute_s)
    assert two.compute_sm == pytest.approx(133 / 264)


def test_memory_bound_work_takes_bytes_over_the_measured_bandwidth():
    cost = cost_of(weight_bytes=3e9, kv_bytes=1e9, flops=1e9)
    assert cost.memory_s == pytest.approx(4e9 / (4.8e12 * 0.90))
    assert cost.compute_s == 0 and cost.memory_bw == pytest.approx(1.0)
    assert cost.dram_bytes == 4e9


def test_activations_that_fit_in_l2_never_reach_memory():
    small, large = cost_of(activation_bytes=20 * 2**20), cost_of(activation_bytes=30 * 2**20)
    assert small.dram_bytes == 0 < large.dram_bytes
    assert small.memory_s < large.memory_s / 2


def test_few_blocks_do_not_draw_the_whole_bandwidth():
    full, few = (cost_of(layer_type="attention", kv_bytes=1e9, tiles=tiles) for tiles in (66, 33))
    assert few.memory_s == pytest.approx(2 * full.memory_s)


def test_a_cap_on_sms_slows_compute_in_proportion_and_memory_not_at_all():
    matmuls = (Matmul(40 * 128, 2048, 33 * 128, 5),)  # 1,320 tiles
    whole, half = cost_of(matmuls=matmuls, tiles=1320), cost_of(matmuls=matmuls, tiles=1320, sms=66)
    assert half.compute_s == pytest.approx(2 * whole.compute_s) and half.compute_sm == pytest.approx(0.5)
    assert cost_of(weight_bytes=1e9, sms=66).memory_s == pytest.approx(cost_of(weight_bytes=1e9).memory_s)


def test_cached_costs_differ_from_exact_ones_by_the_grain_of_the_context_only():
    costs = StepCosts(load_model("Qwen2.5-1.5B"), H200)
    for batch in (Batch(200, 200 * 187), Batch(3, 9000, ((500, 128), (37, 0)))):
        cached = costs.of(batch.decode_sequences, batch.decode_context_tokens, batch.prefill)
        assert cached.seconds == pytest.approx(costs.exact(batch).seconds, rel=0.01)
    assert costs.of(200, 200 * 187, ()) is costs.of(200, 200 * 187 + 40, ())


def test_a_whole_step_is_above_its_roofline_and_within_reach_of_it():
    model = load_model("Qwen2.5-7B")
    prefill = StepCosts(model, H200).exact(Batch(0, 0, ((8192, 0),)))
    # Not all of the 7.6 billion parameters are multiplied for every token: the embedding is looked up, and the LM head
    # runs for the last token alone.
    flops = 2 * 8192 * (model.parameters() - 2 * model.vocabulary * model.hidden_size)
    assert flops / 989.5e12 < prefill.seconds < 1.6 * flops / 989.5e12
    decode = StepCosts(model, H200).exact(Batch(1, 16))
    weights_s = model.weight_bytes() / 4.8e12
    assert weights_s < decode.seconds < 2 * weights_s


def test_two_steps_that_each_fill_the_gpu_take_twice_as_long_side_by_side():
    done = finish_times(SideBySide(), {"a": step(compute_s=1.0), "b": step(compute_s=1.0)})
    assert done == pytest.approx({"a": 2.0, "b": 2.0})


def test_steps_that_leave_room_for_each_other_overlap_fully():
    third = step(compute_s=1.0, compute_sm=1 / 3)
    assert finish_times(SideBySide(), {"a": third, "b": third, "c": third}) == pytest.approx(dict.fromkeys("abc", 1.0))


def test_tails_are_filled_by_the_other_engine_s_work_and_not_by_its_tails():
    work, tails = step(compute_s=1.0), step(gap_s=1.0)
    assert finish_times(SideBySide(), {"a": work, "b": tails}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert finish_times(SideBySide(), {"a": tails, "b": tails}) == pytest.approx({"a": 2.0, "b": 2.0})
    job = step(compute_s=0.5, gap_s=0.5)
    # Both compute at once in a quarter of the time and are in their tails in another, and are then slowed by two.
    assert finish_times(SideBySide(), {"a": job, "b": job}) == pytest.approx({"a": 1.5, "b": 1.5})


def test_blocks_that_begin_and_end_hold_sms_too():
    wide = step(gap_s=1.0, gap_sm=0.5)
    # One computes on all SMs while the other's blocks hold half of them: both are slowed by a half.
    assert finish_times(SideBySide(), {"a": step(compute_s=1.0), "b": wide}) == pytest.approx({"a": 1.5, "b": 1.5})
    cost = StepCosts(load_model("Qwen2.5-0.5B"), H200).exact(Batch(64, 64 * 128))
    assert cost.gap_sm == value("tail_sm") and cost.sm_seconds > cost.gap_s * cost.gap_sm


def test_a_shorter_step_leaves_the_gpu_to_the_longer_one():
    done = finish_times(SideBySide(), {"a": step(compute_s=1.0), "b": step(compute_s=3.0)})
    assert done == pytest.approx({"a": 2.0, "b": 4.0})


@pytest.mark.parametrize("engines", [2, 3, 4])
def test_side_by_side_never_exceeds_the_roofline(engines):
    jobs = [step(compute_s=0.4 + 0.1 * i, memory_s=0.5, gap_s=0.2, compute_sm=0.9) for i in range(engines)]
    held = [phases(job, job.seconds) for job in jobs]
    slow = slowdown(held)
    for resource in (1, 2, 3):
        asked = sum(phase[0] * phase[resource] for job in held for phase in job)
        assert asked / slow <= 1.0 + 1e-12
    assert slow >= 1.0


def test_three_engines_agree_with_two_where_the_third_does_nothing():
    pair = [phases(step(compute_s=0.6, memory_s=0.3, gap_s=0.1), 1.0)] * 2
    idle = ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0))
    assert slowdown([*pair, idle]) == pytest.approx(slowdown(pair))


def test_time_slices_run_one_context_at_a_time():
    sharing = TimeSlices()
    done = finish_times(
        sharing, {"a": step(compute_s=0.005, compute_sm=0.1), "b": step(compute_s=0.005, compute_sm=0.1)}
    )
    slices, switch = value("time_slice"), value("context_switch")
    # Slices a b a b a b: `a` waits for two of b's, `b` for all of a's; each turn but the first starts with a switch.
    assert done == pytest.approx({"a": 0.005 + 2 * slices + 4 * switch, "b": 0.010 + 5 * switch})


def test_a_context_that_runs_out_of_kernels_gives_up_its_turn():
    done = finish_times(TimeSlices(), {"a": step(compute_s=0.001), "b": step(compute_s=0.001)})
    assert done == pytest.approx({"a": 0.001, "b": 0.002 + value("context_switch")})


def test_a_launch_bound_step_lasts_until_its_last_launch_and_slows_the_other_less():
    launched = Job(step(compute_s=1.0).cost, 1.0, launched_s=4.0)
    assert finish_times(SideBySide(), {"a": launched}) == pytest.approx({"a": 4.0})
    assert finish_times(SideBySide(), {"a": launched, "b": step(compute_s=1.0)})["b"] == pytest.approx(1.25)


def test_the_power_cap_lowers_the_clock_until_the_load_fits():
    power = PowerCap(H200)
    seconds = 0.5
    busy = StepCost(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75 * 989.5e12 * seconds, 0.2 * 4.8e12 * seconds, 1, 0)
    power.add(busy, seconds)
    clock = power.read(seconds)
    assert value("lowest_clock") < clock < 1.0
    slower = StepCost(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, busy.flops * clock, busy.dram_bytes, 1, 0)
    power.add(slower, 2 * seconds)
    assert power.read(2 * seconds) == pytest.approx(clock)
    assert power.readings[0].power_w > H200.power_limit_w == pytest.approx(power.readings[1].power_w)


def test_an_idle_gpu_draws_idle_power_at_full_clock():
    power = PowerCap(H200)
    assert power.read(1.0) == 1.0 and power.readings[0].power_w == H200.idle_power_w


def test_every_constant_lies_in_its_range_and_has_a_source():
    for name, constant in CONSTANTS.items():
        assert constant.low <= constant.value <= constant.high, name
        assert len(constant.source) > 9, name


def test_the_documentation_shows_the_table_as_it_is():
    assert table() in (Path(__file__).parent.parent / "docs" / "simulation.md").read_text()


def test_what_fills_a_step_up_goes_through_all_but_attention_and_the_lm_head():
    costs = StepCosts(load_model("Qwen2.5-3B"), H200)
    batch = Batch(63, 63 * 2064, ((2048, 0),))
    alone, filled = costs.exact(batch), costs.exact(batch, 2560)
    linear = 2 * 36 * (2048 * (2048 + 2 * 256) + 2048 * 2048 + 3 * 2048 * 11008)  # FLOPs a token of its matrices
    assert filled.flops - alone.flops == pytest.approx((2560 - 2111) * linear)
    assert costs.exact(batch, 2111) == alone and costs.exact(batch, 2560) == filled
    assert costs.of(63, 63 * 2064, ((2048, 0),), 2560) == filled != costs.of(63, 63 * 2064, ((2048, 0),))
