"""The event loop: engines with their host threads around one shared GPU, until the window is over.

run = simulate(engines, SideBySide(), PowerCap(gpu), until_s)
run.busy        # when the GPU had work
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import WindowError
from orchestrator.simulated.engine import INFINITY, Engine
from orchestrator.simulated.power import PowerCap
from orchestrator.simulated.sharing import Sharing

# As long as real clients may wait for their first tokens.
RAMP_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Run:
    """What happened from virtual time 0 to `until_s`; the engines carry their own logs."""

    engines: tuple[Engine, ...]
    power: PowerCap
    busy: tuple[tuple[float, float], ...]  # intervals in which some kernel ran or was between two launches
    until_s: float


def simulate(
    engines: Sequence[Engine], sharing: Sharing, power: PowerCap, until_s: float, window_s: float | None = None
) -> Run:
    """Run `engines`, whose first requests have been sent, from time 0 to `until_s`.

    window_s: where given, the run goes on until that long after every client had its first token, as with real engines.
    Raises WindowError where a client still waits for it after RAMP_LIMIT_S.
    """
    busy: list[tuple[float, float]] = []
    busy_from = now = 0.0
    on_gpu = 0
    for engine in engines:
        engine.form_step(now)
    while True:
        host_s, actor = until_s, engines[0]
        for engine in engines:
            if engine.host_at < host_s:
                host_s, actor = engine.host_at, engine
        done_s = sharing.next_at(now, host_s)
        if min(host_s, done_s) >= until_s:
            if window_s is None or (ends_s := max(engine.ramped_s() for engine in engines) + window_s) <= until_s:
                break
            if ends_s == INFINITY and until_s > RAMP_LIMIT_S + window_s:
                raise WindowError(f"after {RAMP_LIMIT_S:.0f} virtual seconds a client still had no token")
            until_s = min(ends_s, until_s + window_s)
            continue
        if host_s < done_s:
            now = host_s
            job = actor.host_event(now)
            if job is not None:
                sharing.start(actor, job, now)
                if on_gpu == 0:
                    busy_from = now
                on_gpu += 1
            continue
        now = done_s
        engine = sharing.event(now)
        if power.add(engine.steps[len(engine.gpu_done_s)].cost, now):
            clock = power.read(now)
            for each in engines:
                each.clock = clock
        job = engine.gpu_done(now)
        if job is not None:
            sharing.start(engine, job, now)
            continue
        on_gpu -= 1
        if on_gpu == 0:
            busy.append((busy_from, now))
    if on_gpu:
        busy.append((busy_from, until_s))
    if not power.readings:
        power.read(until_s)
    return Run(tuple(engines), power, tuple(busy), until_s)
