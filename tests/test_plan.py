"""Blocks, residency and skips on GPUs whose size is chosen to the byte."""

from __future__ import annotations

import math
from itertools import product

import pytest

from orchestrator.gpus import KINDS, GpuKind
from orchestrator.memory import CONTEXT_BYTES, USABLE_SHARE
from orchestrator.plan import BOOT_S, HANDOVER_S, gpu_kind, plan
from orchestrator.trial import PILOT_SHARE, Arm, Cell, Measurement, Mps, Repeat, Single, TimeSliced, Workload

SINGLE, MPS2, MPS4 = Arm("single", Single()), Arm("mps2", Mps(2)), Arm("mps4", Mps(4))
SLICED2 = Arm("sliced2", TimeSliced(2))
# Qwen2.5-0.5B, see test_memory: weights, context and the activations of one step.
FIXED = 2 * 494_032_768 + CONTEXT_BYTES + 2 * 8192 * (2 * 4864 + 896) * 2
LOGITS_PER_CLIENT = 2 * 151_936 * 4
BLOCK = 16 * 12_288


def repeat_of(prompt=64, concurrency=16, number=0, arms=(SINGLE, MPS2), kind="mixed", model="Qwen2.5-0.5B", **look):
    cell = Cell("H100", model, Workload(kind, prompt, 16), concurrency)
    return Repeat("simulated", cell, tuple(arms), {}, Measurement(**look), number, number)


def arm_bytes(engines: int, prompt=64, concurrency=16, slots=None) -> int:
    """An arm's engines by hand: KV for its share of the clients, logits for all of them."""
    clients = math.ceil(concurrency / engines)
    blocks = clients * (math.ceil((prompt + 16) / 16) + 1)
    return engines * (FIXED + (slots or concurrency) * LOGITS_PER_CLIENT + math.ceil(blocks * 1.02 + 1) * BLOCK)


def gpu_with(usable: int) -> GpuKind:
    memory = math.ceil(usable / USABLE_SHARE)
    assert int(memory * USABLE_SHARE) == usable
    return GpuKind("H100", memory, 132, 1980, 1e15, 3e12, 50 * 2**20, 700, 70)


@pytest.mark.parametrize(
    ("spare", "residency"), [(0, "resident"), (-1, "alone")], ids=["fits to the byte", "a byte too small"]
)
def test_arms_are_resident_exactly_where_all_of_them_fit(spare, residency):
    done = plan([repeat_of()], gpu_with(arm_bytes(1) + arm_bytes(2) + spare))
    (block,) = done.blocks
    assert block.residency == residency and block.arms == (SINGLE, MPS2) and not done.skips
    assert 2 * block.memory["mps2"].total == arm_bytes(2) and block.memory["single"].total == arm_bytes(1)


def test_an_arm_that_does_not_fit_alone_is_left_out_with_the_arithmetic():
    usable = arm_bytes(4) - 1
    assert arm_bytes(1) + arm_bytes(2) <= usable  # there is room for the rest, but its baseline is alone all the same
    repeat = repeat_of(arms=(SINGLE, MPS2, MPS4))
    done = plan([repeat], gpu_with(usable))
    (block,) = done.blocks
    assert (block.residency, block.arms) == ("alone", (SINGLE, MPS2))
    (skip,) = done.skips
    assert (skip.repeat, skip.arm) == (repeat, MPS4)
    needed, there = arm_bytes(4) / 2**30, usable / 2**30
    assert skip.reason == (
        f"4 engine(s) of Qwen2.5-0.5B with KV for 16 requests of 64+16 tokens need {needed:.1f} GiB, "
        f"{there:.1f} GiB of a H100 are usable"
    )


def test_a_model_larger_than_the_gpu_leaves_no_block_and_a_skip_an_arm():
    repeats = [repeat_of(number=number) for number in range(2)]
    done = plan(repeats, gpu_with(arm_bytes(1) - 1))
    assert done.blocks == () and done.expected_gpu_s == 0
    assert [(skip.repeat, skip.arm) for skip in done.skips] == list(product(repeats, (SINGLE, MPS2)))


def test_an_arm_may_fit_in_one_cell_and_not_in_another():
    small, large = repeat_of(64), repeat_of(16_000, 64)
    usable = arm_bytes(2, 16_000, 64) - 1
    assert arm_bytes(1) + arm_bytes(2) <= usable and arm_bytes(1, 16_000, 64) <= usable
    done = plan([large, small], gpu_with(usable))
    assert [(b.residency, b.arms, b.repeats) for b in done.blocks] == [
        ("resident", (SINGLE, MPS2), (small,)),
        ("alone", (SINGLE,), (large,)),
    ]
    assert [(skip.repeat, skip.arm) for skip in done.skips] == [(large, MPS2)]


