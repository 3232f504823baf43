"""One step of the model, over and over, with no scheduler, no sampler and no client: what the GPU alone makes of it.

A vLLM worker extension, like `engine_probe`. The engine serves until a step comes that is as full as was asked for.
There it stands still: the forward pass of that very step, with its requests, their KV and its attention metadata, and
the logits of its last tokens are captured as one CUDA graph and replayed until told to stop, some replays queued ahead
so that the host never makes the GPU wait. Then the step goes on to its sampler, and the engine on with its work: a
replay writes the same KV to the same slots, so nothing that is served changes.

The other side (`orchestrator.replayed_window`) and this one meet in three slots of the shared counters:

    here:   replay_ready = 1                      the step is captured
    there:  replay_start_ns, replay_end_ns        replay now, and until a moment after the end
    here:   all three 0                           the engine goes on

Both model runners of vLLM 0.25.1 and 0.32.0 are known: V2 (`vllm.v1.worker.gpu.model_runner`), which text models get on
a GPU, keeps the attention metadata of a step until it is sampled; V1 does not, and its forward pass is watched.
Without CUDA there are no graphs: the pass is called again, as the tests do.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.step_profile import profile

# Replays that are queued ahead of the one that runs: a host that is late by less than these take keeps the GPU busy.
QUEUED = 4
# The last slots of the shared counters, int64.
SIGNALS = ("replay_ready", "replay_start_ns", "replay_end_ns")
# Replays go on for this long after the end, so that no engine has the GPU to itself while another is still counted.
TAIL_S = 0.1
# An engine that was never told to begin goes on after this long: whoever asked is gone or gave up.
PATIENCE_S = 120.0
POLL_S = 0.0005


@dataclass(frozen=True, slots=True)
class Wish:
    """Which step to stop at: the first with at least `tokens` tokens; `decode`: one of each of `sequences`."""

    tokens: int
    sequences: int
    decode: bool

    def granted(self, tokens: int, sequences: int) -> bool:
        if self.decode:
            return tokens == sequences == self.sequences
        return tokens >= self.tokens


@dataclass(frozen=True, slots=True)
class Step:
    """A step that can be run again. run: its forward pass and logits, launched as the caller's stream goes."""

    tokens: int
    sequences: int
    run: Callable[[], Any]


class StepReplay:
    """Mixed into vLLM's worker; `self` is the worker, methods are called through `collective_rpc`."""

    model_runner: Any
    mpscape_slots: Any

    def mpscape_replay(self, tokens: int, sequences: int, decode: bool, profile_steps: int = 0) -> None:
        """Stand still at the next step that is as full as this, see `Wish`; returns at once.

        profile_steps: after the replays, run it so many times more and see where its time goes.
        """
        self.mpscape_outcome: dict[str, Any] | None = None
        self.mpscape_profile_steps = profile_steps
        if getattr(self.model_runner, "supports_mm_inputs", False):
            self.mpscape_outcome = {"error": "steps of models that take more than text are not replayed"}
            return
        wish = Wish(tokens, sequences, decode)
        self.mpscape_watch = _watch(self.model_runner, wish, self._mpscape_stand)
        next(self.mpscape_watch)

    def mpscape_replayed(self) -> dict[str, Any] | None:
        """What came of it, None while no such step came: `tokens` and `sequences` of the step, how it was `launched`,
        the edges `start_ns` and `end_ns` that were given, and `times_ns`, monotonic, of the first launch and of the end
        of each replay, and the `profile`, seconds a step by part, where it was asked for, or `profile_error`; or the
        `error`."""
        return self.mpscape_outcome

    def mpscape_forget(self) -> None:
        """No longer wait for a step."""
        self.mpscape_watch.close()

    def _mpscape_stand(self, step: Step) -> None:
        self.mpscape_watch.close()  # once is enough: from here on the engine steps as it always does
        try:
            outcome = _replay(step, self.mpscape_slots)
            outcome |= _profiled(self.model_runner.model, step, self.mpscape_profile_steps)
        except Exception as error:  # noqa: BLE001 - raised here it would end the engine without a word of why
            traceback.print_exc()
            self.mpscape_outcome = {"error": f"{type(error).__name__}: {error}"}
        else:
            self.mpscape_outcome = {"tokens": step.tokens, "sequences": step.sequences, **outcome}
        finally:
            self.mpscape_slots[:] = 0


def steps_between(times_ns: Sequence[int], start_ns: int, end_ns: int) -> float:
    """Steps that were done in a window, by the fraction: each is spread evenly over the time since the one before.

    times_ns: of the first launch, then of the end of every step.
    """
    done = np.interp([start_ns, end_ns], times_ns, np.arange(len(times_ns)))
    return float(done[1] - done[0])


def _replay(step: Step, slots: Any) -> dict[str, Any]:
    """Capture, say so, wait for the edges, replay; raises TimeoutError where nobody gives them."""
    import torch

    with torch.inference_mode(), _launcher(step) as (launch, launched, finished):
        slots[:] = 0  # whatever an earlier window left
        slots[0] = 1
        patience_ns = time.monotonic_ns() + int(PATIENCE_S * 1e9)
        while not slots[2]:  # the end is written last
            if time.monotonic_ns() > patience_ns:
                raise TimeoutError(f"nobody gave the edges of a window within {PATIENCE_S:.0f} s")
            time.sleep(POLL_S)
        start_ns, end_ns = int(slots[1]), int(slots[2])
        until_ns = end_ns + int(TAIL_S * 1e9)
        queued: deque[Any] = deque()
        times_ns = [time.monotonic_ns()]
        while time.monotonic_ns() < until_ns:
            queued.append(launch())
            if len(queued) > QUEUED:
                finished(queued.popleft())
                times_ns.append(time.monotonic_ns())
        while queued:
            finished(queued.popleft())
            times_ns.append(time.monotonic_ns())
    return {"launched": launched, "start_ns": start_ns, "end_ns": end_ns, "times_ns": times_ns}


