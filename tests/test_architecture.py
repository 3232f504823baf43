"""The arithmetic against hand counts and against loops that walk every token, head and key one by one."""

import math

import pytest

from orchestrator.errors import ModelError
from workloads.architecture import INT4_BYTES, Architecture, Batch, Work, bytes_per_parameter
from workloads.catalogue import CATALOGUE, load_model

LAYER_TYPES = {"qkv", "attention", "attention_out", "mlp", "norm", "embedding", "lm_head", "sampling"}
TINY = {
    "model_type": "qwen2",
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def tiny(**changes: object) -> Architecture:
    return Architecture.from_config({**TINY, **changes}, "tiny")


def by_type(model: Architecture, batch: Batch, **sizes: float) -> dict[str, Work]:
    return {work.layer_type: work for work in model.step_work(batch, **sizes)}


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """Two for each multiply-add, counted one by one."""
    return sum(2 for _ in range(rows) for _ in range(columns) for _ in range(inner))


def attention_flops(model: Architecture, window: int | None, queries: list[int]) -> int:
    """`queries`: how many keys each query position sees, itself included, before any window."""
    flops = 0
    for seen in queries:
        for key in range(seen):
            if window is None or seen - key <= window:
                flops += model.attention_heads * model.head_dim * 2 * 2  # a score and a weighted value
    return flops


@pytest.mark.parametrize("name", CATALOGUE)
def test_weight_bytes_are_two_a_parameter_in_bf16(name: str) -> None:
    model = load_model(name)
    assert model.weight_bytes() == 2 * model.parameters()
    assert model.weight_bytes(4.0) == 4 * model.parameters()


def test_quantised_weights_leave_embedding_norms_and_biases_at_16_bits() -> None:
    linear = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 20)
    rest = 2 * 50 * 8 + 3 * (2 * 8 + 8 + 4 + 4) + 8
    assert tiny().parameters() == linear + rest
    assert tiny().weight_bytes(1.0) == linear + 2 * rest
    # Qwen2.5-7B-Instruct-AWQ is published with 5.58 GB of weights.
    assert load_model("Qwen2.5-7B").weight_bytes(bytes_per_parameter("float16", "awq")) == pytest.approx(
        5.58e9, rel=0.01
    )


def test_bytes_per_parameter() -> None:
    assert bytes_per_parameter("bfloat16") == bytes_per_parameter("torch.float16") == 2
    assert bytes_per_parameter("float32") == 4
    assert bytes_per_parameter("bfloat16", "fp8") == bytes_per_parameter("fp8") == 1
    assert bytes_per_parameter("float16", "gptq") == INT4_BYTES == 0.51953125
    with pytest.raises(ModelError, match=r"'int3'.*awq"):
        bytes_per_parameter("float16", "int3")
    with pytest.raises(ModelError, match=r"'float12'.*bfloat16"):
        bytes_per_parameter("float12")


def test_kv_bytes_per_token_by_hand() -> None:
    assert load_model("Qwen2.5-1.5B").kv_bytes_per_token() == 28 * 2 * 2 * 128 * 2 == 28_672
    assert load_model("Llama-3.1-8B").kv_bytes_per_token() == 32 * 2 * 8 * 128 * 2 == 131_072
    assert load_model("Gemma-3-1B").kv_bytes_per_token() == 26 * 2 * 1 * 256 * 2 == 26_624
    assert load_model("Llama-3.1-8B").kv_bytes_per_token(1.0) == 65_536


def test_flops_of_a_mixed_step_match_loops() -> None:
    model = tiny()
    batch = Batch(decode_sequences=2, decode_context_tokens=7 + 7, prefill=((5, 3), (4, 0)))
    tokens, sequences = 2 + 5 + 4, 2 + 2
    assert (batch.tokens, batch.sequences) == (tokens, sequences)
    work = by_type(model, batch)
    assert set(work) == LAYER_TYPES
    assert work["qkv"].flops == 3 * matmul_flops(tokens, 8, 8 + 4 + 4)
    assert work["attention_out"].flops == 3 * matmul_flops(tokens, 8, 8)
    assert work["mlp"].flops == 3 * (2 * matmul_flops(tokens, 8, 20) + matmul_flops(tokens, 20, 8))
    assert work["lm_head"].flops == matmul_flops(sequences, 8, 50)
    seen = [7, 7] + [3 + i + 1 for i in range(5)] + [i + 1 for i in range(4)]
    assert work["attention"].flops == 3 * attention_flops(model, None, seen)


