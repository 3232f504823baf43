"""The Ray cluster of a sweep: the one that RAY_ADDRESS or a job names, else an embedded one on this machine.

with connected() as cluster:
    cluster.gpus           # {"H200": 8}: by Ray's label ray.io/accelerator-type
    cluster.cpus
"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ClusterError

ACCELERATOR_LABEL = "ray.io/accelerator-type"
KNOCK_LIMIT_S = 10.0
# How long to wait for a node to come back where no host is left, in seconds: one that restarts takes less than the
# default, an autoscaler more.
RETURN_VARIABLE = "MPSCAPE_WAIT_FOR_NODES"
RETURN_LIMIT_S = 60.0
# Read by the raylet, so they bind only where we start it; a running cluster's workers are put right by the actor.
RAYLET_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_process_group_cleanup_enabled": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is there to ask for. gpus: how many by kind; address: None where the cluster is embedded."""

    address: str | None
    cpus: float
    gpus: Mapping[str, int]
    nodes: int

    def now(self) -> Cluster:
        """The same cluster as it is at present: nodes come and go."""
        return _survey(self.address)

    def __str__(self) -> str:
        gpus = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.gpus.items())) or "no GPU"
        where = f"the cluster at {self.address}" if self.address else "an embedded cluster on this machine"
        return f"{where}: {self.nodes} node(s), {self.cpus:g} CPU(s), {gpus}"


@contextmanager
def connected(quiet: bool = True) -> Iterator[Cluster]:
    """Connect for the length of the block. Raises ClusterError when RAY_ADDRESS cannot be reached."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ.update({key: os.environ.get(key, value) for key, value in RAYLET_ENVIRONMENT.items()})
    # Ray turns token authentication on by itself for a cluster that it starts or finds, never for an address that is
    # named, and looks at this variable as it is imported. It must say what the cluster says: with a token where none
    # is wanted, this driver would refuse the workers.
    if address and _asks_for_token(address):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=not quiet,
            logging_level="ERROR" if quiet else "INFO",
            namespace="mpscape",
        )
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise ClusterError(
            f"cannot connect to Ray at {address or 'local'}: {error}. If the cluster asks for a token, set "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; to run on this machine alone, unset RAY_ADDRESS"
        ) from error
    # Ray puts a handler of its own in place, which ends the process with status 15 whatever is still to be said.
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield _survey(address)
    finally:
        ray.shutdown()


def return_limit_s() -> float:
    """Seconds to wait for nodes, from the environment. Raises ClusterError where that is no number."""
    text = os.environ.get(RETURN_VARIABLE, str(RETURN_LIMIT_S))
    try:
        return float(text)
    except ValueError as error:
        raise ClusterError(f"{RETURN_VARIABLE}={text!r} is no number of seconds") from error


def _survey(address: str | None) -> Cluster:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    gpus: Counter[str] = Counter()
    for node in alive:
        count = int(node["Resources"].get("GPU", 0))
        if count:
            gpus[node.get("Labels", {}).get(ACCELERATOR_LABEL, "unlabelled")] += count
    return Cluster(
        address=address,
        cpus=sum(node["Resources"].get("CPU", 0.0) for node in alive),
        gpus=dict(gpus),
        nodes=len(alive),
    )


def _asks_for_token(address: str) -> bool:
    """Whether the head at `host:port` turns callers without a token away. False for other forms of an address.

    Raises ClusterError, which Ray itself would do after half a minute, where nobody answers or no token is here.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_LIMIT_S).close()
    except OSError as error:
        raise ClusterError(
            f"cannot connect to Ray at {address}: {error}. Start a cluster there (`ray start --head`), correct "
            "RAY_ADDRESS, or unset it to run on this machine alone"
        ) from error
    if not _unauthenticated(address):
        return False
    if not _token_available():
        raise ClusterError(
            f"the Ray cluster at {address} asks for a token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or copy "
            "~/.ray/auth_token from where it was started; to run on this machine alone, unset RAY_ADDRESS"
        )
    return True


def _unauthenticated(address: str) -> bool:
    """Ask for the cluster's id, as every driver does first, without a token."""
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=KNOCK_LIMIT_S)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _token_available() -> bool:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(path).is_file()


def in_ray_job() -> bool:
    """Whether this driver was started by `ray job submit`."""
    return bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or os.environ.get("RAY_JOB_SUBMISSION_ID"))
