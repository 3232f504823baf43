"""What is counted of replayed steps, which step is stopped at, and what a kernel of it is called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.engine_probe import COUNTERS, StepCounters
from orchestrator.step_profile import part_of, weight_parts
from orchestrator.step_replay import Wish, steps_between

HIDDEN, QKV, INTER, VOCABULARY = 2048, 2560, 11008, 151936


@pytest.mark.parametrize(
    ("times", "start", "end", "steps"),
    [
        ([0, 10, 20, 30, 40], 10, 30, 2.0),
        ([0, 10, 20, 30, 40], 15, 35, 2.0),  # half of one at either edge
        ([0, 10, 20, 30, 40], 12, 15, 0.3),  # a window shorter than a step
        ([0, 10, 40, 50], 20, 45, 2 / 3 + 0.5),  # one step took three times as long
        ([5, 10, 20], 0, 20, 2.0),  # nothing before the first launch
    ],
)
def test_steps_are_counted_by_the_fraction(times: list[int], start: int, end: int, steps: float) -> None:
    assert steps_between(times, start, end) == pytest.approx(steps)


def test_a_wish_is_for_a_full_step() -> None:
    decode = Wish(tokens=8, sequences=8, decode=True)
    assert decode.granted(8, 8)
    assert not decode.granted(7, 7) and not decode.granted(64, 8) and not decode.granted(8, 1)
    prefill = Wish(tokens=7782, sequences=64, decode=False)
    assert prefill.granted(8192, 65) and prefill.granted(7782, 60) and not prefill.granted(7781, 64)


def test_both_sides_meet_in_the_shared_counters(tmp_path: Path) -> None:
    ours = StepCounters(tmp_path / "steps")
    theirs = np.memmap(tmp_path / "steps", dtype=np.int64)[len(COUNTERS) :]
    assert not ours.replay_ready
    theirs[0] = 1
    assert ours.replay_ready
    ours.replay_between(5, 9)
    assert theirs.tolist() == [1, 5, 9]
    assert ours.read() == dict.fromkeys(COUNTERS, 0)


def model(tied: bool = True) -> SimpleNamespace:
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.layers.0.self_attn.qkv_proj.weight": (QKV, HIDDEN),
        "model.layers.0.self_attn.qkv_proj.bias": (QKV,),
        "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.mlp.gate_up_proj.weight": (2 * INTER, HIDDEN),
        "model.layers.0.mlp.down_proj.weight": (HIDDEN, INTER),
        "model.layers.0.input_layernorm.weight": (HIDDEN,),
        **({} if tied else {"lm_head.weight": (VOCABULARY, HIDDEN)}),
    }
    parameters = [(name, SimpleNamespace(ndim=len(shape), shape=shape)) for name, shape in shapes.items()]
    return SimpleNamespace(named_parameters=lambda: parameters)


@pytest.mark.parametrize("tied", [True, False])
def test_a_matrix_product_is_known_by_its_weight(tied: bool) -> None:
    parts = weight_parts(model(tied))
    kernel = "nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNT"
    for (rows, columns), part in {
        (HIDDEN, QKV): "qkv_proj",
        (HIDDEN, HIDDEN): "o_proj",
        (HIDDEN, 2 * INTER): "gate_up_proj",
        (INTER, HIDDEN): "down_proj",
        (HIDDEN, VOCABULARY): "lm_head",
    }.items():
        for tokens in (64, 8192, HIDDEN):  # as many tokens as the model is wide leave one shape of weight all the same
            assert part_of("aten::mm", [[tokens, rows], [rows, columns]], kernel, parts) == part
        # Compiled code passes the result along; it may well have the shape of some weight.
        assert part_of("aten::mm", [[INTER, rows], [rows, columns], [INTER, columns]], kernel, parts) == part
        assert part_of("aten::addmm", [[columns], [64, rows], [rows, columns], [], []], kernel, parts) == part
    assert part_of("aten::mm", [[64, 100], [100, 7]], kernel, parts) == "other_products"


@pytest.mark.parametrize(
    ("operator", "kernel", "part"),
    [
        ("_vllm_fa3_C::fwd", "void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>", "attention"),
        ("_vllm_fa2_C::varlen_fwd", "void flash_fwd_splitkv_combine_kernel<...>", "attention"),
        ("_C_cache_ops::reshape_and_cache_flash", "void vllm::reshape_and_cache_flash_kernel<...>", "kv_write"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0",
         "elementwise"),
        ("_C::silu_and_mul", "void vllm::act_and_mul_kernel<...>", "elementwise"),
        ("", "Memcpy DtoD (Device -> Device)", "copies"),
        ("mystery", "mystery_kernel", "other"),
    ],
)  # fmt: skip
def test_other_kernels_are_known_by_name(operator: str, kernel: str, part: str) -> None:
    assert part_of(operator, [[64, 16, 128]], kernel, {}) == part
