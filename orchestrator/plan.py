"""Repeats grouped into blocks: one GPU, one model, one set of boots; what fits in memory and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.trial import Arm, Backend, Repeat


@dataclass(frozen=True, slots=True)
class EngineSizing:
    """What one engine of an arm is started with, sized so that KV never binds in any cell of the block."""

    kv_bytes: int
    max_model_len_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class Block:
    """Repeats of one model that share their boots on one GPU.

    residency: `resident` loads the engines of every arm at once; `alone` boots and measures one arm after another.
    sizing: by arm name. expected_gpu_s: what the plan thinks it costs.
    """

    block_id: str
    backend: Backend
    gpu_kind: str
    model: str
    engine_args: Mapping[str, Any]
    arms: tuple[Arm, ...]
    repeats: tuple[Repeat, ...]
    residency: Literal["resident", "alone"]
    sizing: Mapping[str, EngineSizing]
    expected_gpu_s: float
