"""Attention-only and MLP-only models of the Qwen 2 and Llama families, for vLLM (0.25.1 and 0.32.0).

Everything is vLLM's own except the forward of a decoder layer. A layer is built whole, and then the half that is not
wanted is taken out:

    full               attention-only        mlp-only
    norm (+ residual)  norm (+ residual)     norm (+ residual)
    attention block    attention block       -
    norm (+ residual)  norm (+ residual)     norm (+ residual)
    MLP                -                     MLP

"Attention block" is the projections, the rotary embedding and the attention itself. The identity stands where a half is
missing: what the norm gives goes on, so that no norm is dead code to the compiler and activations stay of order one.

An MLP-only layer keeps its `Attention`, which has no weights: it holds the layer's KV cache, so that the engine plans
KV, schedules and builds attention metadata as for the full model. Without it vLLM would take the model for one that is
free of attention, with no KV to admit requests by and, in 0.25.1, another model runner. It is never called, and KV is
never written.

Two things differ that cannot be helped. vLLM splits a compiled model at its attention: where nothing calls it, the
model is one graph, so that a step in mode `piecewise` launches one graph instead of one a layer and attention between.
And the compiler may fuse two norms between which nothing is left.

The seam is `LlamaForCausalLM._init_model`, for both families, since its head computes what that of Qwen 2 does, and the
argument of the stack of layers that names their class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer, Qwen2Model

Streams = tuple[torch.Tensor, torch.Tensor]


def _normed(norm: nn.Module, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> Streams:
    """What goes into a half of a layer, and the residual stream beside it; None before the first layer."""
    if residual is None:
        return norm(hidden_states), hidden_states
    normed, summed = norm(hidden_states, residual)
    return normed, summed


class AttentionOnlyLayer(nn.Module):
    """A decoder layer of vLLM (the class that this one is mixed into) without its MLP."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.mlp

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> Streams:
        hidden_states, residual = _normed(self.input_layernorm, hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        return _normed(self.post_attention_layernorm, hidden_states, residual)


class MLPOnlyLayer(nn.Module):
    """A decoder layer of vLLM (the class that this one is mixed into) whose attention only holds KV."""

    self_attn: nn.Module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        holder = nn.Module()
        holder.attn = self.self_attn.attn
        self.self_attn = holder

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> Streams:
        hidden_states, residual = _normed(self.input_layernorm, hidden_states, residual)
        hidden_states, residual = _normed(self.post_attention_layernorm, hidden_states, residual)
        return self.mlp(hidden_states), residual


class Qwen2AttentionOnlyLayer(AttentionOnlyLayer, Qwen2DecoderLayer):
    pass


class Qwen2MLPOnlyLayer(MLPOnlyLayer, Qwen2DecoderLayer):
    pass


class LlamaAttentionOnlyLayer(AttentionOnlyLayer, LlamaDecoderLayer):
    pass


class LlamaMLPOnlyLayer(MLPOnlyLayer, LlamaDecoderLayer):
    pass


class Qwen2AttentionOnlyForCausalLM(LlamaForCausalLM):
    def _init_model(self, vllm_config: Any, prefix: str = "", **_: Any) -> nn.Module:
        return Qwen2Model(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=Qwen2AttentionOnlyLayer)


class Qwen2MLPOnlyForCausalLM(LlamaForCausalLM):
    def _init_model(self, vllm_config: Any, prefix: str = "", **_: Any) -> nn.Module:
        return Qwen2Model(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=Qwen2MLPOnlyLayer)


class LlamaAttentionOnlyForCausalLM(LlamaForCausalLM):
    def _init_model(self, vllm_config: Any, prefix: str = "", **_: Any) -> nn.Module:
        return LlamaModel(vllm_config=vllm_config, prefix=prefix, layer_type=LlamaAttentionOnlyLayer)


class LlamaMLPOnlyForCausalLM(LlamaForCausalLM):
    def _init_model(self, vllm_config: Any, prefix: str = "", **_: Any) -> nn.Module:
        return LlamaModel(vllm_config=vllm_config, prefix=prefix, layer_type=LlamaMLPOnlyLayer)
