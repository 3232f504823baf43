"""Blocks over the cluster's GPUs: one `GpuHost` actor a GPU, receipts in the order in which work ends.

    with closing(run_blocks(blocks, cluster, ...)) as events:
        for event in events:      # Landed, Lost, Quarantined or Stranded

What failed, and what a block did not get to because its actor, its node or its engines were lost, is tried again, on
any host that is free (orchestrator/tries.py says how often). Every attempt that came to something is told of, so that
the driver can record it. A host whose GPU is not clean keeps the GPU and gets no more work.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster import ACCELERATOR_LABEL, Cluster, return_limit_s
from orchestrator.errors import ClusterError, GpuNotClean, StoreError
from orchestrator.host import Assignment, GpuHost, Receipt
from orchestrator.plan import Block
from orchestrator.quarantine import Quarantine
from orchestrator.trial import Backend, Outcome, Repeat
from orchestrator.tries import ATTEMPTS, LOST_HOST, Attempt, End, Work

# A host without a GPU is one busy core.
HOST_CPUS = 1.0
# A host that the scheduler has not placed by now is waiting for somebody else's work to end.
PLACEMENT_LIMIT_S = 600.0
# How often to ask whether the cluster can still place a host, while nothing happens; and whether it can place more.
LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Landed:
    """A repeat that is in the store. final: False where it failed and will be tried once more."""

    receipt: Receipt
    final: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt that left no receipt, to be recorded as failed. final: False where the repeat is tried again."""

    repeat: Repeat
    block: Block
    reason: str
    log_tail: str
    final: bool


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A GPU that gets no more work."""

    quarantine: Quarantine


@dataclass(frozen=True, slots=True)
class Stranded:
    """Repeats that no host is left for: not settled, and so left to a later run."""

    repeats: tuple[Repeat, ...]
    reason: str


AssignmentOf = Callable[[Block], Assignment]
Event = Landed | Lost | Quarantined | Stranded
Events = Generator[Event, None, None]


def hosts_wanted(cluster: Cluster, backend: Backend, gpu_kind: str, blocks: int) -> int:
    """How many hosts to start. Raises ClusterError, naming what there is, for a demand that can never be met."""
    if backend == "vllm":
        room = cluster.gpus.get(gpu_kind, 0)
        if room < 1:
            raise ClusterError(
                f"the sweep wants a GPU of kind {gpu_kind!r}; there is {cluster}. Change `gpu` in the sweep file, "
                "start Ray where such a GPU is, or use --backend simulated"
            )
        return min(room, blocks)
    room = int(cluster.cpus // HOST_CPUS)
    if room < 1:
        raise ClusterError(f"a {backend} host needs {HOST_CPUS:g} CPU; there is {cluster}")
    # Real engines on the CPU would disturb one another: one host for the whole machine.
    return min(room, blocks) if backend == "simulated" else 1


def run_blocks(
    blocks: Sequence[Block],
    cluster: Cluster,
    assignment_of: AssignmentOf,
    host: type[GpuHost] = GpuHost,
    show_running: Callable[[int], None] = lambda blocks: None,
) -> Events:
    """Run `blocks`, which all have one backend and GPU kind, in completion order of their repeats.

    host: what runs on each GPU. show_running: told how many blocks are under way whenever that changes.
    Close the iterator before Ray is shut down: it ends its hosts then.

    Raises:
        ClusterError: the cluster cannot meet the demand, or no host ever came up.
        StoreError: a host cannot write the store.
    """
    import ray

    if not blocks:
        return
    several = hosts_wanted(cluster, blocks[0].backend, blocks[0].gpu_kind, len(blocks)) > 1
    # Several hosts end together when the longest blocks are not left for last; one host keeps the order of the plan.
    ordered = sorted(blocks, key=lambda block: -block.expected_gpu_s) if several else blocks
    waiting = deque(Work.first(block) for block in ordered)
    running: dict[Any, tuple[Attempt, _Host]] = {}
    hosts = _Hosts(blocks[0], cluster, host, return_limit_s())
    try:
        while waiting or running:
            while waiting and hosts.idle:
                work = waiting.popleft()
                assignment = assignment_of(work.block)
                if left := {repeat.repeat_id: repeat for repeat in assignment.block.repeats}:
                    free = hosts.idle.pop()
                    stream = free.actor.run.options(num_returns="streaming").remote(assignment)
                    running[stream] = Attempt(work, left), free
                    show_running(len(running))
            if not waiting and not running:
                break
            hosts.refill(len(waiting), len(running))
            watched = [*running, *(hosts.starting if waiting else ())]
            ready = ray.wait(watched, num_returns=1, timeout=LOOK_S, fetch_local=False)[0] if watched else []
            if not watched:
                time.sleep(LOOK_S)
            if not ready:
                if waiting and not running and (reason := hosts.hopeless()):
                    if not hosts.ever:
                        raise ClusterError(reason)
                    yield Stranded(tuple(repeat for work in waiting for repeat in work.block.repeats), reason)
                    return
                continue
            if ready[0] in hosts.starting:
                hosts.settle(ready[0])
                continue
            attempt, at = running[ready[0]]
            log_tail = ""
            try:
                receipt = ray.get(next(ready[0]))
                fault = next((t.reason or "" for t in receipt.trials if t.outcome == Outcome.FAILED), None)
                yield Landed(receipt, attempt.land(receipt.repeat_id, fault))
                continue
            except StopIteration:
                end, reason = End.ENDED, f"the block ended early, because its engines were lost: {attempt.fault}"
                hosts.idle.append(at)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, StoreError):
                    raise error.cause from error
                if isinstance(error.cause, GpuNotClean):
                    end, reason = End.UNCLEAN, str(error.cause)
                    hosts.quarantined.append(at)
                    yield Quarantined(Quarantine.because(reason, at.name, time.time()))
                else:
                    end, reason, log_tail = End.BROKE, _last_line(str(error)), str(error)
                    hosts.idle.append(at)
            except ray.exceptions.RayError as error:  # the actor, its worker or its node is gone
                end, reason, log_tail = End.LOST, f"{LOST_HOST}{_last_line(str(error))}", str(error)
                hosts.drop(at)
            del running[ready[0]]
            show_running(len(running))
            again, spent = attempt.rest(end)
            if again:
                waiting.append(again)
            at_hand = attempt.at_hand
            if at_hand and end in (End.BROKE, End.LOST) and at_hand.repeat_id not in spent:
                yield Lost(at_hand, attempt.work.block, reason, log_tail, final=False)
            for repeat in spent.values():
                yield Lost(repeat, attempt.work.block, reason, log_tail, final=True)
    finally:
        hosts.end([at for _, at in running.values()])


@dataclass(frozen=True, slots=True)
class _Host:
    """An actor that came up. name: of the machine."""

    actor: Any
    name: str


@dataclass(slots=True)
class _Hosts:
    """Actors that hold no block: asked for (`starting`, by the reference that tells of their coming up), `idle`, and
    `quarantined`: alive to keep Ray from giving their GPUs to anybody else of the sweep."""

    block: Block
    cluster: Cluster
    kind: type[GpuHost]
    return_limit_s: float
    starting: dict[Any, Any] = field(default_factory=dict)
    idle: list[_Host] = field(default_factory=list)
    quarantined: list[_Host] = field(default_factory=list)
    ever: bool = False
    fault: str = ""
    failed_starts: int = 0
    looked_s: float = float("-inf")
    there: int = 0  # places for hosts, of those in quarantine too
    room: int = 0
    there_since_s: float = field(default_factory=time.monotonic)
    waiting_since_s: float = field(default_factory=time.monotonic)

    def refill(self, waiting: int, running: int) -> None:
        """Ask for hosts where the cluster has room for more: at the start, after a loss, when nodes join."""
        if time.monotonic() - self.looked_s < LOOK_S or self.failed_starts >= ATTEMPTS:
            return
        self.looked_s = time.monotonic()
        self.room = self._room()
        missing = min(self.room - running, waiting) - len(self.idle) - len(self.starting)
        for _ in range(missing):
            actor = _start_host(self.block, self.kind)
            self.starting[actor.describe.remote()] = actor
            self.waiting_since_s = time.monotonic()

    def _room(self) -> int:
        """For how many hosts that may get work, idle and running ones included. Raises ClusterError at the start."""
        try:
            room = hosts_wanted(self.cluster.now(), self.block.backend, self.block.gpu_kind, 2**31)
        except ClusterError:
            if not self.ever:
                raise
            room = 0
        if room:
            self.there_since_s = time.monotonic()
        self.there = room
        return room - len(self.quarantined)

    def settle(self, reference: Any) -> None:
        """A host came up, or did not. One whose own code fails is asked for once more, one that was lost each time."""
        import ray

        actor = self.starting.pop(reference)
        try:
            facts = ray.get(reference)
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            if getattr(error, "actor_init_failed", True):
                self.fault = _last_line(str(error))
                self.failed_starts += 1
            return
        self.ever, self.failed_starts = True, 0
        self.idle.append(_Host(actor, str(facts["host"])))

    def drop(self, host: _Host) -> None:
        import ray

        ray.kill(host.actor)
        self.looked_s, self.failed_starts = float("-inf"), 0

    def hopeless(self) -> str:
        """Why there will be no host, where none is left; empty while one may still come."""
        if self.failed_starts >= ATTEMPTS:
            return (
                f"{ATTEMPTS} hosts did not come up: {self.fault}. Every node needs the packages of this project: run "
                "from a shared folder, submit with --working-dir, or install it there"
            )
        now = time.monotonic()
        if self.room < 1 <= self.there:
            return f"no GPU is left that is clean: {len(self.quarantined)} of this sweep are in quarantine"
        if self.there < 1 and now - self.there_since_s > self.return_limit_s:
            limit_s = self.return_limit_s
            return f"no host is left, and none came back within {limit_s:g} s; there is {self.cluster.now()}"
        if self.starting and now - self.waiting_since_s > PLACEMENT_LIMIT_S:
            waited_s = now - self.waiting_since_s
            return f"no host was placed within {waited_s:.0f} s; others hold the resources of {self.cluster.now()}"
        return ""

    def end(self, running: Sequence[_Host]) -> None:
        import ray

        for actor in [*(host.actor for host in (*self.idle, *self.quarantined, *running)), *self.starting.values()]:
            ray.kill(actor)


def _start_host(block: Block, kind: type[GpuHost]) -> Any:
    import ray

    options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
    if block.backend == "vllm":
        options |= {"num_gpus": 1, "num_cpus": 1, "label_selector": {ACCELERATOR_LABEL: block.gpu_kind}}
    else:
        options |= {"num_gpus": 0, "num_cpus": HOST_CPUS}
    return ray.remote(kind).options(**options).remote(block.backend)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
