"""The engine's own process: `vllm.AsyncLLMEngine` with the closed-loop clients beside it, EngineCore its child.

Forked by the nursery (`orchestrator.nursery_main`), which has imported vLLM already. Orders come as JSON lines, answers
go as JSON lines, and an answer with a table is followed by `payload_bytes` of Arrow IPC.
    boot     {engine_args, counters_path, weights}          -> ready {pid, engine_core_pid, ...} | failed {reason}
    load     {clients, prompt_tokens, output_tokens, text, image, residual, seed, prompts}   -> loaded
    start    {start_ns}                                      -> ramped {at_ns}  once every client has a first token
    window   {start_ns, end_ns}                              -> window {...} + requests and token counts
    replay   {tokens, sequences, decode, profile_steps, limit_s}   -> window {..., replay}, of one step
    stop     {}                                              -> stopped
Anything vLLM prints goes to the process's standard output and error, which the parent keeps as its log. When the orders
end, the engine shuts down: the parent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import itertools
import json
import os
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from orchestrator.full_step import replay
from orchestrator.step_replay import steps_between
from orchestrator.taper import tapered
from workloads.closed_loop import ClosedLoop, Load, summarise
from workloads.prompts import PromptPool

TOKEN_BIN_S = 0.5


async def serve(orders: asyncio.StreamReader, answers: io.FileIO) -> None:
    """Boot on the first order, then obey until the orders end."""
    answer = Answers(answers)
    boot = json.loads(await orders.readline())
    booted_at = time.monotonic()
    try:
        engine, facts = await boot_engine(boot)
    except Exception as error:  # noqa: BLE001 - the boundary of a boot: the parent makes it a failed row
        traceback.print_exception(error, limit=-4, chain=False)  # into the log, whose tail goes with the row
        answer.say({"event": "failed", "reason": f"{type(error).__name__}: {error}"})
        return
    try:
        answer.say({"event": "ready", "boot_s": time.monotonic() - booted_at, **facts})
        await obey(engine, facts["vocabulary"], orders, answer)
    finally:
        engine.shutdown(timeout=10)


async def boot_engine(boot: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Bring an engine up and tell who it is. Whatever vLLM raises propagates."""
    import torch
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from workloads.vllm_target import SchedulerLog

    # The context decides vLLM's own defaults (max_num_batched_tokens is 8192 for a server on an H100, else 2048): the
    # baseline must be what `vllm serve` would give.
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(**boot["engine_args"]),
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[SchedulerLog],
    )
    core = (await engine.collective_rpc("mpscape_attach", args=(boot["counters_path"],)))[0]
    filled = 0
    if boot["weights"] == "random":
        seed = boot["engine_args"].get("seed", 0)
        filled = (await engine.collective_rpc("mpscape_fill_weights", args=(seed,)))[0]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        raise RuntimeError("CUDA was initialised in the frontend: it would be a second context on the GPU")
    config = engine.vllm_config
    gc.collect()
    gc.freeze()  # what the boot left behind lives as long as the process: do not scan it in every window
    return engine, {
        "pid": os.getpid(),
        "engine_core_pid": core["pid"] if core["parent_pid"] == os.getpid() else core["parent_pid"],
        "worker_pid": core["pid"],
        "model_runner": core["model_runner"],
        "step_hook": core["hook"],
        "weights_filled": filled,
        "mps_pipe_directory": os.environ.get("CUDA_MPS_PIPE_DIRECTORY"),
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "vocabulary": int(config.model_config.get_vocab_size()),
        "kv_blocks": config.cache_config.num_gpu_blocks,
        "kv_block_tokens": config.cache_config.block_size,
        "kv_bytes": boot["engine_args"].get("kv_cache_memory_bytes"),
        "max_model_len_tokens": config.model_config.max_model_len,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "async_scheduling": bool(config.scheduler_config.async_scheduling),
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "max_capture_tokens": config.compilation_config.max_cudagraph_capture_size,
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
    }


