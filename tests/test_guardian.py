"""The guardian ends what a dead owner left, and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.errors import MeasurementError
from orchestrator.guardian import TOKEN_VARIABLE, guardian
from orchestrator.mps_control import BINARY_NAME, PIPE_VARIABLE
from orchestrator.process import ProcessIdentity, carrying, wait_gone

REPOSITORY = Path(__file__).parent.parent
LIMIT_S = 30.0

# An engine like vLLM's: a frontend, its core, and a deaf helper of the core that sits in a session of its own.
ENGINE = """
import subprocess, sys, time
core = '''
import subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"],
    stdout=subprocess.PIPE, start_new_session=True)
helper.stdout.readline()
print(helper.pid, flush=True)
time.sleep(600)
'''
child = subprocess.Popen([sys.executable, "-S", "-c", core], stdout=subprocess.PIPE)
print(child.pid, int(child.stdout.readline()), flush=True)
time.sleep(600)
"""

# Prints the pids of its family once all is up, then does what it is told on standard input.
OWNER = f"""
import os, subprocess, sys, time
from orchestrator.guardian import guardian
from orchestrator.process import ProcessIdentity

ENGINE = {ENGINE!r}
with_token = "token" in sys.argv
with guardian(grace_s=0.5) as guard:
    engine = subprocess.Popen([sys.executable, "-S", "-c", ENGINE], stdout=subprocess.PIPE,
        env={{**os.environ, **(guard.environment() if with_token else {{}})}})
    core, helper = map(int, engine.stdout.readline().split())
    guard.add(ProcessIdentity.of(engine.pid))
    if "forked" in sys.argv and os.fork() == 0:
        time.sleep(600)
    time.sleep(3 if not with_token else 0)
    if "core-loses-parent" in sys.argv:
        engine.kill()
        engine.wait()
    print(guard.identity.pid, engine.pid, core, helper, flush=True)
    order = sys.stdin.readline().strip()
    if order == "leave":
        guard.remove(ProcessIdentity.of(engine.pid))
    elif order == "crash":
        os.abort()
"""


@pytest.fixture
def start_owner():
    """An owner process and the identities of guardian, engine, core and helper."""
    families = []

    def start(*words):
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, *words],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        pids = map(int, owner.stdout.readline().split())
        family = [_identity(pid) for pid in pids]
        families.append((owner, family))
        return owner, *family

    yield start
    for owner, family in families:
        owner.kill()
        owner.communicate()
        for member in family:
            member.signal(signal.SIGKILL)


def _identity(pid):
    try:
        return ProcessIdentity.of(pid)
    except ProcessLookupError:
        return ProcessIdentity(pid, -1)


def test_a_killed_owner_takes_all_with_it(start_owner):
    owner, guard, *family = start_owner("token")
    assert all(member.alive for member in (guard, *family))
    owner.kill()
    assert not wait_gone([guard, *family], LIMIT_S)


def test_so_does_one_that_crashes(start_owner):
    owner, guard, *family = start_owner("token")
    owner.communicate(b"crash\n", timeout=LIMIT_S)
    assert owner.returncode == -signal.SIGABRT
    assert not wait_gone([guard, *family], LIMIT_S)


def test_the_guardian_outlives_its_owners_process_group(start_owner):
    owner, guard, *family = start_owner("token")
    assert os.getsid(guard.pid) != os.getsid(owner.pid)
    os.killpg(owner.pid, signal.SIGKILL)
    assert not wait_gone([guard, *family], LIMIT_S)


def test_a_forked_copy_of_the_pipe_does_not_fool_it(start_owner):
    owner, guard, *family = start_owner("token", "forked")
    owner.kill()
    owner.wait()
    assert not wait_gone([guard, *family], LIMIT_S)
    os.killpg(owner.pid, signal.SIGKILL)  # the copy itself


def test_grandchildren_are_found_when_their_parent_died_first(start_owner):
    owner, guard, engine, core, helper = start_owner("token", "core-loses-parent")
    assert not engine.alive
    assert core.alive
    assert helper.alive
    owner.kill()
    assert not wait_gone([guard, core, helper], LIMIT_S)


def test_grandchildren_without_the_token_are_remembered(start_owner):
    owner, guard, engine, core, helper = start_owner("core-loses-parent")
    assert TOKEN_VARIABLE not in helper.environment()
    assert not engine.alive
    assert core.alive
    owner.kill()
    assert not wait_gone([guard, core, helper], LIMIT_S)


def test_a_clean_end_harms_nobody(start_owner):
    owner, guard, *family = start_owner("token")
    owner.communicate(b"leave\n", timeout=LIMIT_S)
    assert owner.returncode == 0
    assert not guard.alive
    assert all(member.alive for member in family)


def test_a_pid_that_was_taken_over_is_left_alone():
    bystander = subprocess.Popen(["sleep", "600"])
    program = """
