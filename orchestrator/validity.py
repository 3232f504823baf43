"""The checks that decide whether a window's number may be believed, one pure function each.

A check says yes, no, or None: this backend could not tell. What can be an effect of the arm itself, such as clocks,
throttling, power, steal time or loop lag, is context and never judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from orchestrator.observation import EngineFacts, Observation, WindowOrder
from orchestrator.trial import Backend

MIB = 2**20

# In flight may differ from the clients asked by this share, or by one client where that is more; with few clients one
# client would forgive anything, so then by a tenth of them.
IN_FLIGHT_TOLERANCE = 0.02
IN_FLIGHT_TOLERANCE_FEW = 0.1
# X*R against N in a window that cuts requests off at both ends is off by at most one latency, which is 1/n of N with
# n completions a client; this comes on top, for latencies that are not all alike.
LITTLE_TOLERANCE = 0.05
LITTLE_FROM_COMPLETIONS_PER_CLIENT = 3.0
# Requests waiting, on average: fewer than one, or this share of the clients, is scheduling in passing.
WAITING_TOLERANCE = 0.01
# A cache this full turns requests away before it is quite full (whole blocks; the scheduler keeps some free).
KV_FULL = 0.98
# An engine rounds the bytes asked for down to whole blocks.
KV_ROUNDING = 0.01
# Fewer completions than this a client see only a part of the cycle of prefill and decode. Windows are sized for four
# latencies, which are completions a client in a closed loop; a bar near that would leave out windows because their arm
# was slow in them, and ratios with them.
COMPLETIONS_PER_CLIENT = 1.0
# Memory may move by this while the same processes hold the GPU; a stranger's context alone takes more.
MEMORY_DRIFT_BYTES = 200 * MIB
# The clock is read after the window's last event: much shorter than ordered means that it was cut off.
WINDOW_TOLERANCE = 0.001


@dataclass(frozen=True, slots=True)
class Planned:
    """What the window is held against, beside its order.

    min_completions: None leaves it at COMPLETIONS_PER_CLIENT, and at none for `decode`: its requests outlast a window.
    max_num_seqs: slots of one engine. gpu_memory_bytes: in use once the engines were up, where it was read.
    """

    backend: Backend
    kv_bytes_per_engine: int
    max_num_seqs: int
    min_completions: int | None = None
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """ok: None is unknown. saw: plain words with numbers."""

    ok: bool | None
    saw: str


def _engines(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    clients = sum(engine.clients for engine in seen.engines)
    return Finding(
        len(seen.engines) == order.arm.engines and clients == order.concurrency,
        f"{len(seen.engines)} of {order.arm.engines} engines with {clients} of {order.concurrency} clients",
    )


def _length(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    return Finding(
        seen.duration_s >= order.window_s * (1 - WINDOW_TOLERANCE),
        f"{seen.duration_s:.3f} s measured, {order.window_s:.3f} s ordered",
    )


def _tokens(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    return Finding(seen.output_tokens > 0, f"{seen.output_tokens} output tokens")


def _failed_requests(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    failed = sum(engine.requests_failed for engine in seen.engines)
    return Finding(failed == 0, f"{failed} requests failed")


def _replayed(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    """A replayed window ran one full step: of every client, or of as many prompt tokens as a step takes."""
    if not order.workload.replayed:
        return Finding(True, "served, not replayed")
    steps = [engine.replayed for engine in seen.engines]
    if not all(steps):
        return Finding(None, "replayed steps: unknown")
    saw = " and ".join(
        f"{step.tokens} tokens of {step.sequences} sequences as a {step.launched}" for step in steps if step
    )
    for engine, step in zip(seen.engines, steps, strict=True):
        if step is None or (planned.backend == "vllm" and step.launched != "graph"):
            return Finding(False, f"{saw}: a host that launches kernels is in the path")
        if order.workload.phase == "decode" and not step.tokens == step.sequences == engine.clients:
            return Finding(False, f"{saw}, for {engine.clients} clients of engine {engine.engine}")
        if step.tokens < step.asked:
            return Finding(False, f"{saw}, where a full step of engine {engine.engine} has {step.asked} or more")
    return Finding(True, saw)


def _completions(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    done = sum(engine.requests_completed for engine in seen.engines)
    wanted = planned.min_completions
    if wanted is None:
        wanted = 0 if order.workload.phase == "decode" else round(COMPLETIONS_PER_CLIENT * order.concurrency)
    return Finding(done >= wanted, f"{done} requests completed, at least {wanted} wanted")


def _decode_only(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    """A decode window has no prefill in it: no prompt was finished, and no request ended, which brings the next one."""
    if order.workload.phase != "decode":
        return Finding(True, f"kind {order.workload.kind}: prefill belongs to it")
    # Simulated requests start with their KV filled: one that ends brings no prefill.
    ended = 0 if planned.backend == "simulated" else sum(engine.requests_completed for engine in seen.engines)
    advice = "; ask for more output_tokens or a shorter window" if ended else ""
    return Finding(
        seen.prompt_tokens == 0 and ended == 0,
        f"{seen.prompt_tokens} prompt tokens prefilled and {ended} requests ended in the window{advice}",
    )


def _in_flight(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    worst = max(seen.engines, key=lambda engine: abs(engine.in_flight_mean - engine.clients), default=None)
    if worst is None:
        return Finding(False, "no engine reported")
    # Each engine by itself: a surplus of one must not hide what another lacks.
    ok = all(
        abs(engine.in_flight_mean - engine.clients)
        <= max(IN_FLIGHT_TOLERANCE * engine.clients, min(1.0, IN_FLIGHT_TOLERANCE_FEW * engine.clients))
        for engine in seen.engines
    )
    return Finding(ok, f"engine {worst.engine} had {worst.in_flight_mean:.2f} in flight for {worst.clients} clients")


def _little(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    """N = X * R from the requests' own time stamps, which knows nothing of the in-flight counter."""
    end_ns = seen.start_ns + seen.duration_s * 1e9
    last_ns = pl.col("last_token_ns")
    ended = (pl.col("status") == "ok") & (last_ns > seen.start_ns) & (last_ns <= end_ns)
    latency_ns = (last_ns - pl.col("sent_ns")).filter(ended)
    count, sum_ns = seen.requests.select(latency_ns.len().alias("count"), latency_ns.sum().alias("sum")).row(0)
    per_client = count / order.concurrency
    if per_client < LITTLE_FROM_COMPLETIONS_PER_CLIENT:
        return Finding(True, f"{per_client:.1f} completions a client: too few for Little's law, not judged")
    found = float(sum_ns) / 1e9 / seen.duration_s
    tolerance = LITTLE_TOLERANCE + 1 / per_client
    return Finding(
        abs(found / order.concurrency - 1) <= tolerance,
        f"rate times latency is {found:.2f} for {order.concurrency} clients (within {tolerance:.0%} wanted)",
    )