@pytest.mark.parametrize(("new", "cached"), [(1, 0), (3, 2), (6, 0), (6, 3), (5, 9), (1, 30)])
def test_sliding_window_layers_see_no_more_than_the_window(new: int, cached: int) -> None:
    model = tiny(sliding_window=6, use_sliding_window=True, max_window_layers=1)
    assert (model.sliding_window, model.full_attention_layers) == (6, 1)
    seen = [cached + i + 1 for i in range(new)]
    expected = attention_flops(model, None, seen) + 2 * attention_flops(model, 6, seen)
    work = by_type(model, Batch(0, 0, ((new, cached),)))["attention"]
    assert work.flops == expected
    read = {key for seen_keys in seen for key in range(max(0, seen_keys - 6), seen_keys)}
    assert work.kv_bytes == 2 * 4 * 2 * ((cached + new) + 2 * len(read) + 3 * new)
    decode = by_type(model, Batch(2, 2 * (cached + new)))["attention"]
    assert decode.flops == 2 * (attention_flops(model, None, seen[-1:]) + 2 * attention_flops(model, 6, seen[-1:]))


def test_bytes_of_a_decode_step_by_hand() -> None:
    work = by_type(tiny(), Batch(2, 14))
    assert work["qkv"].weight_bytes == 3 * 2 * (8 * 16 + 16)
    assert work["attention_out"].weight_bytes == 3 * 2 * 8 * 8
    assert work["mlp"].weight_bytes == 3 * 2 * 3 * 8 * 20
    assert work["mlp"].activation_bytes == 3 * 2 * 2 * (8 + 40 + 40 + 20 + 20 + 8)
    assert work["lm_head"].weight_bytes == 2 * 50 * 8
    assert work["embedding"].weight_bytes == 2 * 2 * 8
    assert work["norm"].weight_bytes == 2 * 8 * (3 * 2 + 1)
    assert work["attention"].kv_bytes == 3 * 2 * 4 * 2 * (14 + 2)
    assert sum(w.weight_bytes for w in work.values()) == tiny().weight_bytes() - 2 * (50 - 2) * 8


def test_weights_may_be_smaller_than_activations() -> None:
    full, int4 = (by_type(tiny(), Batch(1, 5), bytes_per_parameter=size) for size in (2.0, INT4_BYTES))
    assert int4["mlp"].weight_bytes == full["mlp"].weight_bytes * INT4_BYTES / 2
    assert int4["lm_head"].weight_bytes == full["lm_head"].weight_bytes
    assert int4["attention"] == full["attention"]


def test_launches_of_a_compiled_model() -> None:
    model = load_model("Qwen2.5-1.5B")
    prefill, short, long = (
        by_type(model, batch) for batch in (Batch(0, 0, ((512, 0),)), Batch(8, 8 * 100), Batch(8, 8 * 4096))
    )
    assert {key: work.launches for key, work in prefill.items()} == {
        "embedding": 1,
        "qkv": 2 * 28,
        "attention": 2 * 28,
        "attention_out": 28,
        "mlp": 3 * 28,
        "norm": 2 * 28 + 1,
        "lm_head": 2,
        "sampling": 2,
    }
    assert short["attention"].launches == 2 * 28
    assert long["attention"].launches == 3 * 28  # the splits of a long context are reduced by a kernel of their own
    assert by_type(load_model("Gemma-3-4B"), Batch(1, 10))["norm"].launches == 4 * 34 + 1


def test_the_products_of_a_layer_type_are_all_of_its_flops_and_tiles() -> None:
    batch = Batch(16, 16 * 1000, ((300, 0), (100, 50)))
    for name in ("Qwen2.5-1.5B", "Gemma-3-4B", "Llama-3.1-8B"):
        work = by_type(load_model(name), batch)
        for layer_type in ("qkv", "attention_out", "mlp", "lm_head"):
            own = work[layer_type]
            assert sum(matmul.flops for matmul in own.matmuls) == pytest.approx(own.flops, rel=1e-12)
            assert max(matmul.tiles for matmul in own.matmuls) == own.tiles
            assert 0 <= own.pointwise_bytes < own.activation_bytes
        assert not any(work[name].matmuls for name in ("attention", "norm", "embedding", "sampling"))
    down = by_type(load_model("Qwen2.5-1.5B"), batch)["mlp"].matmuls[1]
    assert (down.rows, down.depth, down.columns, down.count) == (416, 8960, 1536, 28)


def test_one_more_key_for_every_query_of_a_prefill() -> None:
    model = load_model("Qwen2.5-1.5B")
    cached = [by_type(model, Batch(0, 0, ((300, past), (100, past))))["attention"] for past in (0, 1)]
    assert cached[1].flops - cached[0].flops == cached[0].flops_a_key == cached[1].flops_a_key
    assert by_type(model, Batch(4, 40))["attention"].flops_a_key == 0


