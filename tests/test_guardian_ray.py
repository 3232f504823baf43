"""What Ray leaves behind when it is killed, the guardian ends: engines and the processes below them."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.process import ProcessIdentity, carrying, wait_gone

REPOSITORY = Path(__file__).parent.parent
LIMIT_S = 60.0
MARK = "MPSCAPE_TEST_CLUSTER"

# A cluster inside a driver. One line for each actor it is asked to start: raylet, actor, guardian, engine, core.
DRIVER = """
import os, subprocess, sys, time
import ray

@ray.remote(num_cpus=0)
class Host:
    def start(self):
        from orchestrator.guardian import guardian
        from orchestrator.process import ProcessIdentity

        self.guarding = guardian(grace_s=0.5)
        guard = self.guarding.__enter__()
        program = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
        engine = subprocess.Popen([sys.executable, "-S", "-c", program],
            env={**os.environ, **guard.environment()}, stdout=subprocess.PIPE)
        core = int(engine.stdout.readline())
        guard.add(ProcessIdentity.of(engine.pid))
        self.engine = engine
        return os.getppid(), os.getpid(), guard.identity.pid, engine.pid, core

ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
    _temp_dir=sys.argv[1], configure_logging=False)
host = None
for line in sys.stdin:
    if line.strip() == "start":
        host = Host.remote()
        print("family", *ray.get(host.start.remote()), flush=True)
    else:
        ray.kill(host)
"""


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.mark = secrets.token_hex(8)
        # Only the guardian is under test, so Ray's own clean-up of process groups stays off.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder)],
            env={**inherited, MARK: self.mark, "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start_host(self) -> list[ProcessIdentity]:
        """Raylet, actor, guardian, engine, core."""
        self.tell("start")
        while not (line := self.driver.stdout.readline()).startswith("family"):
            assert line, "the driver ended"
        return [ProcessIdentity.of(int(pid)) for pid in line.split()[1:]]

    def tell(self, order: str) -> None:
        self.driver.stdin.write(f"{order}\n")
        self.driver.stdin.flush()

    def close(self) -> None:
        self.driver.kill()
        self.driver.communicate()
        for _ in range(20):
            left = carrying(MARK, self.mark)
            for process in left:
                process.signal(signal.SIGKILL)
            if not wait_gone(left, 1.0) and not carrying(MARK, self.mark):
                return
        raise AssertionError(f"left over: {left}")


@pytest.fixture
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = Cluster(folder)
    yield cluster
    cluster.close()
    shutil.rmtree(folder)


def test_a_killed_actor_and_then_a_killed_driver(cluster):
    _, actor, *family = cluster.start_host()
    assert all(member.alive for member in family)
    cluster.tell("kill")
    assert not wait_gone([actor, *family], LIMIT_S)

    _, actor, *family = cluster.start_host()
    assert all(member.alive for member in family)
    cluster.driver.kill()
    assert not wait_gone([actor, *family], LIMIT_S)


@pytest.mark.long
def test_a_killed_raylet(cluster):
    raylet, actor, *family = cluster.start_host()
    assert Path(raylet.command()[0]).name == "raylet"
    raylet.signal(signal.SIGKILL)
    assert not wait_gone([actor, *family], LIMIT_S)
