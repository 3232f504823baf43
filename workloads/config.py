"""What a published Hugging Face config says of its decoder, by the rules of transformers' config classes.

A config leaves out what its model type defines (Gemma 3's defaults, Qwen 2's biases): that is filled in here, and
anything that the arithmetic of `architecture.py` would count wrongly is refused rather than approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ModelError

MODEL_TYPES = ("qwen2", "qwen3", "llama", "mistral", "phi3", "gemma3", "gemma3_text")
# Gemma 3 configs leave out what equals the defaults of transformers' Gemma3TextConfig, which are the 4B model's.
GEMMA3_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "sliding_window_pattern": 6,
}


def text_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The decoder's part of a config, with the defaults that its model type leaves out.

    Raises ModelError for a model type that is not known here, a mixture of experts, or biases that are not counted.
    """
    model_type = config.get("model_type")
    experts = next((k for k in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(k)), None)
    if experts or "moe" in str(model_type) or model_type == "mixtral":
        raise ModelError(f"{name}: {experts or model_type} says mixture of experts, which is not supported")
    if model_type is None:
        raise ModelError(f"{name}: the config has no model_type, which the arithmetic needs")
    if model_type not in MODEL_TYPES:
        raise ModelError(f"{name}: model type {model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
    if model_type == "gemma3" and not isinstance(config.get("text_config"), Mapping):
        raise ModelError(f"{name}: the config has no text_config, which the arithmetic needs")
    text: dict[str, Any] = dict(config["text_config"] if model_type == "gemma3" else config)
    if model_type in ("gemma3", "gemma3_text"):
        text = {**GEMMA3_DEFAULTS, **text, "model_type": "gemma3_text"}
    if model_type in ("llama", "phi3") and text.get("num_key_value_heads") is None:
        # Both types define it so: every query head has keys and values of its own.
        text["num_key_value_heads"] = text.get("num_attention_heads")
    # Qwen 2's bias of queries, keys and values is in its code, not in its config.
    biases = [key for key in ("attention_bias", "mlp_bias") if text.get(key) and model_type != "qwen2"]
    if biases:
        raise ModelError(f"{name}: {biases[0]} is set, and biases of this model type are not counted")
    return text


def attention_windows(
    text: Mapping[str, Any], layers: int, max_position_embeddings: int, name: str
) -> tuple[int | None, int]:
    """(sliding window in tokens or None, layers that attend to the whole context).

    A window that the longest context cannot fill is none. Raises ModelError where the fields contradict each other.
    """
    model_type, window, layer_types = text["model_type"], text.get("sliding_window"), text.get("layer_types")
    if layer_types is not None:
        unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ModelError(f"{name}: layer_types names {', '.join(unknown)}, which is not supported")
        if len(layer_types) != layers:
            raise ModelError(f"{name}: layer_types names {len(layer_types)} layers of {layers}")
        full = list(layer_types).count("full_attention")
    elif model_type == "gemma3_text":
        full = layers // int(text["sliding_window_pattern"])
    elif model_type in ("qwen2", "qwen3"):
        full = min(layers, int(text.get("max_window_layers", layers))) if text.get("use_sliding_window") else layers
    elif model_type == "mistral" and "sliding_window" not in text:
        # Absent means a window of 4096 to transformers and none to later configs: better not to guess.
        raise ModelError(f"{name}: the config has no sliding_window (null for none), which the arithmetic needs")
    else:
        full = 0 if model_type in ("mistral", "phi3") and window is not None else layers
    if full == layers:
        return None, layers
    if not isinstance(window, int) or window < 1:
        raise ModelError(f"{name}: the config has sliding-window layers but no sliding_window")
    return (None, layers) if window >= max_position_embeddings else (window, full)
