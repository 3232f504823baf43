"""The MPS controller against the real control binary, and against a stand-in for what needs a GPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from orchestrator.errors import MpsError, MpsFault
from orchestrator.mps import daemon
from orchestrator.mps_attachment import outside_environment, prove_without_daemon
from orchestrator.mps_control import BINARY_NAME, PIPE_VARIABLE, MpsControl, find_binary
from orchestrator.mps_log import FAULT_LINE, LOG_LIMIT_BYTES, MpsLogs
from orchestrator.process import ProcessIdentity, carrying, wait_gone

GPU = "GPU-0a1b2c3d-1111-2222-3333-444455556666"
REPOSITORY = Path(__file__).parent.parent
LIMIT_S = 20.0

real = [
    pytest.mark.mps_binary,
    pytest.mark.skipif(shutil.which(BINARY_NAME) is None, reason=f"{BINARY_NAME} is not on PATH"),
]


@pytest.fixture
def root():
    """As short as the real one: pytest's own folders are too long for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="mps-", dir="/tmp"))
    yield folder
    left = carrying(PIPE_VARIABLE, str(folder / "0a1b2c3d" / "pipe"))
    for process in left:
        process.signal(signal.SIGKILL)
    shutil.rmtree(folder)
    assert not left


@pytest.fixture
def behave(tmp_path, monkeypatch):
    """Writes what the stand-in does from now on."""
    path = tmp_path / "behaviour.json"
    monkeypatch.setenv("STAND_IN_BEHAVIOUR", str(path))

    def write(**behaviour):
        path.with_suffix(".new").write_text(json.dumps(behaviour))
        path.with_suffix(".new").replace(path)

    write()
    return write


@pytest.fixture
def stand_in(tmp_path, behave):
    """The stand-in as a program, run by this very interpreter: PATH may lead to a slow wrapper of another."""
    program = tmp_path / BINARY_NAME
    program.write_text(f"#!{sys.executable}\n" + (Path(__file__).parent / "stand_in_mps_control.py").read_text())
    program.chmod(0o755)
    return program


@pytest.fixture(params=[pytest.param("real", marks=real), "stand-in"])
def binary(request, stand_in):
    return find_binary() if request.param == "real" else stand_in


@contextmanager
def engines(*environments):
    """Real processes that carry these environments, as engines do."""
    with ExitStack() as stack:
        children = []
        for environment in environments:
            child = subprocess.Popen(["sleep", "600"], env=environment)
            stack.callback(child.wait)
            stack.callback(child.kill)
            while not ProcessIdentity.of(
                child.pid
            ).environment():  # for a moment of an exec it can be read and is empty
                time.sleep(0.001)
            children.append(child)
        yield [child.pid for child in children]


def left_of(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*")]


# With either binary: no server is needed.


def test_start_settings_and_teardown(binary, root):
    with daemon(GPU, root, binary=binary) as mps:
        assert os.getpgid(mps.process.identity.pid) == os.getpgid(0)
        assert mps.home.pipe_dir.stat().st_mode & 0o777 == 0o700
        assert mps.control.servers() == ()
        assert mps.clients() == ()
        assert mps.control.default_active_thread_percentage() == 100.0
        mps.control.set_default_active_thread_percentage(50)
        assert mps.control.default_active_thread_percentage() == 50.0
        with pytest.raises(MpsError, match=r"reads back 50"):
            mps.control.set_default_active_thread_percentage(150)
        with pytest.raises(MpsError, match="4242"):
            mps.control.clients(4242)
        with pytest.raises(MpsError, match="terminate_client 4242 1"):
            mps.control.terminate_client(4242, 1)
        assert mps.control.run(["get_server_list", "bogus"]) == ["", 'Unknown command "bogus"']
        mps.health()
    assert not mps.process.identity.alive
    assert left_of(root) == []


def test_the_environment_of_the_daemon_is_scrubbed(binary, root, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "33")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with daemon(GPU, root, binary=binary) as mps:
        assert mps.control.default_active_thread_percentage() == 100.0
        environment = mps.process.identity.environment()
        assert environment["CUDA_VISIBLE_DEVICES"] == GPU
        assert environment["PATH"] == os.environ["PATH"]


def test_a_second_owner_is_refused_and_told_who_the_first_is(binary, root):
    with daemon(GPU, root, binary=binary) as mps:
        named = rf"live process {os.getpid()} \(daemon {mps.process.identity.pid}\)"
        with pytest.raises(MpsError, match=named), daemon(GPU, root, binary=binary):
            pass
        assert mps.control.servers() == ()  # and the first is untouched
        with daemon("GPU-ffffffff-1111-2222-3333-444455556666", root, binary=binary) as other:
            assert other.control.servers() == ()  # another GPU is another daemon


def test_sixteen_processes_are_all_answered(binary, root, tmp_path):
    program = f"""
import sys
from pathlib import Path
from orchestrator.mps_control import MpsControl
control = MpsControl(Path(sys.argv[1]), Path({str(binary)!r}))
for _ in range(int(sys.argv[2])):
    assert control.servers() == ()
    assert control.default_active_thread_percentage() == 100.0
"""
    with daemon(GPU, root, binary=binary) as mps:
        rounds = "1" if binary.parent == tmp_path else "4"  # the stand-in is slow
        command = [sys.executable, "-S", "-c", program, str(mps.home.pipe_dir), rounds]
        crowd = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(16)]
        trouble = [child.communicate(timeout=60)[1] for child in crowd]
    assert trouble == [""] * 16
    assert [child.returncode for child in crowd] == [0] * 16


