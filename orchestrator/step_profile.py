"""Where the time of one step goes, by part of the model, from the kernels that it launches.

    profile(model, run, steps)        # seconds a step: {"gate_up_proj": ..., "attention": ...}

The step is launched kernel by kernel under PyTorch's profiler, since a CUDA graph would hide which operator a kernel
belongs to; the kernels are the same. A matrix product is known by its weight: its shape is that of one parameter of the
model, whose module gives the name. Parts of one shape share a name. All else goes by the names of operator and kernel.
The sum is the time that kernels run: what a step takes beyond it lies between kernels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul")
# By operator or kernel, the first that matches; names as PyTorch 2.11, FlashAttention 2 and 3, and vLLM 0.25 give them.
PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("kv_write", re.compile(r"reshape_and_cache|cache_flash|concat_and_cache")),
    ("attention", re.compile(r"flash|fmha|attention|attn", re.IGNORECASE)),
    ("copies", re.compile(r"memcpy|memset", re.IGNORECASE)),
    (
        "elementwise",
        re.compile(r"triton_|elementwise|norm|rotary|silu|act_and_mul|embedding|index|cat|copy|fill|add|mul"),
    ),
)
UNKNOWN_PRODUCT = "other_products"
OTHER = "other"


def weight_parts(model: Any) -> dict[frozenset[int], str]:
    """Parts of the model by the two sizes of their weight: `qkv_proj`, `down_proj`, `lm_head`, as vLLM calls them."""
    found: dict[frozenset[int], set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.endswith(".weight"):
            module = name.split(".")[-2]
            # A head that is tied to the embedding multiplies by the embedding's weight; looking a row up is no product.
            found[frozenset(parameter.shape)].add("lm_head" if module == "embed_tokens" else module)
    return {sizes: "|".join(sorted(names)) for sizes, names in found.items()}


def part_of(operator: str, shapes: Iterable[Any], kernel: str, parts: Mapping[frozenset[int], str]) -> str:
    """The part of the model that a kernel works for. shapes: of the operator's inputs, empty where it has none."""
    if operator in MATRIX_PRODUCTS:
        # Activations, weight, and where compiled code says so the result; a bias has one dimension.
        matrices = [frozenset(shape) for shape in shapes if len(shape) == 2]
        return parts.get(matrices[1], UNKNOWN_PRODUCT) if len(matrices) > 1 else UNKNOWN_PRODUCT
    for part, pattern in PARTS:
        if pattern.search(kernel) or pattern.search(operator):
            return part
    return OTHER


def profile(model: Any, run: Callable[[], Any], steps: int) -> dict[str, float]:
    """Seconds a step by part, as a mean over `steps` runs; of the CPU's own operators where there is no GPU."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    run()
    if cuda:
        torch.cuda.synchronize()  # kernels that still run when the profile begins would be in it
    with torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        for _ in range(steps):
            run()
        if cuda:
            torch.cuda.synchronize()
    parts = weight_parts(model)
    spent_us: dict[str, float] = defaultdict(float)
    on_device_us = 0.0
    for event in profiler.events():
        if event.is_user_annotation:  # a range, whose kernels come by themselves
            continue
        if event.device_type == DeviceType.CUDA:
            on_device_us += event.time_range.elapsed_us()
            continue
        kernels = (
            [(kernel.name, kernel.duration) for kernel in event.kernels] if cuda else [("", event.self_cpu_time_total)]
        )
        for name, duration_us in kernels:
            spent_us[part_of(event.name, event.input_shapes, name, parts)] += duration_us
    if cuda:  # kernels that no operator owns up to
        spent_us[OTHER] += max(0.0, on_device_us - sum(spent_us.values()))
    return {part: total_us / steps / 1e6 for part, total_us in sorted(spent_us.items())}
