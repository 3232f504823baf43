"""What an engine takes on the GPU, before anything is started: weights, KV cache, context and work space.

KV is sized so that it never binds: every client of the engine can hold its longest request at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.trial import Arm, Backend, Cell, Workload
from workloads.architecture import Architecture, bytes_per_parameter
from workloads.images import vision_bytes

GIB = 2**30

# CUDA context, loaded kernels and captured graphs of one engine: 51 GiB were in use with four Qwen2.5-1.5B engines
# of 8 GiB KV each on an H200 (driver 580, vLLM 0.25.1), which leaves 1.9 GiB an engine beside weights and KV; the
# part that grows with the batch is counted below.
CONTEXT_BYTES = int(1.4 * GIB)
# Fragmentation and whatever else the driver keeps; vLLM's own default leaves 8 % of the GPU alone.
USABLE_SHARE = 0.94
# Tokens in a KV block, vLLM's defaults; one spare block a sequence, one that vLLM keeps to itself, and 2 % for blocks
# that are on their way back to the pool.
KV_BLOCK_TOKENS: dict[Backend, int] = {"vllm": 16, "vllm-cpu": 128, "simulated": 16}
KV_SLACK = 1.02
# vLLM's default budget of one step, unless engine_args say otherwise.
MAX_NUM_BATCHED_TOKENS = 8192
# A decode window must not run out of room: tokens that a sequence may grow by beyond its prompt.
DECODE_GROWTH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class EngineSizing:
    """What one engine of an arm is started with, sized so that KV never binds in any cell of the block."""

    kv_bytes: int
    max_model_len_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes of one engine on the GPU by what they are for."""

    weights: int
    kv: int
    context: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.context


def asked_output_tokens(work: Workload) -> int:
    """Output tokens that a request asks for: in `decode` enough that none ends before its window does."""
    return max(work.output_tokens, DECODE_GROWTH_TOKENS) if work.phase == "decode" else work.output_tokens


def request_tokens(cell: Cell) -> int:
    """Longest context that one request of the cell reaches."""
    return cell.workload.prompt_tokens + asked_output_tokens(cell.workload)


def size_engine(
    arm: Arm, cells: Sequence[Cell], model: Architecture, engine_args: Mapping[str, Any], backend: Backend
) -> EngineSizing:
    """Size one engine of `arm` for the largest of `cells`; `max_num_seqs` is all of C in every arm alike."""
    merged = {**engine_args, **arm.engine_args}
    kv_dtype = str(merged.get("kv_cache_dtype", "auto"))
    element_bytes = 1.0 if kv_dtype.startswith("fp8") else bytes_per_parameter(str(merged.get("dtype", "bfloat16")))
    block_tokens = int(merged.get("block_size") or KV_BLOCK_TOKENS[backend])
    blocks = 0
    for cell in cells:
        clients = math.ceil(cell.concurrency / arm.engines)
        blocks = max(blocks, clients * (math.ceil(request_tokens(cell) / block_tokens) + 1))
    longest = max(request_tokens(cell) for cell in cells)
    return EngineSizing(
        # Whole blocks, because the engine rounds down to them.
        kv_bytes=math.ceil(blocks * KV_SLACK + 1) * block_tokens * model.kv_bytes_per_token(element_bytes),
        max_model_len_tokens=int(merged.get("max_model_len", longest + block_tokens)),
        max_num_seqs=int(merged.get("max_num_seqs", max(cell.concurrency for cell in cells))),
    )


def engine_memory(
    arm: Arm, sizing: EngineSizing, model: Architecture, engine_args: Mapping[str, Any], images: bool = False
) -> EngineMemory:
    """Bytes of one engine of `arm`; images: whether it has the model's vision tower, too.

    Work space is the larger MLP activation of a full step, twice (input and output of a layer live together), and
    float32 logits of every sequence, twice (sampling copies them).
    """
    merged = {**engine_args, **arm.engine_args}
    step_tokens = int(merged.get("max_num_batched_tokens", MAX_NUM_BATCHED_TOKENS))
    activations = 2 * step_tokens * (2 * model.intermediate_size + model.hidden_size) * 2
    logits = 2 * sizing.max_num_seqs * model.vocabulary * 4
    weight_width = bytes_per_parameter(str(merged.get("dtype", "bfloat16")), merged.get("quantization"))
    tower, work = vision_bytes(model.config, step_tokens) if images else (0, 0)
    return EngineMemory(
        weights=model.weight_bytes(weight_width) + tower,
        kv=sizing.kv_bytes,
        context=CONTEXT_BYTES + activations + logits + work,
    )
