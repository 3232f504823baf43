"""How the kernels of several engines share one GPU, in virtual time.

`Alone` is one engine. `SideBySide` is MPS: the steps of all engines progress together and contend for SMs, memory
bandwidth and the dispatch of kernels. `TimeSlices` is the driver without MPS: the kernels of one context at a time, in
turns. Each hands back the engine of a job that is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Protocol

from orchestrator.simulated.constants import value
from orchestrator.simulated.engine import INFINITY, Engine, Job

# Share of the step's time, and what is held in it: of the SMs, of the achievable bandwidth, of the kernel dispatch.
Phase = tuple[float, float, float, float]


class Sharing(Protocol):
    """What runs on the GPU."""

    def start(self, engine: Engine, job: Job, now: float) -> None:
        """An engine, which has nothing there, hands over its next job."""
        ...

    def next_at(self, now: float, before: float = INFINITY) -> float:
        """When the next job is done if nothing is started before; infinity on an idle GPU.

        before: time of the caller's own next event. What lies beyond it may be left open and any later time be given.
        """
        ...

    def event(self, now: float) -> Engine:
        """`now` is what `next_at` gave last: the engine whose job is done."""
        ...


class Alone:
    """One engine has the GPU."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._end_s = INFINITY

    def start(self, engine: Engine, job: Job, now: float) -> None:
        self._engine, self._end_s = engine, max(now + job.seconds, job.launched_s)

    def next_at(self, now: float, before: float = INFINITY) -> float:
        return self._end_s

    def event(self, now: float) -> Engine:
        assert self._engine is not None
        self._end_s = INFINITY
        return self._engine