import os, signal, sys
from orchestrator.guardian import guardian
from orchestrator.process import ProcessIdentity
with guardian(grace_s=0.2) as guard:
    now = ProcessIdentity.of(int(sys.argv[1]))
    guard.add(ProcessIdentity(now.pid, now.start_ticks - 1))
    print(guard.identity.pid, guard.identity.start_ticks, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    owner = subprocess.run(
        [sys.executable, "-c", program, str(bystander.pid)], cwd=REPOSITORY, stdout=subprocess.PIPE, check=False
    )
    guard = ProcessIdentity(*map(int, owner.stdout.split()))
    assert owner.returncode == -signal.SIGKILL
    assert not wait_gone([guard], LIMIT_S)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_member_of_the_last_moment_is_heard_of():
    program = """
import os, signal, subprocess
from orchestrator.guardian import guardian
from orchestrator.process import ProcessIdentity
with guardian(grace_s=0.2) as guard:
    for _ in range(20):
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
        guard.add(ProcessIdentity.of(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    owner = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, check=False)
    members = [_identity(int(pid)) for pid in owner.stdout.split()]
    assert len(members) == 20
    assert not wait_gone(members, LIMIT_S)


# Prints guardian and engine; the engine writes down whether the first folder was there when it was told to end.
FOLDER_OWNER = """
import subprocess, sys
from orchestrator.guardian import guardian
from orchestrator.process import ProcessIdentity

noted, *folders = sys.argv[1:]
engine_program = '''
import signal, sys
from pathlib import Path
def leave(*_):
    Path(sys.argv[1]).write_text(str(Path(sys.argv[2]).exists()))
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
signal.pause()
'''
with guardian(grace_s=5) as guard:
    engine = subprocess.Popen(
        [sys.executable, "-S", "-c", engine_program, noted, folders[0]], stdout=subprocess.PIPE)
    engine.stdout.readline()
    guard.add(ProcessIdentity.of(engine.pid))
    for folder in folders:
        guard.add_folder(folder)
    print(guard.identity.pid, engine.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "clean end"])
