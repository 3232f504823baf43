"""The actor that owns one GPU, or one core for simulated work: takes a block, measures it, writes what it saw.

Results go from here straight to the store; only receipts travel to the driver. Before it measures anything the actor
looks at what a running cluster made of it (niceness, process group) and puts it right or says so, because flags that
a driver sets do not reach workers of a cluster that runs already.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from orchestrator.account import Account
from orchestrator.engine import THREAD_LIMITS
from orchestrator.engine_settings import base_environment
from orchestrator.errors import MeasurementError, StoreError
from orchestrator.gpu_lease import GpuLease
from orchestrator.nursery import Nursery, nursery
from orchestrator.observation import Deployment
from orchestrator.pace import Pace
from orchestrator.plan import Block
from orchestrator.runner import BlockContext, OpenDeployment, TrialSummary, run_block
from orchestrator.store import ResultStore
from orchestrator.trial import Arm, Backend

NO_SECONDS = pl.Series("duration_s", [], pl.Float64)
# Ray spells it so: the raylet ends a worker's whole process group with it.
GROUP_CLEANUP = "RAY_process_group_cleanup_enabled"


@dataclass(frozen=True, slots=True)
class Assignment:
    """A block with what its actor must know. generations: the commit generation to write, by repeat id; latencies_s:
    what earlier boots showed, as of `Pace`."""

    block: Block
    context: BlockContext
    store_uri: str
    store_mark: str
    generations: Mapping[str, int]
    latencies_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A repeat that is in the store. committed: False where another driver had committed it first; latencies_s: what
    its windows showed, as of `Pace`."""

    repeat_id: str
    committed: bool
    host: str
    trials: tuple[TrialSummary, ...]
    latencies_s: Mapping[str, float] = field(default_factory=dict)


class GpuHost:
    """Runs as a Ray actor; one a GPU. Plain Python, so that tests and debuggers can call it without Ray."""

    def __init__(self, backend: Backend) -> None:
        self.worker = settle_worker()
        self._stack = contextlib.ExitStack()
        self._lease = GpuLease() if backend == "vllm" else None
        # vLLM is imported beside whatever else is still going on, before the first block wants an engine.
        self._births = None if backend == "simulated" else self._stack.enter_context(host_nursery())
        self._pace = None if backend == "simulated" else Pace()

    def describe(self) -> dict[str, Any]:
        """What this actor found and put right."""
        return dict(self.worker)

    def run(self, assignment: Assignment) -> Iterator[Receipt]:
        """Measure a block; yields a receipt for each repeat as soon as it is in the store.

        Raises GpuNotClean when the GPU is not clean before or after the block, whatever became of that, and StoreError
        as `_run` does.
        """
        with self._lease.held() if self._lease else contextlib.nullcontext():
            yield from self._run(assignment)

    def _run(self, assignment: Assignment) -> Iterator[Receipt]:
        """As `run`, on a GPU that is clean.

        Raises StoreError when the store cannot be written from here or is not the driver's.
        """
        store = ResultStore.open(assignment.store_uri, create=False)
        if store.mark() != assignment.store_mark:
            raise StoreError(
                f"{assignment.store_uri} on {socket.gethostname()} is not the store that the driver opened: "
                "on several nodes the store must be a shared folder or a bucket"
            )
        block, sweep = assignment.block, assignment.context.sweep
        if self._pace:
            self._pace.hear(assignment.latencies_s)
        account = Account(block.block_id, socket.gethostname(), "", time.time())
        for done in run_block(block, self._open_deployment(account), assignment.context, self._pace):
            account.windows_s += float(done.frames["windows"].get_column("duration_s", default=NO_SECONDS).sum())
            committed = store.write_repeat(
                sweep=sweep,
                repeat_id=done.repeat.repeat_id,
                attempt_id=done.attempt_id,
                frames=done.frames,
                generation=assignment.generations[done.repeat.repeat_id],
            )
            seen = self._pace.of(done.repeat) if self._pace else {}
            yield Receipt(done.repeat.repeat_id, committed, socket.gethostname(), done.summaries, seen)
        if block.backend != "simulated":
            print(account.line(), file=sys.stderr)
            account.keep(store, sweep)

    def _open_deployment(self, account: Account) -> OpenDeployment:
        worker, births = self.worker, self._births

        def opened(block: Block, arms: Sequence[Arm]) -> AbstractContextManager[Deployment]:
            if block.backend == "simulated":
                from orchestrator.simulated.deployment import open_deployment

                return open_deployment(block, arms, None)
            from orchestrator.deployment import open_deployment as open_engines

            if births is None:
                raise MeasurementError(f"this host was started for simulated work, not for {block.backend}")
            return account.held(open_engines(block, arms, worker, births))

        return opened


@contextlib.contextmanager
def host_nursery() -> Iterator[Nursery]:
    """The nursery of this host, with its log in a folder of its own that goes with it."""
    with tempfile.TemporaryDirectory(prefix="mpscape-nursery-") as folder:
        environment = {**base_environment(), **THREAD_LIMITS}
        with nursery(environment, Path(folder) / "nursery.log") as births:
            yield births


def settle_worker() -> dict[str, Any]:
    """Read niceness, process group and affinity of this process back, and repair what can be repaired."""
    found = os.getpriority(os.PRIO_PROCESS, 0)
    niceness = found
    if found > 0:
        # Only root may lower it again; where it stays, measured windows say at what niceness they ran.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "niceness_found": found,
        "niceness": niceness,
        "own_process_group": os.getpgid(0) == os.getpid(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "group_cleanup": os.environ.get(GROUP_CLEANUP) == "1",
    }
