"""GPU time of one engine step, from the arithmetic of its model: a roofline for each layer type.

A layer type is bound by compute or by memory. Its kernels fill as many SMs as they have thread blocks, in whole waves;
each launch adds a fixed tail in which blocks begin and end, and nothing is computed or moved. A step is then three
phases, compute-bound, memory-bound and tails, each with the share of the SMs and of the memory's bandwidth that it
holds while it runs: all that the sharing of a GPU needs to know.
"""

from __future__ import annotations

from math import ceil
from operator import add
from typing import NamedTuple

from orchestrator.gpus import GpuKind
from orchestrator.simulated.constants import value
from workloads.architecture import Architecture, Batch, Matmul, Work

GEMMS = frozenset({"qkv", "attention_out", "mlp", "lm_head"})
CONTEXT_GRAIN_TOKENS = 16  # a KV block of vLLM: costs are cached by the mean decode context in whole blocks
CACHE_ENTRIES = 50_000
NARROW_HEAD = 64  # elements: the softmax takes as long as at 128, for half the arithmetic


class StepCost(NamedTuple):
    """One step alone on the GPU at full clock.

    compute_s, memory_s, gap_s: seconds of the three phases; *_sm, *_bw: the mean share of the GPU's SMs and of its
    achievable bandwidth held in the phase, tails holding none of the latter; sm_seconds: SM activity, as the counter
    would see it; launches: kernels.
    """

    compute_s: float
    memory_s: float
    gap_s: float
    compute_sm: float
    compute_bw: float
    memory_sm: float
    memory_bw: float
    sm_seconds: float
    flops: float
    dram_bytes: float
    launches: int
    attention_launches: int
    gap_sm: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compute_s + self.memory_s + self.gap_s


class Roofline(NamedTuple):
    """Times and holdings of kernels, added up: what all launches of a layer type, or of several, come to.

    compute_s and memory_s are the seconds bound by each; *_sm_s and *_bw_s the shares held, times those seconds.
    """

    compute_s: float = 0.0
    compute_sm_s: float = 0.0
    compute_bw_s: float = 0.0
    memory_s: float = 0.0
    memory_sm_s: float = 0.0
    memory_bw_s: float = 0.0
    sm_seconds: float = 0.0
    flops: float = 0.0
    dram_bytes: float = 0.0
    launches: int = 0

    def plus(self, other: Roofline) -> Roofline:
        return Roofline(*map(add, self, other))


