"""A Ray cluster of a test's own, and command lines run against it: all found again, and ended, by a mark."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.process import carrying, wait_gone

REPOSITORY = Path(__file__).resolve().parent.parent
RAY = Path(sys.executable).with_name("ray")
MARK = "MPSCAPE_TEST_MARK"
LIMIT_S = 90.0


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment of this process without what says that a cluster is here, and with a short, quiet Ray."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", MARK))}
    # Workers are started when they are asked for, and not one a CPU with every driver: that costs a second each.
    quiet = {"PYTHONWARNINGS": "ignore", "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "false"}
    return {**inherited, **quiet, **changes}


def end_marked(mark: str) -> None:
    """SIGKILL to all that carry `mark`, until none is left."""
    for _ in range(40):
        left = carrying(MARK, mark)
        if not left:
            return
        for process in left:
            process.signal(signal.SIGKILL)
        wait_gone(left, 1.0)
    raise AssertionError(f"left over: {[(process.pid, process.command()[:4]) for process in left]}")


# Above the ports of Ray's workers (10,002 to 19,999), below what the kernel gives out by itself.
PORTS = range(20_000, 32_000)
PORTS_A_BLOCK = 100
_owned: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now and that nothing else that asks here is given while this process lives."""
    return [next(_ports) for _ in range(count)]


def _ports_of_this_process() -> Iterator[int]:
    """A process owns the block whose first port it has bound: Ray binds the others seconds after they were looked at,
    and other workers of pytest-xdist, or another run of the tests beside this one, look meanwhile."""
    for first in PORTS[::PORTS_A_BLOCK]:
        if claim := _bound(first):
            _owned.append(claim)
            for port in range(first + 1, first + PORTS_A_BLOCK):
                if probe := _bound(port):
                    probe.close()
                    yield port
    raise AssertionError(f"every block of ports from {PORTS.start} to {PORTS.stop} is taken")


_ports = _ports_of_this_process()


def _bound(port: int) -> socket.socket | None:
    probe = socket.socket()
    try:
        probe.bind(("", port))
    except OSError:
        probe.close()
        return None
    return probe


@dataclass(frozen=True)
class Head:
    """address: of the GCS, for RAY_ADDRESS; dashboard: for `ray job`, where it was asked for; folder: where Ray logs.

    metrics_port: where the head's own node answers Prometheus.
    """

    address: str
    dashboard: str | None
    mark: str
    home: Path
    folder: Path
    metrics_port: int

    def environment(self, **changes: str) -> dict[str, str]:
        return clean_environment(**{"HOME": str(self.home), "RAY_ADDRESS": self.address} | changes)


@contextmanager
def ray_head(
    home: Path,
    *,
    cpus: int = 2,
    gpus: int = 0,
    gpu_kind: str | None = None,
    dashboard: bool = False,
    environment: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
) -> Iterator[Head]:
    """`ray start --head` on ports and in a home of its own; ended by its mark: `ray stop` would end others too."""
    names = (
        "port",
        "dashboard-port",
        "ray-client-server-port",
        "metrics-export-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket paths must be short
    head = Head(
        address=f"127.0.0.1:{ports['port']}",
        dashboard=f"http://127.0.0.1:{ports['dashboard-port']}" if dashboard else None,
        mark=secrets.token_hex(8),
        home=home,
        folder=folder,
        metrics_port=ports["metrics-export-port"],
    )
    arguments = [
        "--head",
        *_gpu_arguments(gpus, gpu_kind),
        f"--temp-dir={folder}",
        f"--include-dashboard={str(dashboard).lower()}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    changes = {"HOME": str(home), MARK: head.mark, **(environment or {})}
    try:
        with _ray_start(arguments, cpus, folder / "start.log", clean_environment(**changes), cwd, head.mark):
            yield head
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_node(
    head: Head,
    cpus: int,
    name: str = "node",
    gpus: int = 0,
    gpu_kind: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """One more node of `head` on this machine; gives its mark."""
    mark = f"{head.mark}-{name}"
    arguments = [f"--address={head.address}", *_gpu_arguments(gpus, gpu_kind)]
    changes = {**(environment or {}), MARK: mark}
    with _ray_start(arguments, cpus, head.home / f"{name}.log", head.environment(**changes), REPOSITORY, mark):
        yield mark


def _gpu_arguments(gpus: int, kind: str | None) -> list[str]:
    """As many GPUs as Ray is to believe in, and what it is to believe of them."""
    return [f"--num-gpus={gpus}", *([f"--labels=ray.io/accelerator-type={kind}"] if kind else [])]


@contextmanager
def _ray_start(
    arguments: Sequence[str], cpus: int, log: Path, environment: Mapping[str, str], cwd: Path, mark: str
) -> Iterator[None]:
    command = [
        str(RAY),
        "start",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={cpus}",
        f"--object-store-memory={100 * 2**20}",
        *arguments,
    ]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=cwd, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL
        )
    try:
        deadline = time.monotonic() + LIMIT_S
        while "--block" not in log.read_text(errors="replace"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.1)
        yield
    finally:
        end_marked(mark)
        process.wait()
