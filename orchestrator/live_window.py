"""One window on real engines: load one arm, wait until all its clients are under way, measure between two edges, stop.

Everything that could disturb is done outside the edges: prompts are made before, attachment is proved before and after,
and the arm that steps down is aborted, not drained.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import polars as pl

from orchestrator import replayed_window
from orchestrator.core_probe import speed_mops
from orchestrator.cores import Placement
from orchestrator.cpu_telemetry import CpuClock, CpuShares, CpuSnapshot, shares
from orchestrator.engine import Engine
from orchestrator.engine_probe import StepCounters
from orchestrator.errors import WindowError
from orchestrator.gpu_devices import Gpu
from orchestrator.gpu_telemetry import GpuEdge, GpuSampler
from orchestrator.memory import asked_output_tokens
from orchestrator.mps import MpsDaemon
from orchestrator.mps_attachment import prove_without_daemon
from orchestrator.observation import Attachment, EngineFacts, GpuFacts, Observation, ReplayedStep, WindowOrder
from orchestrator.trial import Arm
from workloads.architecture import Architecture

LOAD_LIMIT_S = 120.0
# 256 clients with 16k-token prompts on a 14B model prefill for minutes before the last one has a token.
RAMP_LIMIT_S = 600.0
STOP_LIMIT_S = 60.0
# Orders travel through a pipe; the first edge lies this far ahead so that every engine has it in time.
LEAD_S = 0.05
# Steps that stand still for this long mean that the aborts have arrived.
QUIET_S = 0.03
# Prompts made beforehand: at most this many token ids an engine (a Python list of them takes about 36 bytes an id).
PROMPT_IDS_LIMIT = 8_000_000


SAMPLE_COLUMNS: dict[str, type[pl.DataType]] = {
    "time_ns": pl.Int64,
    "source": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
}


@dataclass(slots=True)
class Bench:
    """The deployment's parts as a window needs them. rates: requests a second seen, by arm and workload."""

    engines: Mapping[str, Sequence[Engine]]
    arms: Mapping[str, Arm]
    model: Architecture
    gpu: Gpu | None
    sampler: GpuSampler | None
    mps: MpsDaemon | None
    placed: Mapping[str, Placement]
    rates: dict[tuple[Any, ...], float] = field(default_factory=dict)

    def all_engines(self) -> list[Engine]:
        return [engine for group in self.engines.values() for engine in group]

    def without(self, names: Collection[str]) -> Bench:
        """What is left when the engines of some arms have gone."""
        kept = {name: group for name, group in self.engines.items() if name not in names}
        return replace(self, engines=kept, arms={name: self.arms[name] for name in kept})

    def others(self, arm: Arm) -> list[Engine]:
        return [engine for name, group in self.engines.items() if name != arm.name for engine in group]


@dataclass(frozen=True, slots=True)
class Edge:
    """Counters at one edge of a window."""

    gpu: GpuEdge | None
    cpu: CpuSnapshot
    steps: Mapping[str, Mapping[str, int]]


def take_window(bench: Bench, order: WindowOrder) -> Observation:
    """Run one window. Raises EngineCrashed, MpsError or WindowError."""
    engines = bench.engines[order.arm.name]
    clients = split(order.concurrency, len(engines))
    _load(bench, order, engines, clients)
    began_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
    for engine in engines:
        engine.order({"op": "start", "start_ns": began_ns})
    try:
        ramped_ns = max(engine.expect("ramped", RAMP_LIMIT_S)[0]["at_ns"] for engine in engines)
        attached = attachment(bench, order.arm)
        if order.workload.replayed:
            start_ns, end_ns = replayed_window.begin(engines, clients, order)
        else:
            settled_ns = max(began_ns + int(order.warmup_s * 1e9), ramped_ns + int(order.settle_s * 1e9))
            start_ns = max(settled_ns, time.monotonic_ns()) + int(LEAD_S * 1e9)
            end_ns = start_ns + int(order.window_s * 1e9)
            for engine in engines:
                engine.order({"op": "window", "start_ns": start_ns, "end_ns": end_ns})
        _sleep_until(start_ns)
        first = _edge(bench)
        _sleep_until(end_ns)
        second = _edge(bench)
        answers = [engine.expect("window", STOP_LIMIT_S) for engine in engines]
        # A frontend whose EngineCore died still answers, with failed requests; an idle engine says nothing at all.
        for engine in bench.all_engines():
            engine.raise_if_dead()
        if errors := [answer["replay"]["error"] for answer, _ in answers if "error" in answer.get("replay", {})]:
            raise WindowError(f"{order.arm.name} replayed no step: {'; '.join(errors)}")
        attached = _weaker(attached, attachment(bench, order.arm))
    finally:
        _stop(bench, engines)
    seen = _observation(bench, order, engines, clients, answers, first, second, (began_ns, start_ns, end_ns), attached)
    return replace(
        seen, samples=pl.concat([seen.samples, _core_speeds(engines), _steps(engines, answers, order.window_s)])
    )


