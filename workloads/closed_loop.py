"""N clients, each with one request in flight: the next is sent when the last one ends, and nothing ever drains.

A client's first request asks for a random residual length, so that the loop begins out of step, as it would be after
long running; a cohort of fixed lengths that is released at once stays in step for ever. Source: a stationary renewal
process seen at a random time has a uniform residual where all lengths are equal (D. R. Cox, Renewal Theory, 1962,
section 5.2). The clients begin at once, and an engine prefills their prompts in that order, over several steps:
`first_lengths` spreads the ends over the cycle after the last of those steps, so the loop is out of step from there.

    loop = ClosedLoop(target, load, prompts)
    async with loop.running(at_ns):            # clients run until the block ends, then are cut off
        await loop.ramped.wait()               # every client has seen a first token
        ...
    loop.requests                              # raw time stamps, aborted ones included
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from workloads.prompts import Prompt, PromptPool

LAG_PROBE_S = 0.02
# A target that fails at once must not become a busy loop.
FAILURE_PAUSE_S = 0.1
ERRORS_KEPT = 100


class Target(Protocol):
    """Where requests go. `generate` yields once for each arrival; `tokens` says how many tokens arrived with it."""

    def generate(self, prompt: Prompt, output_tokens: int, request_id: str) -> AsyncIterator[Any]: ...

    def tokens(self, arrival: Any) -> int: ...


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients do. step_tokens: how many tokens a step of the engine takes; None: any number.

    residual: first requests ask for a random residual length; without, for all of it, where none may end soon.
    """

    clients: int
    prompt_tokens: int
    output_tokens: int
    seed: int
    step_tokens: int | None = None
    residual: bool = True


@dataclass(slots=True)
class RequestRecord:
    """One request, times in monotonic ns. status: running | ok | aborted | failed.

    ended_ns: when it was over for its client, its last token's time where it is ok; 0 while it runs, or aborted.
    """

    client: int
    sequence: int
    asked: int
    sent_ns: int
    received: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    ended_ns: int = 0
    status: str = "running"

    def fail(self) -> None:
        self.status, self.ended_ns = "failed", time.monotonic_ns()