def test_cells_that_fit_one_by_one_but_not_as_one_block_are_measured_alone():
    # Few long requests need KV, many short ones logits: the engines of a common block need both.
    long, wide = repeat_of(8000, 4), repeat_of(16, 200)
    each = max(arm_bytes(1, 8000, 4) + arm_bytes(2, 8000, 4), arm_bytes(1, 16, 200) + arm_bytes(2, 16, 200))
    both = arm_bytes(1, 8000, 4, slots=200) + arm_bytes(2, 8000, 4, slots=200)
    assert each < both
    roomy, tight = plan([long, wide], gpu_with(both)), plan([long, wide], gpu_with(both - 1))
    assert [(b.residency, b.repeats) for b in roomy.blocks] == [("resident", (long, wide))]
    assert sorted((b.residency, len(b.repeats)) for b in tight.blocks) == [("alone", 1), ("resident", 1)]


def test_blocks_keep_apart_what_cannot_share_boots_and_together_what_can():
    repeats = [
        repeat_of(prompt, number=number, kind=kind)
        for number, kind, prompt in product(range(2), ("mixed", "decode", "prefill"), (64, 128))
    ]
    other = repeat_of(arms=(SINGLE, SLICED2))
    blocks = plan([*repeats, other], KINDS["H200"]).blocks
    assert [(b.repeats[0].number, {r.cell.workload.kind for r in b.repeats}, len(b.repeats)) for b in blocks] == [
        (0, {"mixed", "prefill"}, 4),
        (0, {"decode"}, 2),
        (1, {"mixed", "prefill"}, 4),
        (1, {"decode"}, 2),
        (0, {"mixed"}, 1),
    ]
    later = [r for b in blocks for r in b.repeats if r.number == 1]
    assert later == [*repeats[6:8], *repeats[10:], *repeats[8:10]]
    assert len({b.block_id for b in blocks}) == 5


def test_what_is_left_is_measured_by_the_engines_of_the_whole():
    small, large = repeat_of(64, 16), repeat_of(2048, 64)
    whole = plan([small, large], KINDS["H100"])
    left = whole.only([small])
    assert [b.repeats for b in left.blocks] == [(small,)]
    assert left.blocks[0].sizing == whole.blocks[0].sizing != plan([small], KINDS["H100"]).blocks[0].sizing
    assert left.blocks[0].expected_gpu_s < whole.blocks[0].expected_gpu_s
    assert whole.only([]).blocks == ()
    nothing = plan([small, large], gpu_with(arm_bytes(1) - 1))
    assert [skip.repeat for skip in nothing.only([large]).skips] == [large, large]


def test_boots_for_some_of_the_cells_have_the_engines_of_all_of_them():
    small, large = repeat_of(64, 16), repeat_of(2048, 64)
    later = repeat_of(64, 16, number=1)
    whole = plan([small, large, later], KINDS["H100"])
    assert [b.repeats for b in whole.blocks] == [(small, large), (later,)]
    assert whole.blocks[1].sizing == whole.blocks[0].sizing and whole.blocks[1].memory == whole.blocks[0].memory
    assert whole.blocks[1].expected_gpu_s == pytest.approx(plan([later], KINDS["H100"]).blocks[0].expected_gpu_s)
    tight = plan([small, large, later], gpu_with(arm_bytes(1) + arm_bytes(2)))
    assert {b.residency for b in tight.blocks if later in b.repeats} == {
        b.residency for b in tight.blocks if small in b.repeats
    }
    nowhere = plan([small, large, later], gpu_with(arm_bytes(1) - 1))
    assert nowhere.blocks == () and [skip.repeat for skip in nowhere.skips] == [
        *[small] * 2,
        *[large] * 2,
        *[later] * 2,
    ]


def test_the_time_to_expect():
    look = {"window_s": 5.0, "warmup_s": 1.0, "min_windows": 3}
    resident = plan([repeat_of(64, **look), repeat_of(128, **look)], KINDS["H200"])
    # two repeats of two arms, three windows and a pilot without a warm-up each, and one boot
    windows_s = 2 * 2 * (3 * (5.0 + 1.0 + HANDOVER_S) + PILOT_SHARE * 5.0 + HANDOVER_S)
    assert resident.expected_gpu_s == pytest.approx(BOOT_S + windows_s)
    alone = plan([repeat_of(64, **look)], gpu_with(arm_bytes(1) + arm_bytes(2) - 1))
    assert alone.expected_gpu_s == pytest.approx(2 * BOOT_S + windows_s / 2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("H200", "H200"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
    ],
)
def test_a_gpu_s_name_gives_its_kind(name, kind):
    assert gpu_kind(name) is KINDS[kind]


def test_an_unknown_gpu_is_no_kind():
    with pytest.raises(KeyError):
        gpu_kind("NVIDIA GH100X")