def split(concurrency: int, engines: int) -> list[int]:
    """Clients of each engine: as equal as they can be, the first ones take what is left over."""
    return [concurrency // engines + (index < concurrency % engines) for index in range(engines)]


def attachment(bench: Bench, arm: Arm) -> Attachment:
    """Who is attached to our daemon now, as far as it concerns the arm under load."""
    if bench.gpu is None:
        return Attachment()
    inside: dict[str, int] = {}
    outside: dict[str, int] = {}
    for name, group in bench.engines.items():
        side = inside if bench.arms[name].sharing == "mps" else outside
        side.update({engine.launch.token: engine.core_pid for engine in group})
    found = bench.mps.attachment(inside, outside) if bench.mps else prove_without_daemon(outside, _pipe_dirs(bench))
    own = {engine.core_pid for engine in bench.engines[arm.name]}
    return replace(
        found,
        expected=tuple(sorted(own & set(found.expected))),
        attached=tuple(sorted(own & set(found.attached))),
        detached=tuple(sorted(own & set(found.detached))),
        should_be_detached=tuple(sorted(own & set(found.should_be_detached))),
    )


def _pipe_dirs(bench: Bench) -> dict[str, str]:
    return {engine.launch.token: engine.facts["mps_pipe_directory"] for engine in bench.all_engines()}


def _weaker(first: Attachment, second: Attachment) -> Attachment:
    """What holds at both edges."""
    return replace(
        second,
        attached=tuple(sorted(set(first.attached) & set(second.attached))),
        detached=tuple(sorted(set(first.detached) & set(second.detached))),
    )


def _load(bench: Bench, order: WindowOrder, engines: Sequence[Engine], clients: Sequence[int]) -> None:
    work = order.workload
    expected = order.concurrency / order.latency_s if order.latency_s else 0.0
    rate = bench.rates.get(_key(order), expected) / len(engines)
    most = max(1, PROMPT_IDS_LIMIT // work.prompt_tokens)
    for index, engine in enumerate(engines):
        wanted = clients[index] * 3 + int(1.3 * rate * (order.warmup_s + order.settle_s + order.window_s))
        engine.order(
            {
                "op": "load",
                "clients": clients[index],
                "prompt_tokens": work.prompt_tokens,
                "output_tokens": asked_output_tokens(work),
                "text": work.as_text,
                "image": work.with_image,
                # A decode window has no prefill in it, so no request may end and be followed by another.
                "residual": work.phase != "decode",
                "seed": order.seed + index,
                "prompts": min(most, wanted),
            }
        )
    for engine in engines:
        engine.expect("loaded", LOAD_LIMIT_S)


def _stop(bench: Bench, engines: Sequence[Engine]) -> None:
    for engine in engines:
        engine.order({"op": "stop"})
    for engine in engines:
        engine.expect("stopped", STOP_LIMIT_S)
    deadline = time.monotonic() + STOP_LIMIT_S
    seen = [engine.counters.read()["steps"] for engine in engines]
    while time.monotonic() < deadline:
        time.sleep(QUIET_S)
        now = [engine.counters.read()["steps"] for engine in engines]
        if now == seen:
            return
        seen = now
    raise WindowError("the engines still step after their clients were stopped: aborts were lost")


def _edge(bench: Bench) -> Edge:
    cpus = {
        cpu for placed in bench.placed.values() for cores in placed.engines for cpu in (*cores.core, *cores.frontend)
    }
    pids = [pid for engine in bench.all_engines() for pid in engine.pids]
    return Edge(
        gpu=bench.sampler.edge() if bench.sampler else None,
        cpu=CpuClock().snapshot([*pids, os.getpid()], cpus),
        steps={engine.launch.name: engine.counters.read() for engine in bench.all_engines()},
    )


def _observation(
    bench: Bench,
    order: WindowOrder,
    engines: Sequence[Engine],
    clients: Sequence[int],
    answers: Sequence[tuple[dict[str, Any], bytes]],
    first: Edge,
    second: Edge,
    times_ns: tuple[int, int, int],
    attached: Attachment,
) -> Observation:
    began_ns, start_ns, end_ns = times_ns
    said = [answer for answer, _ in answers]
    tapered = [answer["output_tokens_s"] for answer in said]
    cpu = shares(first.cpu, second.cpu)
    duration_s = (end_ns - start_ns) / 1e9
    bench.rates[_key(order)] = sum(answer["requests_completed"] for answer in said) / duration_s
    own = {pid for engine in bench.all_engines() for pid in engine.pids} | _server_pids(bench)
    gpu = GpuFacts()
    samples = _token_samples(engines, said, start_ns)
    if bench.sampler and first.gpu and second.gpu:
        samples = pl.concat([samples, bench.sampler.samples(first.gpu, second.gpu).select(samples.columns)])
        gpu = bench.sampler.facts(first.gpu, second.gpu, own)
    driver = cpu.processes.get(os.getpid())
    return Observation(
        start_ns=start_ns,
        duration_s=duration_s,
        warmup_s=(start_ns - began_ns) / 1e9,
        output_tokens=sum(answer["output_tokens"] for answer in said),
        output_tokens_s=None if None in tapered else sum(tapered),
        prompt_tokens=sum(answer["prompt_tokens"] for answer in said),
        requests=pl.concat([engine.requests(payload) for engine, (_, payload) in zip(engines, answers, strict=True)]),
        samples=samples,
        engines=tuple(
            _engine_facts(bench, engine, count, answer, first, second, cpu)
            for engine, count, answer in zip(engines, clients, said, strict=True)
        ),
        gpu=gpu,
        attachment=attached,
        idle_arm_steps=sum(
            second.steps[engine.launch.name]["steps"] - first.steps[engine.launch.name]["steps"]
            for engine in bench.others(order.arm)
        ),
        driver_cpu=driver.process if driver else None,
        steal_share=cpu.steal_share,
        notes={
            "others_cores": cpu.others_cores,
            "prompts_made_late": sum(answer["prompts_made_late"] for answer in said),
            "errors": [error for answer in said for error in answer["errors"]],
            "engines": {
                engine.launch.name: _delta(first.steps[engine.launch.name], second.steps[engine.launch.name])
                for engine in engines
            },
            "output_tokens_by_engine": [answer["output_tokens"] for answer in said],
        },
    )


def _engine_facts(
    bench: Bench,
    engine: Engine,
    clients: int,
    answer: Mapping[str, Any],
    first: Edge,
    second: Edge,
    cpu: CpuShares,
) -> EngineFacts:
    steps = _delta(first.steps[engine.launch.name], second.steps[engine.launch.name])
    hooked = not str(engine.facts["step_hook"]).startswith("none")
    replay = answer.get("replay")
    if replay:  # replays pass by the scheduler, where steps are counted
        graph = round(replay["steps"]) if replay["launched"] == "graph" else 0
        steps = {**steps, "steps": round(replay["steps"]), "full": graph, "piecewise": 0}
    core = cpu.processes.get(engine.core_pid)
    frontend = cpu.processes.get(engine.child.identity.pid)
    blocks = engine.facts["kv_blocks"] * engine.facts["kv_block_tokens"]
    return EngineFacts(
        engine=engine.launch.index,
        clients=clients,
        in_flight_mean=answer["in_flight_mean"],
        requests_completed=answer["requests_completed"],
        requests_failed=answer["requests_failed"],
        steps=steps["steps"] if hooked or replay else None,
        steps_full_graph=steps["full"] if hooked or replay else None,
        steps_piecewise_graph=steps["piecewise"] if hooked or replay else None,
        steps_tokens=steps["tokens"] if hooked and not replay else None,
        steps_padded_tokens=steps["padded_tokens"] if hooked and not replay else None,
        running_mean=answer["running_mean"],
        waiting_mean=answer["waiting_mean"],
        kv_usage_max=answer["kv_usage_max"],
        preemptions=answer["preemptions"],
        prefix_cache_hits=answer["prefix_cache_hits"],
        engine_core_cpu=core.busiest_thread if core else None,
        engine_core_speed_mops=StepCounters.speed_mops(steps),
        frontend_cpu=frontend.busiest_thread if frontend else None,
        loop_lag_p99_s=answer["loop_lag_p99_s"],
        kv_bytes=blocks * bench.model.kv_bytes_per_token(),
        core_set_ok=engine.cores_as_planned(),
        replayed=ReplayedStep(**{each.name: replay[each.name] for each in fields(ReplayedStep)}) if replay else None,
    )


def _token_samples(engines: Sequence[Engine], said: Sequence[Mapping[str, Any]], start_ns: int) -> pl.DataFrame:
    rows = [
        (
            start_ns + int((index + 1) * answer["token_bin_s"] * 1e9),
            f"engine{engine.launch.index}",
            "output_tokens",
            count,
        )
        for engine, answer in zip(engines, said, strict=True)
        for index, count in enumerate(answer["token_bins"])
    ]
    return pl.DataFrame(rows, schema=SAMPLE_COLUMNS, orient="row")


def _core_speeds(engines: Sequence[Engine]) -> pl.DataFrame:
    """How fast each EngineCore's core is, read while it stands idle after the window: no counter tells it.

    A busy sibling thread of another guest, or a lowered clock, shows here and in no steal time.
    """
    rows = [
        (
            time.monotonic_ns(),
            f"engine{engine.launch.index}.core",
            "speed_mops",
            speed_mops(engine.launch.cores.core[0]),
        )
        for engine in engines
        if engine.launch.cores is not None
    ]
    return pl.DataFrame(rows, schema=SAMPLE_COLUMNS, orient="row")


def _steps(engines: Sequence[Engine], answers: Sequence[tuple[dict[str, Any], bytes]], window_s: float) -> pl.DataFrame:
    """Of each replayed step how long it took and what it held, and seconds by part where it was profiled."""
    rows: list[tuple[int, str, str, float]] = []
    at_ns = time.monotonic_ns()
    for engine, (answer, _) in zip(engines, answers, strict=True):
        replay = answer.get("replay")
        if replay and replay["steps"]:
            name = f"engine{engine.launch.index}"
            facts = {"step_s": window_s / replay["steps"], "tokens": replay["tokens"], "sequences": replay["sequences"]}
            rows += [(at_ns, f"{name}.step", fact, float(value)) for fact, value in facts.items()]
            rows += [(at_ns, f"{name}.part", f"{part}_s", value) for part, value in (replay["profile"] or {}).items()]
    return pl.DataFrame(rows, schema=SAMPLE_COLUMNS, orient="row")


def _server_pids(bench: Bench) -> set[int]:
    return {bench.mps.server.pid} if bench.mps and bench.mps.server else set()


def _delta(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: second[name] - first[name] for name in first}


def _key(order: WindowOrder) -> tuple[Any, ...]:
    work = order.workload
    return (order.arm.name, work.kind, work.prompt_tokens, work.output_tokens, order.concurrency)


def _sleep_until(at_ns: int) -> None:
    time.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9))