def test_threads_take_turns_too(binary, root):
    with daemon(GPU, root, binary=binary) as mps, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: mps.control.servers(), range(16))) == [()] * 16


def test_a_killed_daemon_is_noticed(binary, root):
    with daemon(GPU, root, binary=binary) as mps, mps.watch(interval_s=0.05) as watchdog:
        watchdog.raise_if_lost()
        mps.process.identity.signal(signal.SIGKILL)
        mps.process.popen.wait(LIMIT_S)
        with pytest.raises(MpsError, match=rf"control daemon {mps.process.identity.pid} ended"):
            mps.health()
        with pytest.raises(MpsError, match="got no answer"):
            MpsControl(mps.home.pipe_dir, binary, attempts=2).servers()
        deadline = time.monotonic() + LIMIT_S
        with pytest.raises(MpsError, match="ended by itself or was killed"):
            while time.monotonic() < deadline:
                watchdog.raise_if_lost()
                time.sleep(0.02)
    assert left_of(root) == []


def test_a_daemon_that_hangs_is_an_error_and_still_goes_away(binary, root):
    with daemon(GPU, root, binary=binary) as mps:
        mps.process.identity.signal(signal.SIGSTOP)
        with pytest.raises(MpsError, match=r"no answer to 'get_server_list' within 0.3 s"):
            MpsControl(mps.home.pipe_dir, binary, timeout_s=0.3).servers()
        mps.process.identity.signal(signal.SIGKILL)
    assert left_of(root) == []