class SideBySide:
    """Jobs run at once. All are slowed alike, by the mean over the phases that can meet of what is asked for.

    Phases of different engines meet at random: kernels last microseconds, steps milliseconds. Where the sum of SM or
    bandwidth shares is above one, all wait in proportion. So the GPU never does more than its roofline allows. The end
    of one kernel and the beginning of the next are dealt with one at a time on the whole GPU: small kernels of two
    processes come no faster than those of one (docs/simulation.md says from which measurements).
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[float, Engine, tuple[Phase, ...]]] = []  # end in service time
        self._service_s = 0.0  # seconds of work done for each job, on the common scale
        self._updated_s = 0.0
        self._rate = 1.0
        self._next_s: float | None = INFINITY  # None: the jobs have changed since it was known

    def start(self, engine: Engine, job: Job, now: float) -> None:
        self._settle(now)
        seconds = max(job.seconds, job.launched_s - now)
        self._jobs.append((self._service_s + seconds, engine, phases(job, seconds)))
        self._next_s = None

    def next_at(self, now: float, before: float = INFINITY) -> float:
        if self._next_s is None:
            jobs = self._jobs
            if not jobs:
                self._next_s = INFINITY
                return INFINITY
            if len(jobs) == 1:
                self._rate, first = 1.0, jobs[0][0]
            else:
                self._rate, first = 1.0 / slowdown([job[2] for job in jobs]), min(jobs, key=_end)[0]
            self._next_s = self._updated_s + max(0.0, first - self._service_s) / self._rate
        return self._next_s

    def event(self, now: float) -> Engine:
        self._settle(now)
        jobs = self._jobs
        done = jobs[0] if len(jobs) == 1 else min(jobs, key=_end)
        jobs.remove(done)
        self._service_s = max(self._service_s, done[0])  # rounding must not leave a sliver of the job behind
        self._next_s = None
        return done[1]

    def _settle(self, now: float) -> None:
        self._service_s += (now - self._updated_s) * self._rate
        self._updated_s = now


class TimeSlices:
    """One context at a time. A context whose kernels run out gives up its turn; a switch costs time.

    Gaps within a step, also those of launches that come late, are not given to others: they are shorter than a slice.
    """

    def __init__(self) -> None:
        self.slice_s = value("time_slice")
        self.switch_s = value("context_switch")
        self._holder: Engine | None = None
        self._running: Engine | None = None
        self._from_s = 0.0
        self._remaining_s = 0.0
        self._slice_ends_s = 0.0
        self._queue: deque[tuple[Engine, float]] = deque()

    def start(self, engine: Engine, job: Job, now: float) -> None:
        seconds = max(job.seconds, job.launched_s - now)
        keeps_turn = self._running is None and self._holder is engine and (now < self._slice_ends_s or not self._queue)
        if keeps_turn:
            self._running, self._from_s, self._remaining_s = engine, now, seconds
        else:
            self._queue.append((engine, seconds))

    def next_at(self, now: float, before: float = INFINITY) -> float:
        queue = self._queue
        running = self._running
        if running is None:
            if not queue:
                return INFINITY
            running = self._dispatch(now)
        while queue:
            turn_s = self._slice_ends_s
            if turn_s < now or turn_s < self._from_s:  # the slice ended while nobody else had work
                turn_s = max(self._from_s, now)
            if turn_s >= self._from_s + self._remaining_s:
                break
            if turn_s > before:  # a job may be started until then, which is how turns may change
                return turn_s
            now = turn_s
            queue.append((running, self._remaining_s - (now - self._from_s)))
            running = self._dispatch(now)
        return self._from_s + self._remaining_s

    def event(self, now: float) -> Engine:
        engine = self._running
        assert engine is not None
        self._running = None
        return engine

    def _dispatch(self, now: float) -> Engine:
        engine, self._remaining_s = self._queue.popleft()
        self._from_s = now if engine is self._holder or self._holder is None else now + self.switch_s
        self._slice_ends_s = self._from_s + self.slice_s
        self._running = self._holder = engine
        return engine


_end = itemgetter(0)


def phases(job: Job, seconds: float) -> tuple[Phase, ...]:
    """The phases of a job that takes `seconds` alone; for the rest launches are waited for, and nothing is held."""
    cost = job.cost
    alone_s = cost.compute_s + cost.memory_s + cost.gap_s
    scale = job.seconds / (alone_s * seconds) if seconds > 0 else 0.0
    return (
        (cost.compute_s * scale, cost.compute_sm, cost.compute_bw, 0.0),
        (cost.memory_s * scale, cost.memory_sm, cost.memory_bw, 0.0),
        (cost.gap_s * scale, cost.gap_sm, 0.0, 1.0),
    )


def slowdown(jobs: Sequence[tuple[Phase, ...]]) -> float:
    """Mean over independent phases of max(1, what is asked for of SMs, bandwidth and dispatch); 1 for one job.

    At least max(1, sum of the jobs' mean SM shares, sum of their mean bandwidth shares), by Jensen's inequality.
    """
    if len(jobs) == 1:
        return 1.0
    if len(jobs) == 2:
        extra = 0.0
        other = jobs[1]
        for weight_a, sm_a, bw_a, dispatch_a in jobs[0]:
            for weight_b, sm_b, bw_b, dispatch_b in other:
                asked = max(sm_a + sm_b, bw_a + bw_b, dispatch_a + dispatch_b)
                if asked > 1.0:
                    extra += weight_a * weight_b * (asked - 1.0)
        return 1.0 + extra
    return _mean_asked(jobs, 0, 0.0, 0.0, 0.0)


def _mean_asked(jobs: Sequence[tuple[Phase, ...]], first: int, sm: float, bw: float, dispatch: float) -> float:
    if first == len(jobs):
        return max(1.0, sm, bw, dispatch)
    rest = 1.0 - sum(phase[0] for phase in jobs[first])
    mean = rest * _mean_asked(jobs, first + 1, sm, bw, dispatch) if rest > 1e-12 else 0.0
    for weight, more_sm, more_bw, more_dispatch in jobs[first]:
        if weight > 0:
            mean += weight * _mean_asked(jobs, first + 1, sm + more_sm, bw + more_bw, dispatch + more_dispatch)
    return mean