def test_folders_of_a_killed_owner_go_last_and_only_such_as_are_ours(killed, tmp_path):
    ours = Path(tempfile.mkdtemp(prefix="mpscape-", dir="/tmp"))
    (ours / "socket").touch()
    theirs = Path(tempfile.mkdtemp(prefix="theirs-", dir="/tmp"))
    elsewhere, target, noted = (tmp_path / name for name in ("mpscape-elsewhere", "target", "noted"))
    elsewhere.mkdir()
    target.mkdir()
    link = Path(f"{ours}-link")
    link.symlink_to(target)
    others = [theirs, elsewhere, link, f"{theirs}/../mpscape-none/../{theirs.name}"]
    try:
        owner = subprocess.Popen(
            [sys.executable, "-c", FOLDER_OWNER, *map(str, [noted, ours, *others])],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        guard, engine = (_identity(int(pid)) for pid in owner.stdout.readline().split())
        if killed:
            owner.kill()
        owner.communicate()
        assert not wait_gone([guard], LIMIT_S)
        assert ours.exists() != killed and engine.alive != killed
        assert not killed or noted.read_text() == "True"
        assert theirs.exists() and elsewhere.exists() and target.exists()
    finally:
        engine.signal(signal.SIGKILL)
        shutil.rmtree(ours, ignore_errors=True)
        link.unlink()
        theirs.rmdir()


def test_a_guardian_that_is_gone_is_an_error():
    with guardian() as guard:
        guard.identity.signal(signal.SIGKILL)
        assert not wait_gone([guard.identity], LIMIT_S)
        with pytest.raises(MeasurementError, match=f"the guardian {guard.identity.pid} is gone"):
            guard.add(ProcessIdentity.of(os.getpid()))


def test_guardians_do_not_find_themselves_or_each_other(monkeypatch):
    with guardian() as outer:
        monkeypatch.setenv(TOKEN_VARIABLE, outer.environment()[TOKEN_VARIABLE])
        with guardian() as inner:
            assert TOKEN_VARIABLE not in inner.identity.environment()
            assert inner.environment() != outer.environment()
            assert carrying(TOKEN_VARIABLE, outer.environment()[TOKEN_VARIABLE]) == frozenset()


# Prints guardian, engine, daemon and server; the engine writes down whether the daemon lived when it was told to end.
MPS_OWNER = """
import os, subprocess, sys, time
from pathlib import Path
from orchestrator.guardian import guardian
from orchestrator.mps import daemon
from orchestrator.process import ProcessIdentity

root, binary, noted = map(Path, sys.argv[1:])
engine_program = '''
import signal, sys, time
from pathlib import Path
def leave(*_):
    state = Path(f"/proc/{sys.argv[1]}/stat").read_text().rpartition(")")[2].split()[0]
    Path(sys.argv[2]).write_text(state)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(600)
'''
with guardian(grace_s=5) as guard, daemon(
    "GPU-0a1b2c3d-1111-2222-3333-444455556666", root, binary=binary, guard=guard
) as mps:
    server = mps.start_server() if "stand_in" in binary.read_text(errors="replace") else 0
    engine = subprocess.Popen(
        [sys.executable, "-S", "-c", engine_program, str(mps.process.identity.pid), str(noted)],
        env={**os.environ, **guard.environment(), **mps.client_environment("one")}, stdout=subprocess.PIPE)
    engine.stdout.readline()
    guard.add(ProcessIdentity.of(engine.pid))
    print(guard.identity.pid, engine.pid, mps.process.identity.pid, server or "", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "real",
            marks=[
                pytest.mark.mps_binary,
                pytest.mark.skipif(shutil.which(BINARY_NAME) is None, reason=f"{BINARY_NAME} is not on PATH"),
            ],
        ),
        "stand-in",
    ],
)
def test_a_killed_owner_of_a_daemon_engines_go_first(kind, tmp_path, monkeypatch):
    binary = Path(shutil.which(BINARY_NAME) or "")
    if kind == "stand-in":
        binary = tmp_path / BINARY_NAME
        source = (Path(__file__).parent / "stand_in_mps_control.py").read_text()
        binary.write_text(f"#!{sys.executable}\n# stand_in\n{source}")
        binary.chmod(0o755)
        behaviour = tmp_path / "behaviour.json"
        behaviour.write_text(json.dumps({}))
        monkeypatch.setenv("STAND_IN_BEHAVIOUR", str(behaviour))
    noted = tmp_path / "noted"
    root = Path(tempfile.mkdtemp(prefix="mps-", dir="/tmp"))
    owner = subprocess.Popen(
        [sys.executable, "-c", MPS_OWNER, str(root), str(binary), str(noted)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    family = [ProcessIdentity.of(int(pid)) for pid in owner.stdout.readline().split()]
    assert len(family) == (4 if kind == "stand-in" else 3)
    owner.kill()
    owner.communicate()
    assert not wait_gone(family, LIMIT_S)
    assert carrying(PIPE_VARIABLE, str(root / "0a1b2c3d" / "pipe")) == frozenset()
    assert noted.read_text() in ("S", "R")  # the daemon still lived when the engine was ended
    shutil.rmtree(root)