@dataclass(slots=True)
class ClosedLoop:
    """Runs the clients of one engine on the event loop it is started on."""

    target: Target
    load: Load
    prompts: PromptPool
    requests: list[RequestRecord] = field(default_factory=list)
    token_times_ns: list[int] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    lags_s: list[tuple[int, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ramped: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting_for_first: int = 0

    @contextlib.asynccontextmanager
    async def running(self, start_ns: int) -> AsyncIterator[None]:
        """Start at `start_ns` of the monotonic clock; on exit every request in flight is aborted."""
        self._waiting_for_first = self.load.clients
        tasks = [asyncio.create_task(self._lag_probe())]
        tasks.append(asyncio.create_task(self._begin(start_ns, first_lengths(self.load), tasks)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def unanswered(self) -> int:
        """Clients whose request has no token yet."""
        return sum(record.status == "running" and not record.received for record in self.requests)

    async def _begin(
        self, start_ns: int, lengths: np.ndarray[Any, np.dtype[np.int64]], tasks: list[asyncio.Task[None]]
    ) -> None:
        """Start the clients at `start_ns`, in their order, which is that of the lengths; adds them to `tasks`."""
        await asyncio.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        tasks += [asyncio.create_task(self._client(client, int(length))) for client, length in enumerate(lengths)]

    async def _client(self, client: int, first_length: int) -> None:
        sequence = 0
        while True:
            asked = first_length if sequence == 0 else self.load.output_tokens
            record = RequestRecord(client, sequence, asked, time.monotonic_ns())
            self.requests.append(record)
            await self._request(record)
            if record.status == "failed":
                await asyncio.sleep(FAILURE_PAUSE_S)
            sequence += 1

    async def _request(self, record: RequestRecord) -> None:
        request_id = f"{self.load.seed}-{record.client}-{record.sequence}"
        times, counts, tokens = self.token_times_ns, self.token_counts, self.target.tokens
        try:
            async for arrival in self.target.generate(self.prompts.next(), record.asked, request_id):
                arrived = tokens(arrival)
                if not arrived:
                    continue
                now = time.monotonic_ns()
                times.append(now)
                counts.append(arrived)
                if not record.received:
                    record.first_token_ns = now
                    if record.sequence == 0:
                        self._waiting_for_first -= 1
                        if self._waiting_for_first == 0:
                            self.ramped.set()
                record.received += arrived
                record.last_token_ns = now
            if record.received != record.asked:
                record.fail()
                self._note(f"{record.received} tokens came of {record.asked}")
                return
            record.status, record.ended_ns = "ok", record.last_token_ns
        except asyncio.CancelledError:
            record.status = "aborted"
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of one request: its failure is a row, not the loop's end
            record.fail()
            self._note(f"{type(error).__name__}: {error}")

    def _note(self, error: str) -> None:
        if len(self.errors) < ERRORS_KEPT:
            self.errors.append(error)

    async def _lag_probe(self) -> None:
        """How late the event loop wakes us: the clients' own time stamps are late by as much."""
        while True:
            asked = time.monotonic_ns() + int(LAG_PROBE_S * 1e9)
            await asyncio.sleep(LAG_PROBE_S)
            now = time.monotonic_ns()
            self.lags_s.append((now, (now - asked) / 1e9))


def first_lengths(
    load: Load, ends: np.ndarray[Any, np.dtype[np.float64]] | None = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Output lengths of the clients' first requests, shape (clients,), in the order in which they are sent.

    Residual ones: with the steps counted from the one that ends the last prompt, requests end at times drawn uniformly
    from the next `output_tokens` steps; those that were prefilled before it have made their tokens meanwhile. In order,
    so that an early one has the shorter rest. Where the prompts take more steps than all output, early requests ask for
    all of it: then it is the queue of prompts that keeps the clients out of step.
    ends: these instead of drawn ones, rising, shape (clients,).
    """
    if not load.residual:
        return np.full(load.clients, load.output_tokens, dtype=np.int64)
    if ends is None:
        ends = np.sort(np.random.default_rng([load.seed, 1]).uniform(0.0, load.output_tokens, size=load.clients))
    prefilled = first_steps(load)
    lengths: np.ndarray[Any, np.dtype[np.int64]] = np.ceil(ends).astype(np.int64) + (prefilled[-1] - prefilled)
    return lengths.clip(1, load.output_tokens)


def first_steps(load: Load) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Number of the step that gives each client its first token, shape (clients,): all prompts queue up at once, an
    engine takes them first come first served, in chunks, and requests that decode take a token of each step before."""
    steps = np.zeros(load.clients, dtype=np.int64)
    if load.step_tokens is None:
        return steps
    step, room = 0, load.step_tokens
    for client in range(load.clients):
        left = load.prompt_tokens
        while left > room:
            left, step = left - room, step + 1
            room = max(1, load.step_tokens - client)
        room -= left
        steps[client] = step
    return steps


@dataclass(frozen=True, slots=True)
class LoopWindow:
    """One engine's load over a window, tokens credited by their own time stamps."""

    output_tokens: int
    prompt_tokens: int
    requests_completed: int
    requests_failed: int
    in_flight_mean: float
    loop_lag_p99_s: float | None


def summarise(loop: ClosedLoop, start_ns: int, end_ns: int) -> LoopWindow:
    """What `loop` did in (start_ns, end_ns]. A prompt is credited when its first token came."""
    times = np.asarray(loop.token_times_ns, dtype=np.int64)
    counts = np.asarray(loop.token_counts, dtype=np.int64)
    inside = (times > start_ns) & (times <= end_ns)
    lags = [lag for at, lag in loop.lags_s if start_ns < at <= end_ns]
    busy_ns = 0
    prompts = completed = failed = 0
    for record in loop.requests:
        busy_ns += max(0, min(record.ended_ns or end_ns, end_ns) - max(record.sent_ns, start_ns))
        prompts += loop.load.prompt_tokens * (start_ns < record.first_token_ns <= end_ns)
        if start_ns < record.ended_ns <= end_ns:
            completed += record.status == "ok"
            failed += record.status == "failed"
    return LoopWindow(
        output_tokens=int(counts[inside].sum()),
        prompt_tokens=prompts,
        requests_completed=completed,
        requests_failed=failed,
        in_flight_mean=busy_ns / (end_ns - start_ns),
        loop_lag_p99_s=float(np.quantile(lags, 0.99)) if lags else None,
    )
