"""One engine in virtual time: closed-loop clients, continuous batching with chunked prefill, and the host's cost of it.

The unit is the engine step. A step is formed when EngineCore's thread is free: decodes first, one token each, then
prompts first come first served in chunks, up to the token budget (vLLM V1). Forming it costs host time; steps beyond
the captured CUDA graphs also cost a launch for each kernel, during which the GPU may already work. With asynchronous
scheduling one step may be formed while the one before is on the GPU. Tokens leave through the frontend, which has a
core of its own and takes time for each; a client sends its next request when it has its last token.

Sequences are counted, not stepped: all of them advance by one token a step, so the step at which a request ends is
known when its prompt is done.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from orchestrator.simulated.kernels import StepCost, StepCosts
from orchestrator.simulated.settings import EngineSettings, HostCosts
from orchestrator.trial import Workload

INFINITY = math.inf
FULL_GRAPH, PIECEWISE_GRAPH, EAGER = 0, 1, 2


@dataclass(slots=True, eq=False)
class Request:
    """One request: step indices are -1 until its prompt is done; `last_step` is when its last token will be made."""

    client: int
    sequence: int
    sent_s: float
    output_tokens: int
    prefilled: int = 0
    first_step: int = -1
    last_step: int = -1


class Job(NamedTuple):
    """A step as the GPU gets it: `seconds` alone on the GPU, but no end before its last launch at `launched_s`."""

    cost: StepCost
    seconds: float
    launched_s: float


class Step(NamedTuple):
    """One step as it was formed. tokens: made for clients; scheduled: all tokens in it, prompts included; padded: the
    same, filled up to the size of its graph."""

    tokens: int
    running: int
    waiting: int
    mode: int
    host_s: float
    kv_tokens: int
    scheduled: int
    padded: int
    cost: StepCost


class Engine:
    """One engine under load. The simulation calls `host_event` at `host_at`, and `gpu_done` when a job has ended.

    gpu_slowness: seconds a modelled GPU second takes in this window; jitter: factors of host time, cycled through;
    even_step_s: where given, every step takes just this long, so that the rate is the same at all times.
    """

    def __init__(
        self,
        settings: EngineSettings,
        costs: StepCosts,
        host: HostCosts,
        workload: Workload,
        gpu_slowness: float = 1.0,
        jitter: tuple[float, ...] = (1.0,),
        even_step_s: float | None = None,
    ) -> None:
        self.settings, self.costs, self.host, self.workload = settings, costs, host, workload
        self.gpu_slowness, self.jitter, self.even_step_s = gpu_slowness, jitter, even_step_s
        self._pieces_s = (costs.architecture.layers + 1) * host.graph_launch_s
        self._host_costs_s = (host.step_s, host.sequence_s, host.token_s, host.request_s)
        self._frontend_token_s = host.frontend_token_s if settings.own_frontend_core else 0.0
        self.depth = 2 if settings.async_scheduling else 1
        self.clock = 1.0  # share of the boost clock, set by the power cap
        self.host_at = INFINITY
        self.in_flight = 0
        self.on_gpu = False
        self.ready: Job | None = None
        self.steps: list[Step] = []
        self.gpu_done_s: list[float] = []  # by step, for those that have ended
        self.delivered_s: list[float] = []
        self.requests: list[Request] = []
        self._preparing: Job | None = None
        self._host_busy = False
        self._arrivals: list[tuple[float, int, Request]] = []
        self._waiting: deque[Request] = deque()
        self._partial: Request | None = None
        self._ends: dict[int, list[Request]] = {}
        self._decoding = 0  # sequences that decode in the next step, and the KV entries they read
        self._context = 0
        self._running = 0
        self._kv_tokens = 0
        self._frontend_free_s = 0.0

    def send(self, client: int, sequence: int, output_tokens: int, sent_s: float, arrives_s: float) -> None:
        """A client sends a request at `sent_s`; EngineCore has it at `arrives_s`."""
        request = Request(client, sequence, sent_s, output_tokens)
        self.requests.append(request)
        heappush(self._arrivals, (arrives_s, len(self.requests), request))

    def ramped_s(self) -> float:
        """When the last of the clients had its first token; infinity while one still waits for it."""
        first_steps = [request.first_step for request in self.requests if request.sequence == 0]
        if not first_steps:
            return 0.0
        last = max(first_steps)
        return self.delivered_s[last] if min(first_steps) >= 0 and last < len(self.delivered_s) else INFINITY

    def host_event(self, now: float) -> Job | None:
        """EngineCore's thread has come to a point: a step is ready for the GPU, or it is free to form the next one.

        Returns the job where one is to go to the GPU at once.
        """
        job = self._preparing
        submit = None
        if job is not None:
            self._preparing = None
            if self.on_gpu:
                self.ready = job
            else:
                self.on_gpu, submit = True, job
            if job.launched_s > now:
                self.host_at = job.launched_s
                return submit
        self._host_busy = False
        self.form_step(now)
        return submit

    def gpu_done(self, now: float) -> Job | None:
        """The step on the GPU has ended: deliver its tokens. Returns the next job where one is ready."""
        self.in_flight -= 1
        self._deliver(len(self.gpu_done_s), now)
        self.gpu_done_s.append(now)
        job, self.ready = self.ready, None
        self.on_gpu = job is not None
        if not self._host_busy:
            self.form_step(now)
        return job

    def form_step(self, now: float) -> None:
        """Form the next step if the pipeline has room and there is work; else wait for the GPU or the next arrival."""
        if self.in_flight >= self.depth:
            self.host_at = INFINITY
            return
        arrivals, waiting = self._arrivals, self._waiting
        while arrivals and arrivals[0][0] <= now:
            waiting.append(heappop(arrivals)[2])
        chunks: tuple[tuple[int, int], ...] = ()
        prompts = new = made = joining = 0
        if waiting or self._partial is not None:
            chunks, prompts, new, made, joining = self._admit()
        decoding = self._decoding
        scheduled = decoding + prompts
        if scheduled == 0:
            self.host_at = arrivals[0][0] if arrivals else INFINITY
            return
        graph_tokens = self.settings.graph_tokens(scheduled)
        cost = self.costs.of(decoding, self._context, chunks, graph_tokens)
        step, running = len(self.steps), decoding + len(chunks)
        if graph_tokens is None:
            mode, launch_s = EAGER, cost.launches * self.host.eager_launch_s
        elif chunks and not self.settings.full_graphs:  # attention is launched between the pieces of the graph
            mode, launch_s = PIECEWISE_GRAPH, self._pieces_s + cost.attention_launches * self.host.eager_launch_s
        else:
            mode, launch_s = FULL_GRAPH, self.host.graph_launch_s
        step_s, sequence_s, token_s, request_s = self._host_costs_s
        host_s = step_s + sequence_s * running + token_s * scheduled + request_s * new
        if not self.settings.own_frontend_core:
            host_s += self.host.frontend_token_s * (decoding + made)
        host_s *= self.jitter[step % len(self.jitter)]
        seconds = (cost.compute_s / self.clock + cost.memory_s + cost.gap_s) * self.gpu_slowness
        if self.even_step_s is not None:
            seconds = self.even_step_s * self.gpu_slowness
            host_s = launch_s = 0.0
        self.steps.append(
            Step(
                decoding + made,
                running,
                len(waiting),
                mode,
                host_s + launch_s,
                self._kv_tokens,
                scheduled,
                graph_tokens or scheduled,
                cost,
            )
        )
        self._advance(step, joining)
        self._preparing = Job(cost, seconds, now + host_s + launch_s)
        self._host_busy = True
        self.in_flight += 1
        # One graph launch is a moment; thousands of kernels are launched while the first of them run already.
        self.host_at = now + host_s + (launch_s if mode == FULL_GRAPH else 0.0)

    def mean_step_s(self, clients: int) -> float:
        """Length of a step of all clients with the prompts that come to one step in the long run."""
        work = self.workload
        prompts = math.ceil(clients * work.prompt_tokens / work.output_tokens)
        room = max(1, self.settings.max_num_batched_tokens - clients)
        chunks = () if work.phase == "decode" else ((min(prompts, room), 0),)
        decoding = clients if work.output_tokens > 1 or work.phase == "decode" else 0
        graph_tokens = self.settings.graph_tokens(decoding + sum(new for new, _ in chunks))
        context = decoding * (work.prompt_tokens + work.output_tokens // 2)
        cost = self.costs.of(decoding, context, chunks, graph_tokens)
        host_s = self.host.step_s + self.host.sequence_s * (decoding + len(chunks))
        return max(host_s, cost.seconds) if self.settings.async_scheduling else host_s + cost.seconds

    def _admit(self) -> tuple[tuple[tuple[int, int], ...], int, int, int, int]:
        """Fill the step's budget with prompts: chunks, their tokens, new requests, first tokens made, sequences that
        go on to decode.

        Where a workload has no prefill, its requests start as decodes of the whole prompt. A request is admitted only
        with room for all of its tokens, so nothing is ever preempted.
        """
        settings, step, waiting, partial = self.settings, len(self.steps), self._waiting, self._partial
        prompt, decodes_only = self.workload.prompt_tokens, self.workload.phase == "decode"
        budget = settings.max_num_batched_tokens - self._decoding
        chunks: list[tuple[int, int]] = []
        prompts = new = made = joining = 0
        while budget > 0:
            if partial is None:
                if not waiting or self._running >= settings.max_num_seqs:
                    break
                request = waiting[0]
                need = prompt + request.output_tokens
                if self._kv_tokens + need > settings.kv_tokens and self._running:
                    break
                waiting.popleft()
                new += 1
                self._running += 1
                self._kv_tokens += need
            else:
                request, partial = partial, None
            if decodes_only:
                self._decoding += 1
                self._context += prompt
                budget -= 1
            else:
                before = request.prefilled
                take = prompt - before if prompt - before < budget else budget
                chunks.append((take, before))
                request.prefilled = before + take
                prompts += take
                budget -= take
                if before + take < prompt:
                    partial = request
                    break
                made += 1
                joining += request.output_tokens > 1
            request.first_step = step
            request.last_step = last = step + request.output_tokens - 1
            ending = self._ends.get(last)
            if ending is None:
                self._ends[last] = [request]
            else:
                ending.append(request)
        self._partial = partial
        return tuple(chunks), prompts, new, made, joining

    def _advance(self, step: int, joining: int) -> None:
        """Make the counts those of the step after `step`."""
        self._context += self._decoding
        ending = self._ends.get(step)
        if not ending and not joining:
            return
        prompt = self.workload.prompt_tokens
        for request in ending or ():
            self._running -= 1
            self._kv_tokens -= prompt + request.output_tokens
            if request.output_tokens > 1 or self.workload.phase == "decode":
                self._decoding -= 1
                self._context -= prompt + request.output_tokens
        self._decoding += joining
        self._context += joining * (prompt + 1)

    def _deliver(self, step: int, now: float) -> None:
        """Pass a step's tokens through the frontend; clients whose request ended send their next one."""
        start = now if now > self._frontend_free_s else self._frontend_free_s
        delivered = free = start + self.steps[step].tokens * self._frontend_token_s
        self.delivered_s.append(delivered)
        for request in self._ends.pop(step, ()):
            free += self.host.frontend_request_s
            self.send(request.client, request.sequence + 1, self.workload.output_tokens, delivered, free)
        self._frontend_free_s = free