def _profiled(model: Any, step: Step, steps: int) -> dict[str, Any]:
    """The window is over when the profile is made: one that fails is told, and takes nothing from it."""
    import torch

    if not steps:
        return {"profile": None}
    try:
        with torch.inference_mode():
            return {"profile": profile(model, step.run, steps)}
    except Exception as error:  # noqa: BLE001 - a profiler that this host does not allow raises what it likes
        traceback.print_exc()
        return {"profile": None, "profile_error": f"no profile: {type(error).__name__}: {error}"}


@contextmanager
def _launcher(step: Step) -> Iterator[tuple[Callable[[], Any], str, Callable[[Any], None]]]:
    """How to launch the step, what that is called, and how to wait until a launch is done."""
    import torch

    if not torch.cuda.is_available():
        yield step.run, "call", lambda _: None
        return
    for _ in range(2):  # whatever is compiled or tuned at a first call must not be captured
        step.run()
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()

    def launch() -> Any:
        graph.replay()
        # Waited for without spinning, so that the core's time stays what the work on it takes.
        event = torch.cuda.Event(blocking=True)
        event.record()
        return event

    try:
        # Threads that fetch the outputs of earlier steps wait for events meanwhile: only this one is held to the rules.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step.run()
        torch.cuda.synchronize()
        yield launch, "graph", lambda event: event.synchronize()
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own one behind
        # The graph has memory of its own, which the allocator would keep: a few windows would fill the GPU.
        graph.reset()
        torch.cuda.empty_cache()


@contextmanager
def _wrapped(runner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """The runner's method replaced by `wrap` of it, on this one object."""
    setattr(runner, name, wrap(getattr(runner, name)))
    try:
        yield
    finally:
        delattr(runner, name)


def _watch(runner: Any, wish: Wish, stand: Callable[[Step], None]) -> Generator[None]:
    """Armed from the first `next` until closed: calls `stand` with a step that grants the wish, before its sampler."""
    forwards: list[Callable[[], Any]] = []

    def sampling(sample: Callable[..., Any]) -> Callable[..., Any]:
        def sampled(*args: Any, **kwargs: Any) -> Any:
            state = runner.execute_model_state
            whole = state is not None and (hasattr(state, "input_batch") or forwards)  # armed before its forward pass
            if whole and wish.granted(*_size(state)):
                stand(Step(*_size(state), _run(runner, state, forwards)))
            return sample(*args, **kwargs)

        return sampled

    def forwarding(forward: Callable[..., Any]) -> Callable[..., Any]:
        def forwarded(*args: Any, **kwargs: Any) -> Any:
            forwards[:] = [_again(forward, args, kwargs)]
            return forward(*args, **kwargs)

        return forwarded

    with _wrapped(runner, "sample_tokens", sampling):
        if hasattr(runner, "_model_forward"):
            with _wrapped(runner, "_model_forward", forwarding):
                yield
        else:
            yield


def _size(state: Any) -> tuple[int, int]:
    """Tokens and sequences of a step."""
    if hasattr(state, "input_batch"):
        return int(state.input_batch.num_tokens), int(state.input_batch.num_reqs)
    scheduled = state.scheduler_output
    return int(scheduled.total_num_scheduled_tokens), len(scheduled.num_scheduled_tokens)


def _run(runner: Any, state: Any, forwards: list[Callable[[], Any]]) -> Callable[[], Any]:
    """How to run the step again: forward pass and logits."""
    logits = runner.model.compute_logits
    if hasattr(state, "input_batch"):
        forward, indices = _forward_v2(runner, state), state.input_batch.logits_indices
        return lambda: logits(forward()[indices])
    (again,), sampled = forwards, state.sample_hidden_states

    def run() -> Any:
        again()
        return logits(sampled)

    return run


def _again(forward: Callable[..., Any], args: Any, kwargs: Any) -> Callable[[], Any]:
    """V1: call the forward pass in the context that it has now, outside vLLM's own graphs."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context, override_forward_context

    context = replace(get_forward_context(), cudagraph_runtime_mode=CUDAGraphMode.NONE)

    def again() -> Any:
        with override_forward_context(context):
            return forward(*args, **kwargs)

    return again


def _forward_v2(runner: Any, state: Any) -> Callable[[], Any]:
    """V2: the model on the step's inputs, which lie in buffers that only the next step overwrites."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import BatchDescriptor, set_forward_context

    batch = state.input_batch
    inputs = {
        "input_ids": batch.input_ids,
        "positions": batch.positions,
        "inputs_embeds": None,
        "intermediate_tensors": None,
        **runner.model_state.prepare_inputs(batch, runner.req_states),
    }

    def forward() -> Any:
        with set_forward_context(
            state.attn_metadata,
            runner.vllm_config,
            num_tokens=batch.num_tokens_after_padding,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            batch_descriptor=BatchDescriptor(num_tokens=batch.num_tokens_after_padding),
            slot_mapping=state.slot_mappings_by_layer,
            is_padding=batch.is_padding,
        ):
            return runner.model(**inputs)

    return forward
