"""Every number of the simulated GPU that is not in a data sheet, with its source and its plausible range, in one table.

None was fitted to a throughput of several engines on one GPU, published or our own: sources are data sheets, kernel
and host measurements, single engines of the measured record, code and documentation, and where there is none the
source says `assumption`. What depends on the GPU kind (peak rates, SMs, caches, power limit) stands in
`orchestrator.gpus`.
"""

from __future__ import annotations

from dataclasses import dataclass

# Goes up when the model changes what it says; stored with every boot.
MODEL_VERSION = "6"


@dataclass(frozen=True, slots=True)
class Constant:
    """One number: its value in `unit`, the range it may plausibly lie in, and where it comes from."""

    value: float
    unit: str
    low: float
    high: float
    source: str


CONSTANTS: dict[str, Constant] = {
    # kernels
    "gemm_efficiency": Constant(
        0.95,
        "of peak",
        0.9,
        1.0,
        "measured: 8,192-token prefill steps of single engines of 0.5B, 1.5B and 3B, at the clocks that they ran at",
    ),
    "gemm_ramp": Constant(300, "elements of depth", 150, 450, "measured likewise: a tile's beginning and end"),
    "copy_efficiency": Constant(
        0.90, "of peak", 0.85, 0.93, "measured on an H200 host, 2026-10-28: device copy at 4.3 of 4.8 TB/s"
    ),
    "attention_efficiency": Constant(
        0.70,
        "of peak",
        0.60,
        0.75,
        "measured: the attention kernel in profiles of such steps, 0.09 to 0.52 of peak by context",
    ),
    "attention_ramp": Constant(390, "keys", 300, 500, "measured likewise: a tile's beginning and end"),
    "attention_narrow": Constant(
        0.77,
        "times speed",
        0.70,
        0.82,
        "FlashAttention-3 (Shah et al., 2024), forward: 497 of 648 TFLOP/s at head size 64",
    ),
    "vector_rate": Constant(1 / 15, "of bf16 peak", 1 / 16, 1 / 14, "H100 data sheet: fp32 67 of 989.5 TFLOP/s"),
    "l2_bandwidth": Constant(2.0, "of memory peak", 1.3, 2.5, "assumption, from micro-benchmarks of H100's L2 cache"),
    "l2_usable": Constant(0.5, "of L2", 0.25, 1.0, "assumption: weights and KV stream through the other half"),
    "tile_splits": Constant(
        4, "pieces", 1, 8, "assumption: small GEMMs take 64 x 64 tiles or split-K, 4 pieces of a 128 x 128 tile"
    ),
    "sms_to_fill_memory": Constant(0.5, "of SMs", 0.3, 0.8, "assumption: SMs that saturate device memory"),
    "kernel_tail": Constant(
        3.4e-6,
        "s",
        1.5e-6,
        5e-6,
        "ramp, drain and gap of a kernel within a CUDA graph: measured steps of single engines, replayed on H200s",
    ),
    "tail_sm": Constant(
        0.48, "of SMs", 0.33, 0.61, "measured likewise: SM activity of replayed decodes beyond what their blocks work"
    ),
    # launches
    "eager_launch": Constant(
        5.1e-5,
        "s",
        4.6e-5,
        5.6e-5,
        "measured with single engines (docs/findings.md, what a step costs): 520 us a layer of 10.2 launches",
    ),
    "graph_launch": Constant(
        8e-5, "s", 3e-5, 1.3e-4, "measured likewise: 184 us a layer launched in pieces, less two attention launches"
    ),
    # the engine's host time
    "engine_core_step": Constant(
        1.39e-3,
        "s",
        0.84e-3,
        1.93e-3,
        "measured with single engines of vLLM 0.25.1, on a core of 36 Mops: schedule, input preparation, messages",
    ),
    "engine_core_sequence": Constant(
        1.4e-5,
        "s",
        1.2e-5,
        1.7e-5,
        "measured likewise",
    ),
    "engine_core_token": Constant(2e-8, "s", 5e-9, 1e-7, "assumption: copies of token ids and positions"),
    "engine_core_request": Constant(1e-4, "s", 5e-5, 5e-4, "assumption: decode, admit and free one request"),
    "frontend_token": Constant(
        1.0e-5, "s", 7e-6, 1.5e-5, "measured on an H200 host: 37 to 42 % of a core at 39,000 to 39,900 tokens/s"
    ),
    "frontend_request": Constant(3e-4, "s", 1e-4, 2e-3, "assumption: tokenised prompt to a request message"),
    "unpinned_host": Constant(
        1.25,
        "times",
        1.05,
        1.5,
        "measured on an H200 host: 32.3-32.8k tokens/s confined to two cores, 39.0-39.9k pinned",
    ),
    # vLLM's defaults
    "max_num_batched_tokens": Constant(8192, "tokens", 2048, 16384, "vLLM: default budget of a step, AsyncLLMEngine"),
    "max_capture": Constant(512, "tokens", 512, 512, "vLLM: min(2 * max_num_seqs, 512) is the largest captured size"),
    # sharing
    "time_slice": Constant(
        2e-3, "s", 1e-3, 6e-3, "assumption for processes; NVIDIA vGPU documentation: 2 ms is its default slice"
    ),
    "context_switch": Constant(
        1e-4, "s", 3e-5, 7e-4, "assumption: registers and shared memory of 132 SMs (64 MB) out and in take 30 us"
    ),
    # power
    "matmul_power": Constant(
        1.48,
        "of (limit - idle)",
        1.2,
        1.8,
        "measured: power of single engines' windows on H200s, near-zero weights; of a matmul at the boost clock",
    ),
    "memory_power": Constant(
        0.127, "of (limit - idle)", 0.08, 0.3, "measured likewise: device memory at the rate of the copy"
    ),
    "active_power": Constant(
        0.423, "of (limit - idle)", 0.3, 0.45, "measured likewise: a GPU that runs kernels at all"
    ),
    "lowest_clock": Constant(
        0.6, "of boost", 0.5, 0.74, "assumption; 1470 of 1980 MHz was the lowest clock seen on H200"
    ),
    "power_interval": Constant(0.1, "s", 0.02, 0.2, "assumption: the power cap acts on an average of this length"),
    # noise (`simulation: {noise: realistic}`)
    "boot_noise": Constant(0.015, "log sd", 0.005, 0.05, "assumption: pairs on an H200 repeated within a few percent"),
    "window_noise": Constant(0.006, "log sd", 0.002, 0.02, "assumption, from the same windows"),
    "drift_noise": Constant(0.004, "log amplitude", 0.0, 0.02, "assumption: temperature and clocks, over minutes"),
    "drift_period": Constant(600, "s", 200, 2000, "assumption"),
    "step_jitter": Constant(0.05, "log sd", 0.01, 0.2, "assumption: host time from step to step"),
    "slow_boot": Constant(0.70, "times speed", 0.6, 0.9, "assumption: 27.4k against 39.9k tokens/s in two H200 boots"),
    # around the windows
    "boot": Constant(40, "s", 27, 58, "measured on an H200 host: engines starting in parallel, warm caches"),
    "handover": Constant(0.2, "s", 0.05, 1.0, "assumption: abort of one arm until the next one is loaded"),
}


def value(name: str) -> float:
    """The value of one constant; KeyError where the table has none of that name."""
    return CONSTANTS[name].value


def table() -> str:
    """The constants as a Markdown table, as it stands in docs/simulation.md."""
    rows = [
        f"| `{name}` | {c.value:.3g} | {c.unit} | {c.low:.3g} to {c.high:.3g} | {c.source} |"
        for name, c in CONSTANTS.items()
    ]
    return "\n".join(["| constant | value | unit | range | source |", "|---|---|---|---|---|", *rows])