def _waiting(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    """Nothing waits for room. Waiting for one's turn to be prefilled is the work itself, where there is prefill."""
    waiting = [engine.waiting_mean for engine in seen.engines]
    known = [value for value in waiting if value is not None]
    if len(known) < len(waiting) or not known:
        return Finding(None, "requests waiting: unknown")
    saw = f"{sum(known):.2f} requests waiting of {order.concurrency}"
    too_many = [engine for engine in seen.engines if not _passing(engine)]
    if not too_many:
        return Finding(True, saw)
    if order.workload.phase == "decode":
        return Finding(False, f"{saw}, with nothing to prefill")
    for engine in too_many:
        if engine.kv_usage_max is None or engine.running_mean is None:
            return Finding(None, f"{saw}: for prefill or for room, unknown")
        if engine.kv_usage_max >= KV_FULL:
            return Finding(False, f"{saw}: the KV cache of engine {engine.engine} is {engine.kv_usage_max:.0%} full")
        if engine.clients > planned.max_num_seqs:
            return Finding(
                False, f"{saw}: engine {engine.engine} has {planned.max_num_seqs} slots for {engine.clients} clients"
            )
    return Finding(True, f"{saw}, for their prefill")


def _passing(engine: EngineFacts) -> bool:
    return engine.waiting_mean is not None and engine.waiting_mean < max(1.0, WAITING_TOLERANCE * engine.clients)


def _preemptions(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    return _none_of((engine.preemptions for engine in seen.engines), "preemptions")


def _prefix_cache(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    return _none_of((engine.prefix_cache_hits for engine in seen.engines), "prefix cache hits")


def _idle_arms(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    return _none_of((seen.idle_arm_steps,), "engine steps in arms that should be idle")


def _kv_bytes(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    sizes = [engine.kv_bytes for engine in seen.engines]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or not known:
        return Finding(None, "KV bytes: unknown")
    return Finding(
        min(known) >= planned.kv_bytes_per_engine * (1 - KV_ROUNDING) and min(known) == max(known),
        f"KV of {_each_mib(known)} MiB, {planned.kv_bytes_per_engine / MIB:.1f} MiB each planned",
    )


def _core_sets(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    if not order.arm.pinned:
        return Finding(True, "not pinned, as asked")
    astray = [engine.engine for engine in seen.engines if engine.core_set_ok is False]
    if astray:
        return Finding(False, f"engines {astray} are not on the cores planned for them")
    if any(engine.core_set_ok is None for engine in seen.engines):
        return Finding(None, "core sets: unknown")
    return Finding(True, "every engine on its cores")


def _strangers(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    if seen.gpu.foreign_pids is not None:
        count = len(seen.gpu.foreign_pids)
        return Finding(count == 0, f"{count} foreign processes on the GPU: {list(seen.gpu.foreign_pids)}")
    # Without a list that shows us, memory tells: a stranger's context cannot come without taking some.
    if planned.gpu_memory_bytes is None or seen.gpu.memory_used_bytes is None:
        return Finding(None, "foreign processes: the list shows not even our own, and memory is unknown")
    grown = seen.gpu.memory_used_bytes - planned.gpu_memory_bytes
    return Finding(
        grown <= MEMORY_DRIFT_BYTES, f"no usable process list; memory {grown / MIB:+.0f} MiB since the engines were up"
    )


def _attachment(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
    """MPS engines are clients of our daemon, and engines outside MPS are not: both proved."""
    proof = seen.attachment
    if proof.method == "simulated":
        return Finding(planned.backend == "simulated", f"MPS attachment simulated, on backend {planned.backend}")
    attached = set(proof.attached)
    strays = sorted(attached & set(proof.should_be_detached))
    unproved = sorted(set(proof.should_be_detached) - set(proof.detached) - attached)
    if strays:
        return Finding(False, f"engines outside MPS are clients of the daemon: pids {strays}")
    if proof.method == "none":
        return Finding(None, "MPS attachment: not proved either way")
    if unproved:
        return Finding(False, f"not proved to be outside MPS: pids {unproved}")
    if order.arm.sharing == "mps":
        missing = sorted(set(proof.expected) - attached)
        if missing or len(set(proof.expected)) < order.arm.engines:
            there = len(attached & set(proof.expected))
            return Finding(False, f"{there} of {order.arm.engines} engines are MPS clients; missing: pids {missing}")
        return Finding(True, f"{order.arm.engines} engines are MPS clients ({proof.method})")
    if len(set(proof.detached)) < order.arm.engines:
        return Finding(False, f"{len(set(proof.detached))} of {order.arm.engines} engines proved to be outside MPS")
    return Finding(True, f"{order.arm.engines} engines are outside MPS ({proof.method})")


def _none_of(counts: Iterable[int | None], what: str) -> Finding:
    values = list(counts)
    known = [value for value in values if value is not None]
    if any(known):
        return Finding(False, f"{sum(known)} {what}")
    if len(known) < len(values) or not known:
        return Finding(None, f"{what}: unknown")
    return Finding(True, f"0 {what}")


def _each_mib(sizes: list[int]) -> str:
    return " and ".join(f"{size / MIB:.1f}" for size in sizes)


Check = Callable[[WindowOrder, Observation, Planned], Finding]


def _served(check: Check) -> Check:
    """`check` where requests are served: in a replayed window none moves, and there is nothing to see."""

    def judged(order: WindowOrder, seen: Observation, planned: Planned) -> Finding:
        if order.workload.replayed:
            return Finding(True, "one step is replayed: no request is served")
        return check(order, seen, planned)

    return judged


CHECKS: Mapping[str, Check] = {
    "engines": _engines,
    "length": _length,
    "tokens": _tokens,
    "failed_requests": _failed_requests,
    "replayed_step": _replayed,
    "completions": _served(_completions),
    "decode_only": _served(_decode_only),
    "in_flight": _in_flight,
    "little": _served(_little),
    "waiting": _served(_waiting),
    "preemptions": _preemptions,
    "prefix_cache": _prefix_cache,
    "kv_bytes": _kv_bytes,
    "core_sets": _core_sets,
    "idle_arms": _idle_arms,
    "strangers": _strangers,
    "attachment": _attachment,
}