@pytest.mark.parametrize(("name", "rows"), [("Qwen2.5-1.5B", 128), ("Qwen2.5-0.5B", 192)])
def test_beside_a_prompt_decodes_are_attended_for_in_whole_tiles(name: str, rows: int) -> None:
    model = load_model(name)
    alone, beside = (by_type(model, Batch(4, 4 * 1000, prompts))["attention"] for prompts in ((), ((300, 0),)))
    assert alone.idle_row_flops == 0
    queries = model.attention_heads / model.kv_heads
    assert beside.idle_row_flops == pytest.approx(alone.flops * (rows / queries - 1))
    longer = by_type(model, Batch(4, 4 * 1001, ((300, 1),)))["attention"]
    more = longer.flops + longer.idle_row_flops - beside.flops - beside.idle_row_flops
    assert more == pytest.approx(beside.flops_a_key)


def test_tiles_are_the_thread_blocks_of_one_launch() -> None:
    model = load_model("Qwen2.5-1.5B")
    prefill = by_type(model, Batch(0, 0, ((300, 0), (100, 50))))
    assert prefill["qkv"].tiles == 4 * 16  # 400 tokens by 2,048 columns
    assert prefill["mlp"].tiles == 4 * 140  # 17,920 columns of gate and up
    assert prefill["lm_head"].tiles == 1 * 1187
    assert prefill["attention"].tiles == (3 + 1) * 12
    decode = by_type(model, Batch(16, 16 * 1000))
    assert decode["attention"].tiles == 16 * 2 * 4
    assert decode["attention_out"].tiles == 1 * 12
    gemma = by_type(load_model("Gemma-3-4B"), Batch(4, 4 * 8192))["attention"]
    assert gemma.tiles == pytest.approx(4 * 4 * (5 * 32 + 29 * 4) / 34)


def exponent(kind: str, layer_type: str, column: int) -> float:
    """Slope of the logarithm of FLOPs (0) or bytes (1) over context, between long contexts."""
    model = load_model("Llama-3.1-8B")
    low, high = (model.layer_resources(kind, tokens, 1)[layer_type][column] for tokens in (32_768, 65_536))  # type: ignore[arg-type]
    return math.log2(high / low)


def test_scaling_with_context() -> None:
    assert exponent("prefill", "mlp", 0) == pytest.approx(1)
    assert exponent("prefill", "attention", 0) == pytest.approx(2, abs=0.001)
    assert exponent("decode", "attention", 0) == pytest.approx(1)
    assert exponent("decode", "attention", 1) == pytest.approx(1, abs=0.001)
    assert exponent("decode", "mlp", 0) == exponent("decode", "mlp", 1) == 0


def test_resources_scale_with_the_batch_but_weights_are_read_once() -> None:
    model = load_model("Llama-3.1-8B")
    one, many = (model.layer_resources("decode", 1000, sequences) for sequences in (1, 64))
    assert many["mlp"][0] == 64 * one["mlp"][0]
    assert many["attention"][1] == 64 * one["attention"][1]
    assert many["mlp"][1] < 1.1 * one["mlp"][1]


def test_an_empty_step_does_no_work() -> None:
    assert tiny().step_work(Batch(0, 0)) == ()


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "model_type"])
def test_a_missing_field_is_named(key: str) -> None:
    config = {k: v for k, v in TINY.items() if k != key}
    with pytest.raises(ModelError, match=f"tiny: the config has no {key}"):
        Architecture.from_config(config, "tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 128}, "num_experts says mixture of experts"),
        ({"model_type": "mixtral"}, "mixtral says mixture of experts"),
        ({"model_type": "llama", "num_local_experts": 8}, "num_local_experts says mixture of experts"),
        ({"model_type": "mamba2"}, "'mamba2' is not supported; supported: qwen2, "),
        ({"model_type": "gemma3"}, "no text_config"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias is set"),
        ({"model_type": "mistral"}, "no sliding_window"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number above zero, not '3'"),
        ({"hidden_size": 10}, "not a multiple of num_attention_heads"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
        ({"layer_types": ["full_attention"]}, "names 1 layers of 3"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "no sliding_window"),
    ],
)
def test_what_the_arithmetic_does_not_cover_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tiny(**changes)


def test_windows_by_model_type() -> None:
    def windows(**changes: object) -> tuple[int | None, int]:
        model = tiny(**changes)
        return model.sliding_window, model.full_attention_layers

    assert windows(sliding_window=6, use_sliding_window=False) == (None, 3)
    assert windows(sliding_window=6, model_type="mistral") == (6, 0)
    assert windows(sliding_window=None, model_type="mistral") == (None, 3)
    assert windows(sliding_window=4096, model_type="phi3") == (None, 3)  # longer than any context
    assert windows(sliding_window=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"]) == (6, 1)


def test_llama_without_kv_heads_is_multi_head_attention() -> None:
    config = {k: v for k, v in TINY.items() if k != "num_key_value_heads"} | {"model_type": "llama"}
    assert Architecture.from_config(config, "old").kv_heads == 4
