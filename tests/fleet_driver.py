"""A driver over GPUs that Ray only believes in: real actors, labels and leases; NVML and the engines are stand-ins.

    python -m tests.fleet_driver SPEC STORE      # prints one JSON object an event

The folder that MPSCAPE_TEST_FOLDER names holds the truth: a file named after a GPU means that somebody is on it,
`<gpu>.dirty` that a block leaves it so, `runs` gets one line a block that a host began, and `host-<gpu>` says that its
host is up.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.account import Account
from orchestrator.cluster import connected
from orchestrator.expand import expand
from orchestrator.gpu_lease import GpuLease, leased_gpu
from orchestrator.gpus import KINDS
from orchestrator.host import Assignment, GpuHost, Receipt
from orchestrator.ledger import Ledger
from orchestrator.plan import plan
from orchestrator.pool import Landed, Lost, Quarantined, Stranded, run_blocks
from orchestrator.runner import OpenDeployment
from orchestrator.simulated.deployment import open_deployment
from orchestrator.spec import load_spec
from orchestrator.store import ResultStore
from orchestrator.trial import Backend
from tests.fake_nvml import FakeNvml
from tests.ray_head import MARK
from tests.test_gpu_devices import MIB

GPUS_A_NODE = 2
# Of the wanted kind; and how long the first of them waits for the others.
HOSTS = 3
PATIENCE_S = 90.0
FOLDER = "MPSCAPE_TEST_FOLDER"


def gpu_uuid(node: str, index: int) -> str:
    return f"GPU-{node}-{index}"


class NodeNvml(FakeNvml):
    """The GPUs of one node, whose name is the last part of its mark."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.node = folder, os.environ[MARK].rpartition("-")[2]

    def nvmlDeviceGetCount(self) -> int:
        return GPUS_A_NODE

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return gpu_uuid(self.node, index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return uuid

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return str(handle)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(used=500 * MIB, total=80 * 2**30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:
        return [SimpleNamespace(pid=4711)] if (self.folder / str(handle)).exists() else []


class StandInHost(GpuHost):
    """A host whose GPU is one of `NodeNvml` and whose engines run in virtual time."""

    def __init__(self, backend: Backend) -> None:
        super().__init__("simulated")
        self.folder = Path(os.environ[FOLDER])
        self._lease = GpuLease(NodeNvml(self.folder), self.folder / "mps", before_s=0.3, after_s=0.3)
        (self.folder / f"host-{leased_gpu(NodeNvml(self.folder)).uuid}").touch()

    def _run(self, assignment: Assignment) -> Iterator[Receipt]:
        gpu = leased_gpu(NodeNvml(self.folder)).uuid
        # One that is up early must not do the work of those that are still to come.
        until = time.monotonic() + PATIENCE_S
        while len(list(self.folder.glob("host-*"))) < HOSTS and time.monotonic() < until:
            time.sleep(0.05)
        with (self.folder / "runs").open("a") as runs:
            runs.write(f"{assignment.block.block_id} {gpu}\n")
        yield from super()._run(assignment)
        if (self.folder / f"{gpu}.dirty").exists():
            (self.folder / gpu).touch()

    def _open_deployment(self, account: Account) -> OpenDeployment:
        return lambda block, arms: open_deployment(block, arms, None)


def main() -> int:
    spec, store = load_spec(Path(sys.argv[1])), ResultStore.open(sys.argv[2], create=True)
    ledger = Ledger.open(spec, store, expand(spec, "vllm", "H100"), retry_failed=False)
    work = plan(ledger.repeats, KINDS["H100"]).only(ledger.remaining)
    with (
        connected() as cluster,
        closing(run_blocks(work.blocks, cluster, ledger.assignment, StandInHost)) as events,
    ):
        for event in events:
            told: dict[str, object] = {"event": type(event).__name__}
            match event:
                case Landed(receipt, final):
                    ledger.land(receipt, final)
                case Lost():
                    ledger.lose(event)
                case Quarantined(quarantine):
                    ledger.set_aside(event)
                    told["gpu"] = quarantine.gpu
                case Stranded(repeats, reason):
                    told |= {"repeats": len(repeats), "reason": reason}
            print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    from tests import fleet_driver  # so that actors find their class under the name of its module

    sys.exit(fleet_driver.main())
