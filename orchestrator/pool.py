"""Blocks over the cluster's GPUs: one `GpuHost` actor a GPU, receipts in the order in which work ends.

    with closing(run_blocks(blocks, cluster, ...)) as events:
        for event in events:      # Landed or Lost

What failed, and what a block did not get to because its actor, its node or its engines were lost, is tried once more,
on any host that is free; what is left after that comes back as `Lost` with its reason, for the driver to record.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.cluster import ACCELERATOR_LABEL, Cluster
from orchestrator.errors import ClusterError, StoreError
from orchestrator.host import Assignment, GpuHost, Receipt
from orchestrator.plan import Block
from orchestrator.trial import Backend, Outcome, Repeat

ATTEMPTS = 2
# A host without a GPU is one busy core.
HOST_CPUS = 1.0
# A host that the scheduler has not placed by now is waiting for somebody else's work to end.
PLACEMENT_LIMIT_S = 600.0
# How often to ask whether the cluster can still place a host, while nothing happens.
LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Lost:
    """A repeat that no attempt could finish, to be recorded as failed."""

    repeat: Repeat
    block: Block
    reason: str
    log_tail: str


@dataclass(frozen=True, slots=True)
class Landed:
    """A repeat that is in the store. final: False where it failed and will be tried once more."""

    receipt: Receipt
    final: bool


@dataclass(slots=True)
class _Task:
    """A block on a host.

    tries: by repeat id, attempts before this one that came to nothing. left: repeats without a receipt, in the order in
    which the host takes them; failed: those whose receipt tells of a failed trial and that may be tried again.
    """

    assignment: Assignment
    actor: Any
    tries: Mapping[str, int]
    left: dict[str, Repeat]
    failed: dict[str, Repeat] = field(default_factory=dict)
    progress: bool = False
    fault: str = ""

    def land(self, receipt: Receipt) -> Landed:
        repeat = self.left.pop(receipt.repeat_id)
        faults = [trial.reason for trial in receipt.trials if trial.outcome == Outcome.FAILED]
        self.progress |= not faults
        if not faults:
            return Landed(receipt, final=True)
        self.fault = faults[0] or ""
        final = self.tries[receipt.repeat_id] + 1 >= ATTEMPTS
        if not final:
            self.failed[receipt.repeat_id] = repeat
        return Landed(receipt, final)

    def remains(self, broke: bool) -> dict[str, int]:
        """Attempts so far of what is not settled, in the order of the next one: those that may have broken it last.

        broke: the host did not get to the end of its work, so the repeat at hand is one of them. A repeat that was
        never reached has lost no attempt, unless nothing at all succeeded: then it may be the whole block.
        """
        suspects = [*list(self.left)[: int(broke)], *self.failed]
        others = [repeat_id for repeat_id in self.left if repeat_id not in suspects]
        blamed = suspects if self.progress else [*others, *suspects]
        return {repeat_id: self.tries[repeat_id] + (repeat_id in blamed) for repeat_id in [*others, *suspects]}


AssignmentOf = Callable[[Block], Assignment]
Events = Generator[Landed | Lost, None, None]


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


def run_blocks(blocks: Sequence[Block], cluster: Cluster, assignment_of: AssignmentOf) -> Events:
    """Run `blocks`, which all have one backend and GPU kind, in completion order of their repeats.

    Close the iterator before Ray is shut down: it ends its hosts then.

    Raises:
        ClusterError: the cluster cannot meet the demand, or no host ever came up.
        StoreError: a host cannot write the store.
    """
    import ray

    if not blocks:
        return
    first = blocks[0]
    wanted = hosts_wanted(cluster, first.backend, first.gpu_kind, len(blocks))
    # Several hosts end together when the longest blocks are not left for last; one host keeps the order of the plan.
    ordered = sorted(blocks, key=lambda block: -block.expected_gpu_s) if wanted > 1 else blocks
    waiting: deque[tuple[Block, Mapping[str, int]]] = deque((b, {r.repeat_id: 0 for r in b.repeats}) for b in ordered)
    hosts = _Hosts(first, cluster)
    running: dict[Any, _Task] = {}
    try:
        hosts.start(wanted)
        while waiting or running:
            while waiting and hosts.idle:
                block, tries = waiting.popleft()
                assignment = assignment_of(block)
                if not (left := {repeat.repeat_id: repeat for repeat in assignment.block.repeats}):
                    continue
                task = _Task(assignment, hosts.idle.pop(), tries, left)
                running[task.actor.run.options(num_returns="streaming").remote(task.assignment)] = task
            if not waiting and not running:
                break
            watched = [*running, *(hosts.starting if waiting else ())]
            ready = ray.wait(watched, num_returns=1, timeout=LOOK_S, fetch_local=False)[0] if watched else []
            if not ready:
                if waiting and not running and (reason := hosts.hopeless()):
                    if not hosts.ever:
                        raise ClusterError(reason)
                    for block, _ in waiting:
                        yield from (Lost(repeat, block, f"no host is left: {reason}", "") for repeat in block.repeats)
                    return
                continue
            if ready[0] in hosts.starting:
                hosts.settle(ready[0])
                continue
            stream = ready[0]
            task = running[stream]
            broke, log_tail = True, ""
            try:
                yield task.land(ray.get(next(stream)))
                continue
            except StopIteration:
                hosts.idle.append(task.actor)
                broke, reason = False, f"the block ended early, because its engines were lost: {task.fault}"
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, StoreError):
                    raise error.cause from error
                hosts.idle.append(task.actor)
                reason, log_tail = _last_line(str(error)), str(error)
            except ray.exceptions.RayError as error:  # the actor, its worker or its node is gone
                ray.kill(task.actor)
                hosts.start(1)
                reason, log_tail = f"host lost: {_last_line(str(error))}", str(error)
            del running[stream]
            block = task.assignment.block
            repeats = {repeat.repeat_id: repeat for repeat in block.repeats}
            tries = task.remains(broke)
            again = tuple(repeats[repeat_id] for repeat_id, count in tries.items() if count < ATTEMPTS)
            if again:
                waiting.append((replace(block, repeats=again), tries))
            lost = (repeats[repeat_id] for repeat_id, count in tries.items() if count >= ATTEMPTS)
            yield from (Lost(repeat, block, reason, log_tail) for repeat in lost)
    finally:
        for actor in [*hosts.idle, *hosts.starting.values(), *(task.actor for task in running.values())]:
            ray.kill(actor)


@dataclass(slots=True)
class _Hosts:
    """Actors that hold no block: asked for (`starting`, by the reference that tells of their coming up) and `idle`."""

    block: Block
    cluster: Cluster
    starting: dict[Any, Any] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    ever: bool = False
    fault: str = ""
    failed_starts: int = 0
    waiting_since: float = field(default_factory=time.monotonic)

    def start(self, count: int) -> None:
        self.waiting_since = time.monotonic()
        for _ in range(count):
            actor = _start_host(self.block)
            self.starting[actor.describe.remote()] = actor

    def settle(self, reference: Any) -> None:
        """A host came up, or did not; the first ones that do not are asked for again."""
        import ray

        actor = self.starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            self.fault = _last_line(str(error))
            self.failed_starts += 1
            if self.failed_starts < ATTEMPTS:
                self.start(1)
            return
        self.ever, self.failed_starts = True, 0
        self.idle.append(actor)

    def hopeless(self) -> str:
        """Why there will be no host, where none is left; empty while one may still come."""
        if not self.starting:
            return (
                f"{ATTEMPTS} hosts did not come up: {self.fault}. Every node needs the packages of this project: run "
                "from a shared folder, submit with --working-dir, or install it there"
            )
        now = self.cluster.now()
        try:
            hosts_wanted(now, self.block.backend, self.block.gpu_kind, 1)
        except ClusterError as error:
            return str(error)
        waited_s = time.monotonic() - self.waiting_since
        if waited_s > PLACEMENT_LIMIT_S:
            return f"no host was placed within {waited_s:.0f} s; others hold the resources of {now}"
        return ""


def _start_host(block: Block) -> Any:
    import ray

    options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
    if block.backend == "vllm":
        options |= {"num_gpus": 1, "num_cpus": 1, "label_selector": {ACCELERATOR_LABEL: block.gpu_kind}}
    else:
        options |= {"num_gpus": 0, "num_cpus": HOST_CPUS}
    return ray.remote(GpuHost).options(**options).remote(block.backend)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
