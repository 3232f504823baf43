"""What a decoder-only model is, as arithmetic: parameters, bytes, and the work of one engine step by layer type.

Everything here follows from the published config; nothing is measured. Weight and KV bytes are for the dtype given.

Of the linear layers only the matrix multiplications are counted as FLOPs: biases, rotary embedding and the MLP's
activation are below a thousandth of them and run off the tensor cores. Bytes are the least that each kernel must move,
every operand once; caches make the true traffic of a small model less, tiling that of a large one more. Launches are
those of a model compiled by vLLM with FlashAttention, in which pointwise operations are fused into one kernel.

    >>> from workloads.catalogue import load_model
    >>> load_model("Qwen2.5-1.5B").kv_bytes_per_token()
    28672
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from orchestrator.errors import ModelError
from workloads.config import attention_windows, text_config
from workloads.variants import Variant, variant_of

# Rows and columns of the output that one thread block of a GEMM makes: 128 x 128 in CUTLASS's Hopper example (48), and
# in the middle of the tiles that cuBLAS picks from (NVIDIA, Matrix Multiplication Background User's Guide).
GEMM_TILE = 128
# Query rows of one thread block of FlashAttention-3 (hopper/tile_size.h), for head sizes of up to 64 and of more.
NARROW_TILE_ROWS, TILE_ROWS = 192, 128
# Keys of one split of a decode. Flash-Decoding (Dao et al., 2023) splits the context until the SMs are full, so this
# bounds from above how many blocks there can be: a split of two key tiles of 128 is the shortest worth its reduction.
DECODE_SPLIT_TOKENS = 256
# Square and add, residual add, scale, weight.
NORM_FLOPS_PER_ELEMENT = 5
# AWQ (Lin et al., 2023) and GPTQ (Frantar et al., 2022) checkpoints: 4-bit weights, and a 16-bit scale and a 4-bit zero
# point for each group of 128.
INT4_BYTES = (4 + (16 + 4) / 128) / 8
# What quantisation leaves alone (embedding, LM head, norms, biases) stays at 16 bits.
UNQUANTISED_BYTES = 2.0

DTYPE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float32": 4.0, "float": 4.0, "fp8": 1.0}
QUANTIZATION_BYTES = {"fp8": 1.0} | dict.fromkeys(("awq", "awq_marlin", "gptq", "gptq_marlin"), INT4_BYTES)

# Layer types that a variant leaves out; the KV cache, norms and embeddings stay.
LEFT_OUT: Mapping[Variant | None, frozenset[str]] = {
    None: frozenset(),
    "attention-only": frozenset({"mlp"}),
    "mlp-only": frozenset({"qkv", "attention", "attention_out"}),
}


def bytes_per_parameter(dtype: str, quantization: str | None = None) -> float:
    """Bytes of one weight of a linear layer, for `dtype` as in a config's torch_dtype and vLLM's `quantization`.

    int4 (AWQ, GPTQ): (4 + (16 + 4) / 128) / 8 = 0.5195, the 4 bits and the group's scale and zero point.
    Raises ModelError for a dtype or method that is not in the tables above.
    """
    table = DTYPE_BYTES if quantization is None else QUANTIZATION_BYTES
    key = dtype.removeprefix("torch.") if quantization is None else quantization
    if key not in table:
        raise ModelError(f"bytes per parameter of {key!r} are not known; known: {', '.join(table)}")
    return table[key]


@dataclass(frozen=True, slots=True)
class Matmul:
    """`count` products of (rows, depth) and (depth, columns) in one engine step, each one launch."""

    rows: int
    depth: int
    columns: int
    count: int

    @property
    def tiles(self) -> int:
        """Thread blocks of one launch."""
        return ceil(self.rows / GEMM_TILE) * ceil(self.columns / GEMM_TILE)

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.depth * self.columns * self.count


@dataclass(frozen=True, slots=True)
class Work:
    """The work that one layer type does in one engine step, summed over the model's layers.

    layer_type: qkv | attention | attention_out | mlp | norm | embedding | lm_head | sampling
    launches: kernels launched for it in the step; flops: multiply and add counted as two;
    weight_bytes, kv_bytes, activation_bytes: least traffic to device memory, each operand once;
    tiles: thread blocks of one launch (its independent parallel pieces), which says how many SMs it can fill;
    matmuls: those among its launches; pointwise_bytes: of activation_bytes, what kernels move that do little else, and
    that run after the matmuls and not beside them; flops_a_key: what one more key adds for every query of
    a prefill, and for every row of the tiles of decodes beside it; idle_row_flops: what tensor cores do beside `flops`
    for rows of tiles that hold no query.
    """

    layer_type: str
    launches: int
    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    tiles: float
    matmuls: tuple[Matmul, ...] = ()
    pointwise_bytes: float = 0.0
    flops_a_key: float = 0.0
    idle_row_flops: float = 0.0

    @property
    def memory_bytes(self) -> float:
        """Weights, KV and activations together."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes


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
    """A decoder-only transformer as its config states it. Sizes in elements; `sliding_window` in tokens or None.

    variant: the half of each layer that runs, if not the whole; parameters and work count only that, and KV all.
    """

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
    config: Mapping[str, Any]  # the config as published, for the engine; of a variant with its architecture
    variant: Variant | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> Architecture:
        """Read a Hugging Face config. Of a multimodal Gemma 3 it is the text part that is described.

        Raises ModelError where the model type is not a gated-MLP decoder known here, where the model is a mixture of
        experts, or where a field is missing or does not fit.
        """
        text = text_config(config, name)
        model_type = str(text["model_type"])

        def size(key: str) -> int:
            value = text.get(key)
            if value is None:
                raise ModelError(f"{name}: the config has no {key}, which the arithmetic needs")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"{name}: {key} must be a whole number above zero, not {value!r}")
            return value

        hidden, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
        if text.get("head_dim") is None and hidden % heads:
            raise ModelError(f"{name}: no head_dim, and hidden_size is not a multiple of num_attention_heads")
        max_position_embeddings = size("max_position_embeddings")
        sliding_window, full_attention_layers = attention_windows(text, layers, max_position_embeddings, name)
        return cls(
            name=name,
            model_type=model_type,
            hidden_size=hidden,
            layers=layers,
            attention_heads=heads,
            kv_heads=size("num_key_value_heads"),
            head_dim=hidden // heads if text.get("head_dim") is None else size("head_dim"),
            intermediate_size=size("intermediate_size"),
            vocabulary=size("vocab_size"),
            tied_embeddings=bool(text.get("tie_word_embeddings", False)),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type in ("qwen3", "gemma3_text"),
            max_position_embeddings=max_position_embeddings,
            sliding_window=sliding_window,
            full_attention_layers=full_attention_layers,
            config=config,
            variant=variant_of(config, name),
        )

    @property
    def _has_attention(self) -> bool:
        return "attention" not in LEFT_OUT[self.variant]

    @property
    def _has_mlp(self) -> bool:
        return "mlp" not in LEFT_OUT[self.variant]

    @property
    def _query_size(self) -> int:
        return self.attention_heads * self.head_dim

    @property
    def _kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def _norms_per_layer(self) -> int:
        # Gemma 3 also normalises what attention and MLP give back to the residual stream.
        return 4 if self.model_type == "gemma3_text" else 2

    def _linear_parameters(self) -> int:
        attention = self.hidden_size * (2 * self._query_size + 2 * self._kv_size) * self._has_attention
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size * self._has_mlp)

    def parameters(self) -> int:
        """Parameter count, tied embeddings once."""
        layer = self._norms_per_layer * self.hidden_size
        if self._has_attention:
            layer += (self._query_size + 2 * self._kv_size) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        embeddings = self.vocabulary * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self._linear_parameters() + self.layers * layer + self.hidden_size + embeddings

    def weight_bytes(self, bytes_per_parameter: float = 2.0) -> int:
        """Bytes of the weights on the GPU (a tied embedding is stored once).

        Below two bytes only the linear layers shrink: embedding, LM head, norms and biases keep 16 bits, as in the
        published AWQ, GPTQ and FP8 checkpoints.
        """
        linear = self._linear_parameters()
        rest = self.parameters() - linear
        return round(linear * bytes_per_parameter + rest * max(bytes_per_parameter, UNQUANTISED_BYTES))

    def kv_bytes_per_token(self, bytes_per_element: float = 2.0) -> int:
        """Bytes of keys and values that one token holds in every layer, sliding-window layers counted in full."""
        return round(self.layers * 2 * self._kv_size * bytes_per_element)

    def step_work(
        self, batch: Batch, bytes_per_element: float = 2.0, bytes_per_parameter: float | None = None
    ) -> tuple[Work, ...]:
        """The work of one engine step by layer type, of those that the model has; an empty batch does none.

        bytes_per_element is for activations and KV, and for weights too unless bytes_per_parameter says otherwise.
        The LM head runs on the last token of every sequence; a chunk counts as sampling even where its prompt goes on
        in the next step, as vLLM computes its logits and throws them away. Sampling is greedy.
        """
        if batch.tokens == 0:
            return ()
        tokens, sequences, hidden, b = batch.tokens, batch.sequences, self.hidden_size, bytes_per_element
        w = b if bytes_per_parameter is None else bytes_per_parameter
        w_rest = max(w, UNQUANTISED_BYTES)
        query, kv, mlp = self._query_size, self._kv_size, self.intermediate_size
        layers, vocabulary = self.layers, self.vocabulary
        qkv_rest = (query + 2 * kv) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        # Two norms of a layer take in the residual add (two reads, two writes); Gemma's other two read and write once.
        norm_elements = layers * (2 * 4 + (self._norms_per_layer - 2) * 2) + 4
        norms = layers * self._norms_per_layer + 1
        full = (
            Work("embedding", 1, 0.0, min(tokens, vocabulary) * hidden * w_rest, 0.0, tokens * hidden * b, tokens),
            Work(
                "qkv",
                2 * layers,  # GEMM with its bias; rotary embedding fused with the norm of queries and keys
                2.0 * layers * tokens * hidden * (query + 2 * kv),
                layers * (hidden * (query + 2 * kv) * w + qkv_rest * w_rest),
                0.0,
                layers * tokens * (hidden + query + 2 * kv + 2 * (query + kv)) * b,
                _gemm_tiles(tokens, query + 2 * kv),
                (Matmul(tokens, hidden, query + 2 * kv, layers),),
                layers * tokens * 2 * (query + kv) * b,
            ),
            self.attention_work(batch, b),
            Work(
                "attention_out",
                layers,
                2.0 * layers * tokens * query * hidden,
                layers * query * hidden * w,
                0.0,
                layers * tokens * (query + hidden) * b,
                _gemm_tiles(tokens, hidden),
                (Matmul(tokens, query, hidden, layers),),
            ),
            Work(
                "mlp",
                3 * layers,  # gate and up as one GEMM; activation; down
                6.0 * layers * tokens * hidden * mlp,
                layers * 3 * hidden * mlp * w,
                0.0,
                layers * tokens * (2 * hidden + 6 * mlp) * b,
                _gemm_tiles(tokens, 2 * mlp),
                (Matmul(tokens, hidden, 2 * mlp, layers), Matmul(tokens, mlp, hidden, layers)),
                layers * tokens * 3 * mlp * b,
            ),
            Work(
                "norm",
                norms,
                float(NORM_FLOPS_PER_ELEMENT * norms * tokens * hidden),
                norms * hidden * w_rest,
                0.0,
                norm_elements * tokens * hidden * b,
                tokens,
            ),
            Work(
                "lm_head",
                2,  # gather of the last tokens; GEMM
                2.0 * sequences * hidden * vocabulary,
                hidden * vocabulary * w_rest,
                0.0,
                sequences * (3 * hidden + vocabulary) * b,
                _gemm_tiles(sequences, vocabulary),
                (Matmul(sequences, hidden, vocabulary, 1),),
                sequences * 2 * hidden * b,
            ),
            Work(
                "sampling",
                2,  # logits to 32 bits; arg max
                float(sequences * vocabulary),
                0.0,
                0.0,
                sequences * vocabulary * (b + 2 * 4),
                sequences,
            ),
        )
        return tuple(work for work in full if work.layer_type not in LEFT_OUT[self.variant])

    def layer_resources(
        self, kind: Literal["prefill", "decode"], context_tokens: int, sequences: int, bytes_per_element: float = 2.0
    ) -> dict[str, tuple[float, float]]:
        """(FLOPs, bytes) of one step by layer type, for `sequences` sequences that are all alike.

        prefill: whole prompts of context_tokens; decode: one token each after context_tokens.
        """
        if kind == "prefill":
            batch = Batch(0, 0, ((context_tokens, 0),) * sequences)
        else:
            batch = Batch(sequences, sequences * context_tokens)
        return {work.layer_type: (work.flops, work.memory_bytes) for work in self.step_work(batch, bytes_per_element)}

    def attention_work(self, batch: Batch, bytes_per_element: float = 2.0) -> Work:
        """The part of `step_work` that looks at contexts; all the rest follows from tokens and sequences alone.

        Scores and values only: two multiply-adds per head, element of the head and (query, key) pair.
        Of the decode contexts only the sum is known, so in sliding-window layers all are taken to be equally long.
        One launch writes the new KV, one attends (chunks and decodes together), one reduces the splits of decodes.
        An MLP-only model attends to nothing and writes no KV.
        """
        if not self._has_attention:
            return Work("attention", 0, 0.0, 0.0, 0.0, 0.0, 0.0)
        kinds = [(self.full_attention_layers, None), (self.layers - self.full_attention_layers, self.sliding_window)]
        flops = idle = kv_read = blocks = 0.0
        launches = 0
        # Beside a prompt one launch attends for decodes, too, in tiles of its size: the query heads of one KV head are
        # all that such a tile holds of a decode. Alone, decodes are bound by reading KV, whatever their tiles.
        rows = NARROW_TILE_ROWS if self.head_dim <= 64 else TILE_ROWS
        idle_rows = rows * self.kv_heads / self.attention_heads - 1 if batch.prefill else 0.0
        beside = batch.decode_sequences * (1 + idle_rows) if batch.prefill else 0.0
        tile_queries = beside + sum(new for new, _ in batch.prefill)
        for layers, window in kinds:
            if layers == 0:
                continue
            pairs, entries, splits = 0.0, 0.0, 0
            for new, cached in batch.prefill:
                pairs += _causal_pairs(new, cached, window)
                entries += new + (cached if window is None else min(cached, window - 1))
                blocks += layers * ceil(new / rows) * self.attention_heads
            if batch.decode_sequences:
                context = batch.decode_context_tokens / batch.decode_sequences
                context = context if window is None else min(context, window)
                pairs += batch.decode_sequences * context
                idle += layers * 4.0 * self._query_size * idle_rows * batch.decode_sequences * context
                entries += batch.decode_sequences * context
                # The query heads of one KV head share a block, so that KV is read once (FlashAttention's pack_gqa).
                splits = max(1, ceil(context / DECODE_SPLIT_TOKENS))
                blocks += layers * batch.decode_sequences * self.kv_heads * splits
            flops += layers * 4.0 * self._query_size * pairs
            kv_read += layers * entries
            launches += layers * (3 if splits > 1 else 2)
        tokens, b = batch.tokens, bytes_per_element
        return Work(
            "attention",
            launches,
            flops,
            0.0,
            2.0 * self._kv_size * b * (kv_read + self.layers * tokens),
            2.0 * self.layers * tokens * (self._query_size + self._kv_size) * b,
            blocks / self.layers,
            flops_a_key=4.0 * self._query_size * self.layers * tile_queries,
            idle_row_flops=idle,
        )


def _gemm_tiles(rows: int, columns: int) -> int:
    return ceil(rows / GEMM_TILE) * ceil(columns / GEMM_TILE)


def _causal_pairs(new: int, cached: int, window: int | None) -> float:
    """(query, key) pairs of `new` tokens after `cached` ones: token i sees cached + i keys, at most `window`."""
    growing = new if window is None else min(new, max(0, window - cached))
    return growing * cached + growing * (growing + 1) / 2 + (new - growing) * (window or 0)