async def obey(engine: Any, vocabulary: int, orders: asyncio.StreamReader, answer: Answers) -> None:
    """Run loads one after another until the orders end."""
    from workloads.vllm_target import VllmTarget

    model = engine.vllm_config.model_config
    while line := await orders.readline():
        order = json.loads(line)
        load = Load(
            clients=order["clients"],
            prompt_tokens=order["prompt_tokens"],
            output_tokens=order["output_tokens"],
            seed=order["seed"],
            step_tokens=engine.vllm_config.scheduler_config.max_num_batched_tokens,
            residual=order["residual"],
        )
        tokenizer = Path(model.tokenizer) if order["text"] else None
        images = model.hf_config.to_dict() if order["image"] else None
        prompts = PromptPool(order["prompts"], load.prompt_tokens, vocabulary, load.seed, tokenizer, images)
        loop = ClosedLoop(VllmTarget(engine, load.prompt_tokens), load, prompts)
        answer.say({"event": "loaded"})
        await run_load(loop, orders, answer)


async def run_load(loop: ClosedLoop, orders: asyncio.StreamReader, answer: Answers) -> None:
    """Start the clients, say when all are under way, then measure the windows asked for until told to stop."""
    from workloads.vllm_target import SchedulerLog

    start = json.loads(await orders.readline())
    async with loop.running(start["start_ns"]):
        ramp = asyncio.create_task(_tell_ramped(loop, answer))
        while (order := json.loads(await orders.readline() or b'{"op": "stop"}'))["op"] != "stop":
            if order["op"] == "replay":
                answer.replayed(loop, await replay(loop, order), order)
                continue
            await asyncio.sleep(max(0.0, (order["start_ns"] - time.monotonic_ns()) / 1e9))
            log = SchedulerLog.latest
            before = log.mark() if log else {}
            await asyncio.sleep(max(0.0, (order["end_ns"] - time.monotonic_ns()) / 1e9))
            after = log.mark() if log else {}
            # Events of the window's last moment may still be in the queue of a late event loop.
            await asyncio.sleep(0.02)
            answer.window(loop, before, after, order["start_ns"], order["end_ns"])
        ramp.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ramp
    answer.say({"event": "stopped", "errors": loop.errors[:5]})


async def _tell_ramped(loop: ClosedLoop, answer: Answers) -> None:
    await loop.ramped.wait()
    answer.say({"event": "ramped", "at_ns": time.monotonic_ns()})