OWNER = """
import sys, time
from pathlib import Path
from orchestrator.mps import daemon
with daemon(sys.argv[1], Path(sys.argv[2]), binary=Path(sys.argv[3])) as mps:
    print(mps.process.identity.pid, mps.process.identity.start_ticks, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_owner_left_is_cleaned_at_the_next_start(binary, root):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, GPU, str(root), str(binary)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    orphan = ProcessIdentity(*map(int, owner.stdout.readline().split()))
    named = rf"live process {owner.pid} \(daemon {orphan.pid}\)"
    with pytest.raises(MpsError, match=named), daemon(GPU, root, binary=binary):
        pass
    owner.kill()
    owner.communicate()
    assert orphan.alive
    bystander = {**os.environ, PIPE_VARIABLE: str(root / "0a1b2c3d" / "pipe")}
    with engines(bystander) as [pid]:
        with daemon(GPU, root, binary=binary) as mps:
            assert not orphan.alive
            assert mps.control.servers() == ()
        assert ProcessIdentity.of(pid).alive  # uses our pipe directory, but is neither daemon nor engine of ours
    assert left_of(root) == []


@pytest.mark.parametrize("name", ["0", "GPU-0", "GPU-0a1b2c3d", f"{GPU}/../x"])
def test_a_gpu_goes_by_its_uuid(root, name, stand_in):
    with pytest.raises(MpsError, match="is no GPU UUID"), daemon(name, root, binary=stand_in):
        pass


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(root, stand_in):
    with pytest.raises(MpsError, match="longer than 80 characters"), daemon(GPU, root / ("x" * 60), binary=stand_in):
        pass
    assert left_of(root) == []


def test_a_folder_that_others_can_enter_is_refused(root, stand_in):
    root.chmod(0o755)
    with pytest.raises(MpsError, match="not a folder of this user alone"), daemon(GPU, root, binary=stand_in):
        pass


def test_a_binary_that_is_not_there(root):
    with pytest.raises(FileNotFoundError), daemon(GPU, root, binary=root / "nothing"):
        pass
    assert left_of(root) == []


@pytest.mark.mps_binary
@real[1]
def test_a_server_that_cannot_start_is_reported_at_once_with_its_status(root):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU: its server starts")
    with daemon(GPU, root) as mps, pytest.raises(MpsError, match=r"exited with status 1 at its start") as caught:
        mps.start_server()
    assert "Starting new server" in caught.value.log_tail


# With the stand-in: servers, clients, faults.


def test_a_server_comes_up(root, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        pid = mps.start_server()
        assert mps.control.servers() == (pid,)
        assert mps.control.server_state(pid) == "ACTIVE"
        assert json.loads(mps.home.state_file.read_text())["server_pid"] == pid
        server = ProcessIdentity.of(pid)
        mps.health()
    assert not server.alive
    assert left_of(root) == []


def test_a_server_that_stays_in_initializing(root, behave, stand_in):
    behave(state="INITIALIZING")
    state = r"no ACTIVE server within 0.4 s \(state: INITIALIZING"
    with daemon(GPU, root, binary=stand_in) as mps, pytest.raises(MpsError, match=state):
        mps.start_server(limit_s=0.4)


def test_fault_is_an_mps_fault(root, behave, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        mps.start_server()
        with mps.watch(interval_s=0.05) as watchdog:
            behave(state="FAULT")
            deadline = time.monotonic() + LIMIT_S
            with pytest.raises(MpsFault, match="is in FAULT"):
                while time.monotonic() < deadline:
                    watchdog.raise_if_lost()
                    time.sleep(0.02)
            with pytest.raises(MpsFault):
                watchdog.raise_if_lost()
    assert left_of(root) == []


def test_a_fault_that_passed_between_two_looks_is_in_the_log(root, behave, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        mps.start_server()
        mps.health()
        behave(server_log=["[Server 7] Client {12, 34} encountered a fatal GPU error."])
        mps.control.servers()
        behave()
        with pytest.raises(MpsFault, match=r"Client \{12, 34\} encountered") as caught:
            mps.health()
        assert "fatal GPU error" in caught.value.log_tail
        mps.health()  # said once: the log is read on from where it was read to


def test_an_unknown_state_is_not_taken_for_a_good_one(root, behave, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        mps.start_server()
        behave(state="Unknown command")
        with pytest.raises(MpsError, match="was answered with 'Unknown command'"):
            mps.health()


def test_lost_answers_are_asked_for_again(root, behave, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        pid = mps.start_server()
        behave(lose=3)
        assert mps.control.servers() == (pid,)


def test_an_answer_that_stays_lost_is_an_error_and_never_an_empty_list(root, behave, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        behave(lose=1000)
        with pytest.raises(MpsError, match="got no answer in 3 attempts"):
            MpsControl(mps.home.pipe_dir, stand_in, attempts=3).servers()
        behave()


def test_a_pid_is_not_mistaken_for_the_closing_percentage(root, tmp_path):
    half = tmp_path / "half"
    half.write_text("#!/bin/sh\ncat >/dev/null\necho 42\n")  # the list came, the closing line was lost
    half.chmod(0o755)
    with pytest.raises(MpsError, match="got no answer in 2 attempts, last '42'"):
        MpsControl(root, half, attempts=2).servers()


def test_a_dead_server_is_noticed(root, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        pid = mps.start_server()
        os.kill(pid, signal.SIGKILL)
        assert not wait_gone([mps.server], LIMIT_S)
        with pytest.raises(MpsError, match=rf"server {pid} is gone"):
            mps.health()
        mps.control.start_server(os.getuid())
        with pytest.raises(MpsError, match=rf"server {pid} is gone"):
            mps.health()  # another server is not ours: its clients are new


def test_a_daemon_that_does_not_quit_is_killed_with_its_server(root, behave, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        mps.start_server()
        server = mps.server
        behave(stubborn=True)
    assert not server.alive
    assert not mps.process.identity.alive
    assert left_of(root) == []


def test_attachment_goes_by_token(root, behave, stand_in):
    nowhere = {"solo": str(root / "no-daemon")}
    with daemon(GPU, root, binary=stand_in) as mps:
        mps.start_server()
        environments = [
            mps.client_environment("one"),
            mps.client_environment("two", active_thread_percentage=60),
            outside_environment(GPU, "solo", root),
        ]
        with engines(*environments) as [one, two, solo]:
            behave(clients=[one, two])
            whole = mps.attachment({"one": one, "two": two}, {"solo": solo})
            assert set(whole.attached) == set(whole.expected) == {one, two}
            assert whole.detached == whole.should_be_detached == (solo,)
            assert whole.method == "client-list+token"
            assert prove_without_daemon({"solo": solo}, nowhere).detached == (solo,)
            assert prove_without_daemon({"one": one}, {"one": str(mps.home.pipe_dir)}).detached == ()

            behave(clients=[one])  # the other runs time-sliced, though its environment says otherwise
            part = mps.attachment({"one": one, "two": two})
            assert part.attached == (one,)
            assert set(part.expected) == {one, two}

            behave(clients=[one, two, solo])  # an engine that must be outside is inside
            assert mps.attachment({"one": one, "two": two}, {"solo": solo}).detached == ()

            assert mps.attachment({"one": one, "two": two, "solo": solo}).attached == tuple(sorted([one, two, solo]))
            with pytest.raises(MpsError, match=rf"processes \[{two}, {solo}\]|processes \[{solo}, {two}\]"):
                mps.attachment({"one": one})
            assert dict(environments[1])["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "60"
            assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in environments[0]
        behave()


def test_a_dead_engine_or_a_wrong_token_proves_nothing(root, behave):
    nowhere = {"solo": str(root / "no-daemon")}
    with engines(outside_environment(GPU, "solo", root)) as [solo]:
        assert prove_without_daemon({"other": solo}, {"other": nowhere["solo"]}).detached == ()
    assert prove_without_daemon({"solo": solo}, nowhere).detached == ()


def test_clients_that_stay_are_put_out_before_the_daemon_goes(root, behave, stand_in):
    with ExitStack() as later:
        with daemon(GPU, root, binary=stand_in) as mps:
            mps.start_server()
            [pid] = later.enter_context(engines(mps.client_environment("late")))
            engine = ProcessIdentity.of(pid)
            behave(clients=[pid])
        assert not engine.alive
        assert left_of(root) == []


def test_logs_are_capped(root, stand_in):
    with daemon(GPU, root, binary=stand_in) as mps:
        mps.start_server()
        log = mps.process.log
        with log.open("ab") as file:
            file.write(b"x" * (LOG_LIMIT_BYTES + 4096) + b"\n")
        mps.health()
        assert log.stat().st_size == 0
        with log.open("ab") as file:
            file.write(b"a fatal GPU error\n")
        with pytest.raises(MpsFault, match="a fatal GPU error"):
            mps.health()


def test_a_line_is_read_once_and_whole(tmp_path):
    logs = MpsLogs(tmp_path)
    assert logs.new_lines() == []
    server_log = tmp_path / "server.log"
    server_log.write_text("one\na fatal ")
    assert logs.new_lines() == ["one"]
    with server_log.open("a") as file:
        file.write("GPU error\n")
    assert logs.new_lines() == ["a fatal GPU error"]
    assert logs.new_lines() == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[2026-01-01 Server 7] Client {12, 34} encountered a fatal GPU error.", True),
        ("[2026-01-01 Control 6] FAULT", True),
        ("[2026-01-01 Control 6] Cmd:get_server_status FAULT", False),
        ("[2026-01-01 Server 7] DEFAULT compute mode", False),
    ],
)
def test_fault_lines(line, fault):
    assert bool(FAULT_LINE.search(line)) is fault
