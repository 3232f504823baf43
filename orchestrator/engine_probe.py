"""What runs inside EngineCore on our behalf: a vLLM worker extension (engine argument `worker_extension_cls`).

It counts engine steps by CUDA-graph mode into a small shared file, which the orchestrator reads at the edges of a
window without asking the engine anything, fills dummy weights with variance-scaled random numbers on request, and ties
EngineCore's life to its parent's. It changes no decision of the engine: each hook calls what it wraps and adds to
counters in shared memory.

Each step also times one fixed piece of interpreter work, some 6 microseconds against steps of several milliseconds: the
speed of EngineCore's core while it is at work. On a shared host that speed has two levels (36 and 21 million turns a
second were seen, dwelling for tens of milliseconds to seconds), because another guest may use the sibling thread of our
core; no steal time and no clock reading shows it, and it makes one engine give two rates.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.step_replay import SIGNALS, StepReplay

PR_SET_PDEATHSIG = 1
# int64 slots of the shared file, in order.
COUNTERS = (
    "steps",
    "full",
    "piecewise",
    "eager",
    "tokens",
    "padded_tokens",
    "sequences",
    "gc_runs",
    "gc_ns",
    "speed_ns",
)
SLOTS = (*COUNTERS, *SIGNALS)
SPEED_TURNS = 200


class StepProbe(StepReplay):
    """Mixed into vLLM's worker; `self` is the worker, methods are called through `collective_rpc`."""

    def mpscape_attach(self, counters_path: str) -> dict[str, Any]:
        """Start counting into `counters_path`; returns who this process is and which model runner it uses."""
        _die_with_parent()
        slots = _map_slots(Path(counters_path))
        self.mpscape_slots = slots[len(COUNTERS) :]
        hooked = _hook(self.model_runner, slots)
        _count_garbage_collections(slots)
        # The worker lives in EngineCore itself, except where an executor of several processes is used (the CPU build).
        return {
            "pid": os.getpid(),
            "parent_pid": os.getppid(),
            "model_runner": type(self.model_runner).__module__,
            "hook": hooked,
        }

    def mpscape_fill_weights(self, seed: int) -> int:
        """Give every matrix normal weights of variance 1/fan_in and every vector its neutral value.

        Variance scaling keeps activations of order one through the layers, as trained weights do
        (LeCun et al., "Efficient BackProp", 1998, section 4.6). In place, so captured CUDA graphs stay valid.
        Returns how many parameters were filled.
        """
        import torch

        model = self.model_runner.model
        device = next(model.parameters()).device
        generator = torch.Generator(device=device)
        generator.manual_seed(seed)
        filled = 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.is_floating_point():
                    continue
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                filled += parameter.numel()
        return filled


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the frontend dies; it is checked at once, in case it died before the call."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _map_slots(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), len(SLOTS) * 8), dtype=np.int64)


def _hook(runner: Any, slots: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """Wrap the runner's choice of graph mode. V2 asks a graph manager, V1 a method of its own (vLLM 0.25 to 0.33)."""
    manager = getattr(runner, "cudagraph_manager", None)
    if manager is not None and hasattr(manager, "dispatch"):
        dispatch = manager.dispatch

        def dispatched(num_reqs: int, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
            chosen = dispatch(num_reqs, num_tokens, *args, **kwargs)
            _count(slots, chosen.cg_mode.name, num_reqs, num_tokens, chosen.num_tokens)
            return chosen

        manager.dispatch = dispatched
        return "v2 cudagraph_manager.dispatch"
    if hasattr(runner, "_determine_batch_execution_and_padding"):
        determine = runner._determine_batch_execution_and_padding

        def determined(num_tokens: int, num_reqs: int, *args: Any, **kwargs: Any) -> Any:
            chosen = determine(num_tokens, num_reqs, *args, **kwargs)
            _count(slots, chosen[0].name, num_reqs, num_tokens, chosen[1].num_tokens)
            return chosen

        runner._determine_batch_execution_and_padding = determined
        return "v1 _determine_batch_execution_and_padding"
    return "none: steps by graph mode are unknown"


def _count(
    slots: np.ndarray[Any, np.dtype[np.int64]], mode: str, sequences: int, tokens: int, padded_tokens: int
) -> None:
    slots[0] += 1
    slots[1 if mode == "FULL" else 2 if mode == "PIECEWISE" else 3] += 1
    slots[4] += tokens
    slots[5] += padded_tokens
    slots[6] += sequences
    total = 0
    began = time.perf_counter_ns()
    for turn in range(SPEED_TURNS):
        total += turn
    slots[9] += time.perf_counter_ns() - began


def _count_garbage_collections(slots: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    began = 0

    def seen(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.monotonic_ns()
        else:
            slots[7] += 1
            slots[8] += time.monotonic_ns() - began

    gc.callbacks.append(seen)


class StepCounters:
    """The orchestrator's side of the shared file: made before the engine starts, read at any time."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(len(SLOTS) * 8))
        self.path = path
        self._slots = _map_slots(path)

    @staticmethod
    def speed_mops(delta: dict[str, int]) -> float | None:
        """Mean speed of EngineCore's core over the steps of `delta`, in million loop turns a second."""
        return delta["steps"] * SPEED_TURNS * 1e3 / delta["speed_ns"] if delta["speed_ns"] else None

    def read(self) -> dict[str, int]:
        """Every counter since the engine came up."""
        return dict(zip(COUNTERS, (int(value) for value in self._slots[: len(COUNTERS)]), strict=True))

    @property
    def replay_ready(self) -> bool:
        """Whether the engine stands at a step that it can replay."""
        return bool(self._slots[len(COUNTERS)])

    def replay_between(self, start_ns: int, end_ns: int) -> None:
        """Have the engine that stands at a step replay it over a window with these edges (monotonic)."""
        self._slots[len(COUNTERS) + 1] = start_ns
        self._slots[len(COUNTERS) + 2] = end_ns  # last: it is what the engine waits for
