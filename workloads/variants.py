"""Models of which every decoder layer does one half only, by name: `Qwen2.5-3B:attention-only`, `Qwen2.5-3B:mlp-only`.

They show where a gain comes from: each half alone, with the norms, the residual stream, the KV cache and the scheduling
of the full model. What is left out is replaced by the identity, so that its norm still has a reader.

A variant is another model, by its name, and neither an arm nor a field of a sweep. Arms are compared within a cell, and
full against half is not a question of sharing a GPU; as part of the model's name it enters the identity of a cell, the
grouping into boots, the memory plan, the simulation and every table by the way that all models take, and the identities
of what was measured before stay as they are.

    >>> split("Qwen/Qwen2.5-3B:mlp-only")
    ('Qwen/Qwen2.5-3B', 'mlp-only')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from orchestrator.errors import ModelError

Variant = Literal["attention-only", "mlp-only"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

# Model types with a class in `ablation_models`, which takes vLLM's own decoder layer apart.
_FAMILIES: Mapping[str, str] = {"qwen2": "Qwen2", "llama": "Llama"}
_PARTS: Mapping[Variant, str] = {"attention-only": "AttentionOnly", "mlp-only": "MLPOnly"}
# What vLLM knows them by (`architectures` of a config), which is also the name of the class. The ending matters: from
# it vLLM takes that the model generates text.
ARCHITECTURES: Mapping[str, tuple[str, Variant]] = {
    f"{family}{part}ForCausalLM": (model_type, variant)
    for model_type, family in _FAMILIES.items()
    for variant, part in _PARTS.items()
}


def split(name: str) -> tuple[str, Variant | None]:
    """The name of the full model, and the variant of it that is meant; None for the full model itself."""
    for variant in VARIANTS:
        if name.endswith(f":{variant}"):
            return name.removesuffix(f":{variant}"), variant
    return name, None


def ablated(config: Mapping[str, Any], variant: Variant, name: str) -> dict[str, Any]:
    """`config` with the architecture of `variant`, which is all that an engine needs to be told.

    Raises ModelError where the model is of a family that has no variants.
    """
    for architecture, known in ARCHITECTURES.items():
        if known == (config.get("model_type"), variant):
            return {**config, "architectures": [architecture]}
    raise ModelError(
        f"{name}: there is no {variant} variant of model type {config.get('model_type')!r}; "
        f"there is one of: {', '.join(_FAMILIES)}"
    )


def variant_of(config: Mapping[str, Any], name: str) -> Variant | None:
    """The variant whose architecture `config` names, None for any other.

    Raises ModelError where that architecture is of another model type.
    """
    for architecture in config.get("architectures") or ():
        if architecture in ARCHITECTURES:
            model_type, variant = ARCHITECTURES[architecture]
            if config.get("model_type") != model_type:
                raise ModelError(f"{name}: {architecture} is of model type {model_type}, not {config['model_type']}")
            return variant
    return None