class Answers:
    """Writes answers to the parent."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def say(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """One JSON line, then the payload."""
        line = json.dumps({**message, "payload_bytes": len(payload)}).encode() + b"\n"
        view = memoryview(line + payload)
        while view:
            view = view[self._file.write(view) :]

    def window(
        self, loop: ClosedLoop, before: dict[str, float], after: dict[str, float], start_ns: int, end_ns: int
    ) -> None:
        """What one engine did in a window, with its raw requests."""
        seen = summarise(loop, start_ns, end_ns)
        reports = after.get("reports", 0) - before.get("reports", 0)
        message = {
            "output_tokens": seen.output_tokens,
            "output_tokens_s": tapered(loop.token_times_ns, loop.token_counts, start_ns, end_ns),
            "prompt_tokens": seen.prompt_tokens,
            "requests_completed": seen.requests_completed,
            "requests_failed": seen.requests_failed,
            "in_flight_mean": seen.in_flight_mean,
            "loop_lag_p99_s": seen.loop_lag_p99_s,
            "running_mean": (after["running"] - before["running"]) / reports if reports else None,
            "waiting_mean": (after["waiting"] - before["waiting"]) / reports if reports else None,
            "preemptions": int(after["preemptions"] - before["preemptions"]) if after else None,
            "prefix_cache_hits": int(after["prefix_cache_hits"] - before["prefix_cache_hits"]) if after else None,
            "kv_usage_max": after.get("kv_usage_max"),
            "errors": loop.errors[:5],
            "token_bins": token_bins(loop, start_ns, end_ns),
        }
        self._window(loop, message, requests_of(loop, start_ns, end_ns))

    def replayed(self, loop: ClosedLoop, outcome: dict[str, Any], order: dict[str, Any]) -> None:
        """What one engine did in a window in which it replayed one step: no request moved."""
        times_ns, start_ns, end_ns = (outcome.pop(name, 0) for name in ("times_ns", "start_ns", "end_ns"))
        if "error" in outcome:
            self.say({"event": "window", "replay": outcome})
            return
        edges = np.arange(start_ns, end_ns + 1, int(TOKEN_BIN_S * 1e9))
        made = [steps_between(times_ns, *pair) * outcome["sequences"] for pair in itertools.pairwise(edges)]
        steps = steps_between(times_ns, start_ns, end_ns)
        message = {
            "replay": {**outcome, "steps": steps, "asked": order["tokens"]},
            "output_tokens": round(steps * outcome["sequences"]),
            "output_tokens_s": None,  # steps are counted by the fraction: there is nothing to smooth
            "prompt_tokens": 0 if order["decode"] else round(steps * outcome["tokens"]),
            "requests_completed": 0,
            "requests_failed": 0,
            "in_flight_mean": summarise(loop, start_ns, end_ns).in_flight_mean,
            "loop_lag_p99_s": None,
            "running_mean": None,
            "waiting_mean": None,
            "preemptions": 0,  # nothing was scheduled
            "prefix_cache_hits": 0,
            "kv_usage_max": None,
            "errors": [*filter(None, [outcome.get("profile_error")]), *loop.errors[:5]],
            "token_bins": [round(tokens) for tokens in made],
        }
        self._window(loop, message, requests_of(loop, start_ns, end_ns).clear())

    def _window(self, loop: ClosedLoop, message: dict[str, Any], requests: pl.DataFrame) -> None:
        table = io.BytesIO()
        requests.write_ipc(table)
        facts = {"event": "window", "prompts_made_late": loop.prompts.late, "token_bin_s": TOKEN_BIN_S}
        self.say({**facts, **message}, table.getvalue())


def token_bins(loop: ClosedLoop, start_ns: int, end_ns: int) -> list[int]:
    """Output tokens in each half second of the window; a last bin shorter than that is left out."""
    times = np.asarray(loop.token_times_ns, dtype=np.int64)
    bins = int((end_ns - start_ns) / 1e9 / TOKEN_BIN_S)
    edges = start_ns + (np.arange(bins + 1) * TOKEN_BIN_S * 1e9).astype(np.int64)
    counts, _ = np.histogram(times, bins=edges, weights=np.asarray(loop.token_counts, dtype=np.float64))
    return [int(count) for count in counts]


def requests_of(loop: ClosedLoop, start_ns: int, end_ns: int) -> pl.DataFrame:
    """The requests that were alive at some time of the window, as they stand when it is over: tokens that came since
    its end are counted in the rows of those that still run."""
    rows = [
        (
            record.client,
            record.sequence,
            loop.load.prompt_tokens,
            record.asked,
            record.received,
            record.sent_ns,
            record.first_token_ns or None,
            record.last_token_ns or None,
            "aborted" if record.status == "running" else record.status,
        )
        for record in loop.requests
        if record.sent_ns <= end_ns and (record.status == "running" or record.ended_ns > start_ns)
    ]
    columns = {
        "client": pl.Int64,
        "sequence": pl.Int64,
        "prompt_tokens": pl.Int64,
        "output_tokens_asked": pl.Int64,
        "output_tokens": pl.Int64,
        "sent_ns": pl.Int64,
        "first_token_ns": pl.Int64,
        "last_token_ns": pl.Int64,
        "status": pl.String,
    }
    return pl.DataFrame(rows, schema=columns, orient="row")


@contextlib.asynccontextmanager
async def reader_of(descriptor: int) -> AsyncIterator[asyncio.StreamReader]:
    """The read end of a pipe as an asyncio stream."""
    reader = asyncio.StreamReader(limit=2**20)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        yield reader
    finally:
        transport.close()


async def _main(orders_fd: int, answers_fd: int) -> None:
    with os.fdopen(answers_fd, "wb", buffering=0) as answers:
        async with reader_of(orders_fd) as orders:
            await serve(orders, answers)


def run(orders_fd: int, answers_fd: int) -> None:
    """Be an engine process until the orders end."""
    # An EngineCore that is spawned must not hold the parent's pipes open.
    os.set_inheritable(orders_fd, False)
    os.set_inheritable(answers_fd, False)
    asyncio.run(_main(orders_fd, answers_fd))
