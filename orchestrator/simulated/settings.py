"""What a simulated engine is started with, read from vLLM's arguments and defaults, and what its host time costs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.errors import BootError
from orchestrator.memory import EngineSizing
from orchestrator.simulated.constants import value
from orchestrator.trial import Arm
from workloads.architecture import Architecture


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is started with. kv_tokens: room of its KV cache; capture_sizes: tokens of the steps that CUDA
    graphs were captured for, ascending, none without graphs; full_graphs: steps with a prefill run in one graph, too,
    and not in pieces."""

    max_num_seqs: int
    kv_tokens: int
    max_num_batched_tokens: int
    capture_sizes: tuple[int, ...]
    async_scheduling: bool
    own_frontend_core: bool = True
    full_graphs: bool = False

    def graph_tokens(self, tokens: int) -> int | None:
        """Tokens of the graph that a step of `tokens` runs in; None where it is larger than all of them."""
        index = bisect_left(self.capture_sizes, tokens)
        return self.capture_sizes[index] if index < len(self.capture_sizes) else None


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Host seconds; `scaled` for a faster or slower host."""

    step_s: float
    sequence_s: float
    token_s: float
    request_s: float
    frontend_token_s: float
    frontend_request_s: float
    eager_launch_s: float
    graph_launch_s: float

    @classmethod
    def from_constants(cls) -> HostCosts:
        return cls(
            value("engine_core_step"),
            value("engine_core_sequence"),
            value("engine_core_token"),
            value("engine_core_request"),
            value("frontend_token"),
            value("frontend_request"),
            value("eager_launch"),
            value("graph_launch"),
        )

    def scaled(self, factor: float) -> HostCosts:
        return HostCosts(*(getattr(self, name) * factor for name in self.__dataclass_fields__))


def engine_settings(
    arm: Arm, args: Mapping[str, object], sizing: EngineSizing, architecture: Architecture, merged_engines: int
) -> EngineSettings:
    """Settings of an engine of `arm` from vLLM's arguments and defaults; merged_engines: how many it stands for.

    Raises BootError for a combination that vLLM refuses."""
    element_bytes = 1.0 if str(args.get("kv_cache_dtype", "auto")).startswith("fp8") else 2.0
    budget = _integer(args, "max_num_batched_tokens", int(value("max_num_batched_tokens")))
    if budget < sizing.max_num_seqs:
        raise BootError(f"max_num_batched_tokens ({budget}) must be at least max_num_seqs ({sizing.max_num_seqs})")
    compilation = args.get("compilation_config")
    return EngineSettings(
        max_num_seqs=sizing.max_num_seqs,
        kv_tokens=int(merged_engines * sizing.kv_bytes / architecture.kv_bytes_per_token(element_bytes)),
        max_num_batched_tokens=budget,
        capture_sizes=() if args.get("enforce_eager") else _capture_sizes(args, budget, sizing.max_num_seqs),
        async_scheduling=args.get("async_scheduling") is not False,
        own_frontend_core=arm.cores_per_engine > 1,
        full_graphs=isinstance(compilation, Mapping) and compilation.get("cudagraph_mode") == "FULL",
    )


def _capture_sizes(args: Mapping[str, object], budget: int, max_num_seqs: int) -> tuple[int, ...]:
    """The sizes given, or vLLM's: 1, 2, 4, steps of 8 below 256 and of 16 from there, and the budget (0.25.1,
    `VllmConfig._set_cudagraph_sizes`); none above the budget."""
    by_default = min(2 * max_num_seqs, int(value("max_capture")))
    largest = min(budget, _integer(args, "max_cudagraph_capture_size", by_default))
    given = args.get("cudagraph_capture_sizes")
    if isinstance(given, list | tuple):
        sizes = sorted({int(size) for size in given if int(size) <= budget})
        if args.get("max_cudagraph_capture_size") is not None and sizes[-1:] != [largest]:
            raise BootError(f"max_cudagraph_capture_size ({largest}) is not the largest of cudagraph_capture_sizes")
        return tuple(sizes)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16), *((budget,) if budget <= largest else ())]
    return tuple(sorted({size for size in sizes if size <= largest}))


def _integer(args: Mapping[str, object], name: str, default: int) -> int:
    given = args.get(name)
    if given is None:
        return default
    if not isinstance(given, int) or isinstance(given, bool):
        raise BootError(f"{name} must be a whole number, not {given!r}")
    return given