class StepCosts:
    """Step costs of one model on one GPU of which `sms` may be used; remembers them by what the batch is made of."""

    def __init__(
        self, architecture: Architecture, gpu: GpuKind, sms: int | None = None, bytes_per_parameter: float = 2.0
    ) -> None:
        self.architecture = architecture
        self.gpu = gpu
        self.sms = gpu.sms if sms is None else sms
        self._bytes_per_parameter = bytes_per_parameter
        self._known: dict[tuple[int, int, tuple[tuple[int, int], ...], int | None], StepCost] = {}
        self._rest: dict[tuple[int, int], Roofline] = {}
        self._usable = self.sms / gpu.sms
        self._gemm_rate = gpu.bf16_flops_per_s * value("gemm_efficiency") * self._usable
        self._gemm_ramp = value("gemm_ramp")
        narrow = value("attention_narrow") if architecture.head_dim <= NARROW_HEAD else 1.0
        self._attention_rate = gpu.bf16_flops_per_s * value("attention_efficiency") * narrow * self._usable
        self._attention_ramp = value("attention_ramp")
        self._vector_rate = gpu.bf16_flops_per_s * value("vector_rate") * self._usable
        self._bandwidth = gpu.memory_bytes_per_s * value("copy_efficiency")
        self._l2_bandwidth = gpu.memory_bytes_per_s * value("l2_bandwidth")
        self._l2_bytes = gpu.l2_bytes * value("l2_usable")
        self._sms_to_fill_memory = value("sms_to_fill_memory")
        self._splits = int(value("tile_splits"))
        self._tail_s = value("kernel_tail")
        self._tail_sm = value("tail_sm") * self._usable

    def of(
        self,
        decode_sequences: int,
        context_tokens: int,
        prefill: tuple[tuple[int, int], ...],
        graph_tokens: int | None = None,
    ) -> StepCost:
        """The cost of a batch; its decode contexts are rounded to whole KV blocks a sequence on average.

        graph_tokens: tokens of the CUDA graph that it runs in, to which it is filled up; None: launched as it is.
        """
        blocks = round(context_tokens / (decode_sequences * CONTEXT_GRAIN_TOKENS)) if decode_sequences else 0
        key = (decode_sequences, blocks, prefill, graph_tokens)
        cost = self._known.get(key)
        if cost is None:
            if len(self._known) >= CACHE_ENTRIES:
                self._known.clear()
                self._rest.clear()
            context = max(1, blocks * CONTEXT_GRAIN_TOKENS) * decode_sequences
            cost = self._known[key] = self.exact(Batch(decode_sequences, context, prefill), graph_tokens)
        return cost

    def exact(self, batch: Batch, graph_tokens: int | None = None) -> StepCost:
        """The cost of a batch, computed anew; only attention looks at more of a batch than its tokens and sequences.

        What fills a step up to its graph goes through all layers but attention and the LM head.
        """
        key = (graph_tokens or batch.tokens, batch.sequences)
        rest = self._rest.get(key)
        if rest is None:
            filled = batch if key[0] == batch.tokens else Batch(key[1] - 1, 0, ((key[0] - key[1] + 1, 0),))
            rest = attention = Roofline()
            for work in self.architecture.step_work(filled, bytes_per_parameter=self._bytes_per_parameter):
                if work.layer_type == "attention":
                    attention = self.roofline(work)
                else:
                    rest = rest.plus(self.roofline(work))
            if batch.tokens:
                self._rest[key] = rest
            if filled is not batch:
                attention = self.roofline(self.architecture.attention_work(batch))
        else:
            attention = self.roofline(self.architecture.attention_work(batch))
        total = rest.plus(attention)
        compute_s, memory_s = total.compute_s, total.memory_s
        return StepCost(
            compute_s,
            memory_s,
            total.launches * self._tail_s,
            total.compute_sm_s / compute_s if compute_s else 0.0,
            total.compute_bw_s / compute_s if compute_s else 0.0,
            total.memory_sm_s / memory_s if memory_s else 0.0,
            total.memory_bw_s / memory_s if memory_s else 0.0,
            total.sm_seconds + total.launches * self._tail_s * self._tail_sm,
            total.flops,
            total.dram_bytes,
            total.launches,
            attention.launches,
            self._tail_sm,
        )

    def roofline(self, work: Work) -> Roofline:
        """One layer type, tails not counted; only the FLOPs of tensor cores are reported.

        Activations that fit into the usable part of L2 never reach device memory. Too few thread blocks neither fill
        the tensor cores nor draw the whole bandwidth.
        """
        is_gemm, is_attention = work.layer_type in GEMMS, work.layer_type == "attention"
        blocks = work.tiles * self._splits if is_gemm else work.tiles
        if is_gemm:
            alone_s = [self._matmul_s(each) for each in work.matmuls]
            compute_s = sum(seconds for seconds, _ in alone_s)
            fill = sum(seconds * share for seconds, share in alone_s) / compute_s if compute_s else 0.0
        else:
            fill = _fill(work.tiles, self.sms)
            rate = self._attention_rate if is_attention else self._vector_rate
            flops = work.flops + work.idle_row_flops + self._attention_ramp * work.flops_a_key
            compute_s = flops / (rate * fill) if fill else 0.0
        active = self._usable * min(1.0, blocks / self.sms)
        reach = min(1.0, active / self._sms_to_fill_memory)
        in_l2 = work.activation_bytes <= self._l2_bytes * work.launches
        beside = work.activation_bytes - work.pointwise_bytes
        first = self._moved(work.weight_bytes + work.kv_bytes, beside, in_l2, active, reach)
        after = self._moved(0.0, work.pointwise_bytes, in_l2, active, reach)
        flops = work.flops if is_gemm or is_attention else 0.0
        if compute_s >= first.memory_s:
            sm_s = self._usable * fill * compute_s
            first = Roofline(compute_s, sm_s, first.memory_bw_s, 0.0, 0.0, 0.0, sm_s, 0.0, first.dram_bytes)
        return first.plus(after)._replace(flops=flops, launches=work.launches)

    def _matmul_s(self, matmul: Matmul) -> tuple[float, float]:
        """Seconds of its launches at full clock, and the share of the SMs that hold a block meanwhile.

        A block is some k-steps, and a beginning and an end without any that take as long as `gemm_ramp` of its depth.
        """
        fill = max(_fill(matmul.tiles * pieces, self.sms) for pieces in {1, 2, self._splits})
        if not fill:
            return 0.0, 0.0
        return matmul.flops * (1 + self._gemm_ramp / matmul.depth) / (self._gemm_rate * fill), fill

    def _moved(self, kept_bytes: float, activation_bytes: float, in_l2: bool, active: float, reach: float) -> Roofline:
        """What moving takes: `kept_bytes` and, where they do not stay in L2, activations from device memory."""
        dram_bytes = kept_bytes + (0.0 if in_l2 else activation_bytes)
        if not reach:
            return Roofline(dram_bytes=dram_bytes)
        memory_s = dram_bytes / self._bandwidth + (activation_bytes / self._l2_bandwidth if in_l2 else 0.0)
        memory_s /= reach
        sm_s = active * memory_s
        bw_s = dram_bytes / self._bandwidth
        return Roofline(0.0, 0.0, 0.0, memory_s, sm_s, bw_s, active * memory_s, 0.0, dram_bytes)


def _fill(tiles: float, sms: int) -> float:
    """Mean share of `sms` that hold a block while whole waves of `tiles` equal blocks run (wave quantisation)."""
    return tiles / (ceil(tiles / sms) * sms) if tiles > 0 else 0.0
