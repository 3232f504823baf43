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
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster import Cluster, return_limit_s
from orchestrator.errors import ClusterError, GpuNotClean, StoreError
from orchestrator.host import Assignment, GpuHost, Receipt
from orchestrator.hosts import LOOK_S, Host, Hosts, hosts_wanted, last_line
from orchestrator.plan import Block
from orchestrator.quarantine import Quarantine
from orchestrator.trial import Outcome, Repeat
from orchestrator.tries import LOST_HOST, Attempt, End, Work, take


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
    # Boots of one model go to different GPUs, because a verdict from one GPU is a verdict about that GPU.
    ordered = sorted(blocks, key=lambda block: -block.expected_gpu_s) if several else blocks
    waiting = deque(Work.first(block) for block in ordered)
    running: dict[Any, tuple[Attempt, Host]] = {}
    hosts = Hosts(blocks[0], cluster, host, return_limit_s())
    try:
        while waiting or running:
            while waiting and hosts.idle:
                free = hosts.idle[-1]
                work = take(waiting, free.seen) if several else waiting.popleft()
                assignment = assignment_of(work.block)
                if left := {repeat.repeat_id: repeat for repeat in assignment.block.repeats}:
                    hosts.idle.pop()
                    free.seen[work.block.model] += 1
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
                    end, reason, log_tail = End.BROKE, last_line(str(error)), str(error)
                    hosts.idle.append(at)
            except ray.exceptions.RayError as error:  # the actor, its worker or its node is gone
                end, reason, log_tail = End.LOST, f"{LOST_HOST}{last_line(str(error))}", str(error)
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
