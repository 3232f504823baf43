"""A process is its pid and start time; a supervised child leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.process import ProcessIdentity, carrying, descendants, end, supervised, tail, wait_gone

LIMIT_S = 20.0

# Starts a child that ignores SIGTERM, prints both pids, then waits.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"],
    stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def started(log: Path, lines: int = 1) -> list[str]:
    """The first lines of a log, once they are there."""
    deadline = time.monotonic() + LIMIT_S
    while len(found := log.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline, f"{log} stays at {found}"
        time.sleep(0.02)
    return found


@pytest.fixture
def sleeper():
    child = subprocess.Popen(["sleep", "600"])
    yield child
    child.kill()
    child.wait()


def test_a_zombie_is_not_alive(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity.alive
    sleeper.kill()
    assert not wait_gone([identity], LIMIT_S)
    assert Path(f"/proc/{sleeper.pid}/stat").exists()  # nobody reaped it
    assert not identity.alive
    assert not identity.signal(signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(sleeper.pid)


def test_another_start_time_is_another_process(sleeper):
    namesake = ProcessIdentity(sleeper.pid, ProcessIdentity.of(sleeper.pid).start_ticks - 1)
    assert not namesake.alive
    assert not namesake.signal(signal.SIGKILL)
    assert not end([namesake], grace_s=0)
    assert sleeper.poll() is None


def test_command_and_environment_are_those_of_the_start(tmp_path):
    with supervised(["sleep", "600"], {"PATH": os.environ["PATH"], "SPOON": "a=b"}, tmp_path / "log") as child:
        deadline = time.monotonic() + 10.0
        while not child.identity.command() and time.monotonic() < deadline:
            time.sleep(0.01)  # exec has begun, and the kernel has not laid out the words yet
        assert child.identity.command() == ("sleep", "600")
        assert child.identity.environment()["SPOON"] == "a=b"
        assert carrying("SPOON", "a=b") == {child.identity}
        assert carrying("SPOON", "a") == frozenset()
    assert child.identity.environment() == {}
    assert child.identity.command() == ()


def test_a_supervised_child_stays_in_the_group_and_ends_with_its_context(tmp_path):
    with supervised([sys.executable, "-S", "-c", FAMILY], {}, tmp_path / "log", grace_s=0.3) as child:
        deaf = ProcessIdentity.of(int(started(tmp_path / "log")[0]))
        assert os.getpgid(child.identity.pid) == os.getpgid(0)
        assert descendants([child.identity]) == {deaf}
        assert child.alive
    assert not child.identity.alive
    assert not deaf.alive
    assert child.popen.returncode == -signal.SIGTERM


def test_descendants_of_a_killed_child_are_ended_too_when_their_parents_are_known(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(RuntimeError), supervised([sys.executable, "-S", "-c", FAMILY], {}, log, grace_s=0.3) as child:
        deaf = ProcessIdentity.of(int(started(log)[0]))
        raise RuntimeError
    assert not deaf.alive
    assert not child.identity.alive


def test_a_child_gets_its_grace(tmp_path):
    program = """
import signal, sys, time
def leave(*_):
    print("left in good order", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(600)
"""
    log = tmp_path / "log"
    with supervised([sys.executable, "-S", "-c", program], {}, log, grace_s=LIMIT_S) as child:
        started(log)
    assert child.popen.returncode == 7
    assert tail(log, 1) == "left in good order"
    assert child.log_tail() == "ready\nleft in good order"


def test_output_as_a_pipe_leaves_errors_in_the_log(tmp_path):
    program = "import sys; sys.stderr.write('trouble'); print(input())"
    log = tmp_path / "log"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with supervised([sys.executable, "-S", "-c", program], {}, log, **pipes) as child:
        child.popen.stdin.write(b"spoon\n")
        child.popen.stdin.flush()
        assert child.popen.stdout.readline() == b"spoon\n"
        child.popen.wait(LIMIT_S)
    assert log.read_text() == "trouble"


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError), supervised([tmp_path / "nothing"], {}, tmp_path / "log"):
        pass


def test_the_tail_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert tail(log, 2) == "line 9998\nline 9999"
