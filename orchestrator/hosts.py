"""The actors of a sweep that hold no block: asked for, idle, or kept away from work because their GPU is not clean.

They come and go with the nodes of the cluster, so it is asked again and again whether there is room for more, and
whether there is hope where none is left.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster import ACCELERATOR_LABEL, Cluster
from orchestrator.errors import ClusterError
from orchestrator.host import GpuHost
from orchestrator.plan import Block
from orchestrator.trial import Backend
from orchestrator.tries import ATTEMPTS

# A host without a GPU is one busy core.
HOST_CPUS = 1.0
# A host that the scheduler has not placed by now is waiting for somebody else's work to end.
PLACEMENT_LIMIT_S = 600.0
# How often to ask whether the cluster can still place a host, while nothing happens; and whether it can place more.
LOOK_S = 2.0


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


@dataclass(frozen=True, slots=True)
class Host:
    """An actor that came up. name: of the machine; seen: blocks that it was given, by model."""

    actor: Any
    name: str
    seen: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Hosts:
    """Actors that hold no block: asked for (`starting`, by the reference that tells of their coming up), `idle`, and
    `quarantined`: alive to keep Ray from giving their GPUs to anybody else of the sweep."""

    block: Block
    cluster: Cluster
    kind: type[GpuHost]
    return_limit_s: float
    starting: dict[Any, Any] = field(default_factory=dict)
    idle: list[Host] = field(default_factory=list)
    quarantined: list[Host] = field(default_factory=list)
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
                self.fault = last_line(str(error))
                self.failed_starts += 1
            return
        self.ever, self.failed_starts = True, 0
        self.idle.append(Host(actor, str(facts["host"])))

    def drop(self, host: Host) -> None:
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

    def end(self, running: Sequence[Host]) -> None:
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


def last_line(text: str) -> str:
    """Of an exception's text: what it came to."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
