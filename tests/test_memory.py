"""What an engine takes on a GPU, worked out by hand for Qwen2.5-0.5B.

24 layers, 2 KV heads of 64, so 2 * 24 * 2 * 64 * 2 B = 12,288 B of KV a token; 494,032,768 parameters with tied
embeddings; hidden 896, MLP 4864, vocabulary 151,936.
"""

from __future__ import annotations

import pytest

from orchestrator.memory import CONTEXT_BYTES, engine_memory, request_tokens, size_engine
from orchestrator.trial import Arm, Cell, Mps, Single, Workload
from workloads.catalogue import load_model

MODEL = load_model("Qwen2.5-0.5B")
SINGLE, MPS2, MPS3 = Arm("single", Single()), Arm("mps2", Mps(2)), Arm("mps3", Mps(3))


def cell(concurrency=16, prompt=64, output=16, kind="mixed"):
    return Cell("H100", "Qwen2.5-0.5B", Workload(kind, prompt, output), concurrency)


@pytest.mark.parametrize(
    ("arm", "cells", "backend", "blocks", "block_tokens"),
    [
        # 80 tokens are 5 blocks of 16, and one to spare: 6 * 16 clients = 96; 96 * 1.02 + 1 = 98.92
        (SINGLE, [cell()], "simulated", 99, 16),
        # 8 clients: 48 * 1.02 + 1 = 49.96
        (MPS2, [cell()], "simulated", 50, 16),
        # 16 clients over 3 engines: 6 on the fullest; 36 * 1.02 + 1 = 37.72
        (MPS3, [cell()], "simulated", 38, 16),
        # 81 tokens need a sixth block: 7 * 16 = 112; 112 * 1.02 + 1 = 115.24
        (SINGLE, [cell(output=17)], "vllm", 116, 16),
        # blocks of 128: 1 + 1 for each of 16; 32 * 1.02 + 1 = 33.64
        (SINGLE, [cell()], "vllm-cpu", 34, 128),
        # the largest need decides, which is neither the longest request nor the most clients: 6 * 40 = 240 -> 245.8
        (SINGLE, [cell(40), cell(2, 128, 1), cell(60, 16, 8)], "vllm", 246, 16),
    ],
)
def test_kv_holds_every_client_s_longest_request(arm, cells, backend, blocks, block_tokens):
    assert size_engine(arm, cells, MODEL, {}, backend).kv_bytes == blocks * block_tokens * 12_288


def test_every_arm_has_slots_for_all_clients_and_room_for_the_longest_request():
    cells = [cell(16, 64, 16), cell(4, 500, 12)]
    for arm in (SINGLE, MPS2):
        sizing = size_engine(arm, cells, MODEL, {}, "vllm")
        assert (sizing.max_num_seqs, sizing.max_model_len_tokens) == (16, 512 + 16)


def test_an_arm_s_arguments_outrank_the_sweep_s():
    arm = Arm("mps2", Mps(2), {"block_size": 32, "max_num_seqs": 9, "max_model_len": 1000, "kv_cache_dtype": "fp8"})
    sizing = size_engine(arm, [cell()], MODEL, {"block_size": 16, "max_num_seqs": 5}, "vllm")
    # 80 tokens are 3 blocks of 32, one to spare, 8 clients: 32 * 1.02 + 1 = 33.64; one byte a number
    assert sizing.kv_bytes == 34 * 32 * 6_144
    assert (sizing.max_num_seqs, sizing.max_model_len_tokens) == (9, 1000)


def test_a_decode_request_may_grow_beyond_what_it_was_asked_for():
    assert request_tokens(cell(kind="decode", prompt=100, output=16)) == 100 + 4096
    assert request_tokens(cell(kind="decode", prompt=100, output=5000)) == 5100
    assert request_tokens(cell(prompt=100, output=16)) == 116


def test_weights_kv_and_work_space_of_one_engine():
    memory = engine_memory(SINGLE, size_engine(SINGLE, [cell()], MODEL, {}, "vllm"), MODEL, {})
    assert memory.weights == 2 * 494_032_768
    assert memory.kv == 99 * 16 * 12_288
    # a step of 8192 tokens, gate and up of 4864 and the hidden 896, twice, 2 B; logits of 16 sequences twice, 4 B
    assert memory.context == CONTEXT_BYTES + 2 * 8192 * (2 * 4864 + 896) * 2 + 2 * 16 * 151_936 * 4
    assert memory.total == memory.weights + memory.kv + memory.context
    smaller = engine_memory(
        SINGLE, size_engine(SINGLE, [cell()], MODEL, {}, "vllm"), MODEL, {"max_num_batched_tokens": 1024}
    )
    assert memory.context - smaller.context == 2 * (8192 - 1024) * (2 * 4864 + 896) * 2
