"""What a decoder-only model is, as arithmetic: parameters, bytes, and the work of one engine step by layer type.

Everything here follows from the published config; nothing is measured. Weight and KV bytes are for the dtype given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Work:
    """The work that one layer type does in one engine step, summed over the model's layers.

    layer_type: qkv | attention | attention_out | mlp | norm | embedding | lm_head | sampling
    launches: kernels launched for it in the step; flops: multiply and add counted as two;
    weight_bytes, kv_bytes, activation_bytes: least traffic to device memory, each operand once;
    tiles: thread blocks of one launch (its independent parallel pieces), which says how many SMs it can fill.
    """

    layer_type: str
    launches: int
    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    tiles: float


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine step. prefill: (new tokens, tokens already in the KV cache) a chunk.

    decode_sequences sequences make one token each and read decode_context_tokens KV entries in all.
    """

    decode_sequences: int
    decode_context_tokens: int
    prefill: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        return self.decode_sequences + sum(new for new, _ in self.prefill)

    @property
    def sequences(self) -> int:
        return self.decode_sequences + len(self.prefill)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer as its config states it. Sizes in elements; `sliding_window` in tokens or None."""

    name: str
    model_type: str
    hidden_size: int
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    max_position_embeddings: int
    sliding_window: int | None
    full_attention_layers: int  # layers that attend to the whole context; the others see sliding_window tokens
    config: Mapping[str, Any]  # the config as published, for the engine

    def parameters(self) -> int:
        """Parameter count, tied embeddings once."""
        raise NotImplementedError

    def weight_bytes(self, bytes_per_parameter: float = 2.0) -> int:
        """Bytes of the weights on the GPU (a tied embedding is stored once)."""
        raise NotImplementedError

    def kv_bytes_per_token(self, bytes_per_element: float = 2.0) -> int:
        """Bytes of keys and values that one token holds in every layer, sliding-window layers counted in full."""
        raise NotImplementedError

    def step_work(self, batch: Batch, bytes_per_element: float = 2.0) -> tuple[Work, ...]:
        """The work of one engine step by layer type."""
        raise NotImplementedError
