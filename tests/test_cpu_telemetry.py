"""Shares from counters with known values, and from real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cpu_telemetry import TICKS_PER_S, CpuClock, shares

SECOND_NS = 1_000_000_000


def stat(name: str, ticks: int, started: int = 5) -> str:
    """A line of proc(5) with utime + stime = ticks, and the start time as field 22."""
    fields = ["S", "1", "1", "1", "0", "-1", "0", "0", "0", "0", "0", str(ticks - ticks // 4), str(ticks // 4)]
    return f"1 ({name}) " + " ".join([*fields, "0", "0", "20", "0", "1", "0", str(started), "0", "0"])


def process(root: Path, pid: int, threads: dict[int, int], dead_ticks: int = 0, started: int = 5) -> None:
    """A process whose live threads have these ticks, and whose dead ones had `dead_ticks`."""
    for thread, ticks in threads.items():
        folder = root / str(pid) / "task" / str(thread)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(stat("VLLM::EngineCor) (x", ticks, started))
    (root / str(pid) / "stat").write_text(stat("a b", sum(threads.values()) + dead_ticks, started))


def core_lines(root: Path, lines: dict[int, tuple[int, ...]]) -> None:
    text = "cpu  1 2 3\n" + "".join(f"cpu{core} {' '.join(map(str, row))}\n" for core, row in lines.items())
    (root / "stat").write_text(text + "intr 1\n")


@pytest.fixture
def clock(tmp_path: Path) -> CpuClock:
    times = iter([0, 4 * SECOND_NS])
    return CpuClock(tmp_path, lambda: next(times))


def test_shares_by_process_and_thread(tmp_path: Path, clock: CpuClock) -> None:
    window = 4 * TICKS_PER_S
    process(tmp_path, 70, {70: 1000, 71: 500})
    core_lines(tmp_path, {1: (0,) * 8})
    first = clock.snapshot([70], [1])
    # 97 % on the busy thread, 10 % on the main one, a new thread with 5 %, and a thread that lived and died with 2 %
    process(tmp_path, 70, {70: 1000 + window // 10, 71: 500 + window * 97 // 100, 72: window // 20}, window // 50)
    share = shares(first, clock.snapshot([70], [1])).processes[70]
    assert share.busiest_thread == pytest.approx(0.97)
    assert share.process == pytest.approx(1.14)


def test_steal_and_the_work_of_others(tmp_path: Path, clock: CpuClock) -> None:
    window = 4 * TICKS_PER_S
    process(tmp_path, 70, {70: 0})
    core_lines(tmp_path, {1: (7,) * 10, 2: (7,) * 10, 3: (7,) * 10})
    first = clock.snapshot([70], [1, 2])
    process(tmp_path, 70, {70: window // 2})
    # core 1: half user, a quarter irq work, a quarter idle; core 2: an eighth stolen, the rest idle; core 3 is not ours
    core_lines(
        tmp_path,
        {
            1: (7 + window // 2, 7, 7, 7 + window // 4, 7, 7 + window // 8, 7 + window // 8, 7, 7 + window // 2, 7),
            2: (7, 7, 7, 7 + window * 7 // 8, 7, 7, 7, 7 + window // 8, 7, 7),
            3: (7 + window,) * 10,
        },
    )
    found = shares(first, clock.snapshot([70], [1, 2]))
    assert found.steal_share == pytest.approx(1 / 16)
    assert found.others_cores == pytest.approx(0.25)


def test_a_pid_given_to_another_process_is_not_ours(tmp_path: Path, clock: CpuClock) -> None:
    process(tmp_path, 70, {70: 1000})
    first = clock.snapshot([70, 71])
    process(tmp_path, 70, {70: 3}, started=900)
    found = shares(first, clock.snapshot([70, 71]))
    assert found.processes == {} and found.steal_share is None


def test_a_kernel_that_accounts_nothing_by_core_is_unknown_not_zero(tmp_path: Path, clock: CpuClock) -> None:
    core_lines(tmp_path, {0: (0,) * 8})
    first = clock.snapshot([], [0])
    found = shares(first, clock.snapshot([], [0]))
    assert found.steal_share is None and found.others_cores is None


def test_snapshots_must_be_in_order(tmp_path: Path) -> None:
    snapshot = CpuClock(tmp_path, lambda: 5).snapshot([])
    with pytest.raises(ValueError, match="not later"):
        shares(snapshot, snapshot)


SPIN = """
import sys, time
print("up", flush=True)
sys.stdin.readline()
start = time.process_time()
while time.process_time() < start + 0.3: pass
print(time.process_time() - start, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def spinner() -> Iterator[subprocess.Popen[bytes]]:
    """Waits for a line, burns 0.3 s, says how much by its own clock, and waits for its end."""
    process = subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"up\n"
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_a_real_process_is_charged_what_it_says_it_used(spinner: subprocess.Popen[bytes]) -> None:
    assert spinner.stdin and spinner.stdout
    clock = CpuClock()
    first = clock.snapshot([spinner.pid, os.getpid()], os.sched_getaffinity(0))
    spinner.stdin.write(b"go\n")
    spinner.stdin.flush()
    said_s = float(spinner.stdout.readline())
    second = clock.snapshot([spinner.pid, os.getpid()], os.sched_getaffinity(0))
    found = shares(first, second)
    used_s = found.processes[spinner.pid].process * (second.time_ns - first.time_ns) / 1e9
    assert used_s == pytest.approx(said_s, abs=0.04)  # ticks of 10 ms, and a little around the loop
    assert 0 < found.processes[spinner.pid].busiest_thread <= found.processes[spinner.pid].process
    assert os.getpid() in found.processes


def test_a_process_that_ended_is_absent() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    found = CpuClock().snapshot([gone.pid, os.getpid()]).processes
    assert set(found) == {os.getpid()}
