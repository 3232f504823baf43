"""Blocks over the cluster's GPUs: one `GpuHost` actor a GPU, receipts in the order in which work ends.

    for receipt in run_blocks(blocks, cluster, ...):     # Landed or Lost

A block whose actor or node dies, whose engines are lost or which fails outright is tried once more, on any host that
is free; what is left after that comes back as `Lost` with its reason, for the driver to record.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
    """A block on a host. left: its repeats without a receipt; failed: those whose receipt tells of a failed trial."""

    assignment: Assignment
    actor: Any
    attempt: int
    left: dict[str, Repeat]
    failed: dict[str, Repeat] = field(default_factory=dict)

    @property
    def last_attempt(self) -> bool:
        return self.attempt >= ATTEMPTS

    def land(self, receipt: Receipt) -> Landed:
        repeat = self.left.pop(receipt.repeat_id)
        if any(trial.outcome == Outcome.FAILED for trial in receipt.trials) and not self.last_attempt:
            self.failed[receipt.repeat_id] = repeat
            return Landed(receipt, final=False)
        return Landed(receipt, final=True)


AssignmentOf = Callable[[Block], Assignment]


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


def run_blocks(blocks: Sequence[Block], cluster: Cluster, assignment_of: AssignmentOf) -> Iterator[Landed | Lost]:
    """Run `blocks`, which all have one backend and GPU kind, in completion order of their repeats.

    Raises:
        ClusterError: the cluster cannot meet the demand, or no host could be placed.
        StoreError: a host cannot write the store.
    """
    import ray

    first = blocks[0]
    waiting: deque[tuple[Block, int]] = deque((block, 1) for block in blocks)
    idle = [_start_host(first) for _ in range(hosts_wanted(cluster, first.backend, first.gpu_kind, len(blocks)))]
    running: dict[Any, _Task] = {}
    try:
        _await_first(idle, cluster)
        while waiting or running:
            while waiting and idle:
                block, attempt = waiting.popleft()
                task = _Task(assignment_of(block), idle.pop(), attempt, {r.repeat_id: r for r in block.repeats})
                running[task.actor.run.options(num_returns="streaming").remote(task.assignment)] = task
            stream = ray.wait(list(running), num_returns=1, fetch_local=False)[0][0]
            task = running[stream]
            try:
                yield task.land(ray.get(next(stream)))
                continue
            except StopIteration:
                idle.append(task.actor)
                reason, log_tail = "the block ended early: its engines were lost", ""
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, StoreError):
                    raise error.cause from error
                idle.append(task.actor)
                reason, log_tail = _last_line(str(error)), str(error)
            except ray.exceptions.RayError as error:  # the actor, its worker or its node is gone
                idle.append(_start_host(first))
                reason, log_tail = f"host lost: {_last_line(str(error))}", str(error)
            del running[stream]
            block = task.assignment.block
            if not task.last_attempt and (task.failed or task.left):
                rest = (*task.failed.values(), *task.left.values())
                waiting.append((replace(block, repeats=rest), task.attempt + 1))
            elif task.left:
                yield from (Lost(repeat, block, reason, log_tail) for repeat in task.left.values())
    finally:
        for actor in [*idle, *(task.actor for task in running.values())]:
            ray.kill(actor)


def _start_host(block: Block) -> Any:
    import ray

    options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
    if block.backend == "vllm":
        options |= {"num_gpus": 1, "num_cpus": 1, "label_selector": {ACCELERATOR_LABEL: block.gpu_kind}}
    else:
        options |= {"num_gpus": 0, "num_cpus": HOST_CPUS}
    return ray.remote(GpuHost).options(**options).remote()


def _await_first(hosts: Sequence[Any], cluster: Cluster) -> None:
    """Wait until one host is up. Raises ClusterError when the cluster is too busy to place any of them."""
    import ray

    started = time.monotonic()
    pending = [host.describe.remote() for host in hosts]
    ready, _ = ray.wait(pending, num_returns=1, timeout=PLACEMENT_LIMIT_S)
    if not ready:
        waited = time.monotonic() - started
        raise ClusterError(f"no host was placed within {waited:.0f} s; others hold the resources of {cluster}")
    ray.get(ready[0])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
