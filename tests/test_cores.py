"""Topologies written as sysfs trees, and real processes put on cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import cores
from orchestrator.errors import MeasurementError


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def machine(root: Path, packages: int, cores_per_package: int, smt: bool) -> int:
    """A sysfs tree numbered as Linux numbers: all first threads, then all second ones. The number of cpus."""
    count = packages * cores_per_package
    cpus = count * 2 if smt else count
    write(root / "sys/devices/system/cpu/online", f"0-{cpus - 1}")
    for cpu in range(cpus):
        core = cpu % count
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(topology / "physical_package_id", str(core // cores_per_package))
        write(topology / "thread_siblings_list", f"{core},{core + count}" if smt else str(core))
    for package in range(packages):
        low, high = package * cores_per_package, (package + 1) * cores_per_package - 1
        second = f",{low + count}-{high + count}" if smt else ""
        write(root / f"sys/devices/system/node/node{package}/cpulist", f"{low}-{high}{second}")
    return cpus


def test_sixteen_virtual_cpus_without_siblings(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 1, 16, smt=False)))
    assert topology.known and topology.threads_per_core == 1 and topology.cpus == tuple(range(16))
    placed = cores.placement(topology, engines=2, cores_per_engine=2, gpu_numa=0)
    assert placed.engines == (cores.EngineCores((1,), (2,)), cores.EngineCores((3,), (4,)))
    assert placed.rest == (0, *range(5, 16)) and placed.idle == ()


def test_engine_zero_is_the_same_in_every_arm(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 2, 32, smt=True)))
    arms = [cores.placement(topology, engines, 2, gpu_numa=1) for engines in (1, 2, 4)]
    assert {arm.engines[0] for arm in arms} == {arms[0].engines[0]}
    assert arms[1].engines == arms[2].engines[:2]


def test_siblings_are_kept_idle_and_the_gpus_node_comes_first(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 2, 32, smt=True)))
    assert len(topology.cores) == 64 and topology.threads_per_core == 2
    placed = cores.placement(topology, engines=2, cores_per_engine=2, gpu_numa=1)
    assert placed.engines == (cores.EngineCores((32,), (33,)), cores.EngineCores((34,), (35,)))
    assert placed.idle == (96, 97, 98, 99)
    assert set(placed.rest).isdisjoint({32, 33, 34, 35, *placed.idle}) and len(placed.rest) == 128 - 8


def test_an_engine_does_not_straddle_nodes_while_one_node_has_room(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 2, 4, smt=False)))
    placed = cores.placement(topology, engines=2, cores_per_engine=3, gpu_numa=0)
    # node 0 has cpus 1-3 beside the lowest, which is the rest's
    assert placed.engines[0] == cores.EngineCores((1,), (2, 3))
    assert placed.engines[1] == cores.EngineCores((4,), (5, 6))
    assert placed.rest == (0, 7)


def test_a_budget_of_one_core_is_shared_by_both_processes(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 1, 2, smt=False)))
    placed = cores.placement(topology, engines=1, cores_per_engine=1)
    assert placed.engines == (cores.EngineCores((1,), (1,)),) and placed.rest == (0,)


def test_two_cores_do_not_carry_two_engines_and_the_message_says_what_there_is(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 1, 2, smt=False)))
    with pytest.raises(MeasurementError, match=r"need 5 physical cores; there are 2 \(2 cpus\).*pinned: false"):
        cores.placement(topology, engines=2, cores_per_engine=2)
    floating = cores.placement(topology, engines=2, cores_per_engine=2, pinned=False)
    assert floating.engines == (cores.EngineCores((0, 1), (0, 1)),) * 2 and not floating.pinned


def test_hyper_threads_do_not_count_as_cores(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 1, 4, smt=True)))
    with pytest.raises(MeasurementError, match=r"there are 4 \(8 cpus\)"):
        cores.placement(topology, engines=2, cores_per_engine=2)


def test_limits_of_control_groups(tmp_path: Path) -> None:
    machine(tmp_path, 1, 16, smt=False)
    write(tmp_path / "proc/self/cgroup", "0::/pod")
    write(tmp_path / "sys/fs/cgroup/pod/cpuset.cpus.effective", "4-7,12")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "350000 100000")
    topology = cores.read_topology(tmp_path, range(16))
    assert topology.cpus == (4, 5, 6, 7, 12) and topology.quota_cores == 3.5
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "max 100000")
    assert cores.cgroup_quota_cores(tmp_path) is None


def test_limits_of_version_one_control_groups(tmp_path: Path) -> None:
    machine(tmp_path, 1, 8, smt=False)
    write(tmp_path / "proc/self/cgroup", "4:cpuset:/job\n3:cpu,cpuacct:/job")
    write(tmp_path / "sys/fs/cgroup/cpuset/job/cpuset.cpus", "0-3")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    topology = cores.read_topology(tmp_path, range(8))
    assert topology.cpus == (0, 1, 2, 3) and topology.quota_cores == 2.0


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, {0, 1, 2})
    assert not topology.known
    assert [core.cpus for core in topology.cores] == [(0,), (1,), (2,)]


def test_the_gpus_node_by_its_bus(tmp_path: Path) -> None:
    write(tmp_path / "sys/bus/pci/devices/0000:9b:00.0/numa_node", "1")
    write(tmp_path / "sys/bus/pci/devices/0000:1b:00.0/numa_node", "-1")
    assert cores.gpu_numa_node("00000000:9B:00.0", tmp_path) == 1
    assert cores.gpu_numa_node("00000000:1B:00.0", tmp_path) is None
    assert cores.gpu_numa_node("00000000:FF:00.0", tmp_path) is None


@pytest.mark.parametrize("gpu_nodes", [(0, 0, 1, 1), (0, 0, 0, 0), (None, 0, 1, 1), (None,) * 4, (0, 0, 0)])
def test_gpus_of_one_host_share_no_core_and_waste_none(tmp_path: Path, gpu_nodes: tuple[int | None, ...]) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 2, 32, smt=True)))
    parts = [cores.share_of_host(topology, gpu, gpu_nodes).cpus for gpu in range(len(gpu_nodes))]
    assert sorted(cpu for part in parts for cpu in part) == list(topology.cpus)
    assert max(map(len, parts)) - min(map(len, parts)) <= 4


def test_a_gpus_share_lies_on_its_node(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 2, 32, smt=True)))
    for gpu, node in enumerate((0, 1, 0, 1)):
        assert {core.node for core in cores.share_of_host(topology, gpu, (0, 1, 0, 1)).cores} == {node}


def gpus_at(root: Path, nodes: tuple[int | None, ...]) -> list[str]:
    """GPUs on a made-up PCI bus; a virtual machine tells no node (-1)."""
    bus_ids = [f"00000000:{16 * (index + 1):02X}:00.0" for index in range(len(nodes))]
    for bus_id, node in zip(bus_ids, nodes, strict=True):
        write(root / f"sys/bus/pci/devices/{bus_id[4:].lower()}/numa_node", str(-1 if node is None else node))
    return bus_ids


@pytest.mark.parametrize(
    ("nodes", "packages", "per_package", "engines"),
    [
        ((0, 0, 0, 0, 1, 1, 1, 1), 2, 32, 3),
        ((0, 1), 2, 8, 3),
        ((0, 0), 1, 16, 3),
        ((None, None), 1, 16, 3),
        ((0, 0), 2, 8, 3),  # both on one socket: the other one's cores are dealt to both
        ((0,), 1, 8, 3),
    ],
)
def test_hosts_of_one_machine_place_their_engines_apart(
    tmp_path: Path, nodes: tuple[int | None, ...], packages: int, per_package: int, engines: int
) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, packages, per_package, smt=True)))
    bus_ids = gpus_at(tmp_path, nodes)
    taken: list[int] = []
    for bus_id, node in zip(bus_ids, nodes, strict=True):
        share = cores.share_of_gpu(topology, bus_id, bus_ids, tmp_path)
        placed = cores.placement(share, engines, 2, cores.gpu_numa_node(bus_id, tmp_path))
        used = [cpu for engine in placed.engines for cpu in (*engine.core, *engine.frontend)]
        taken += [*used, *placed.rest, *placed.idle]
        on_node = {cpu for core in topology.cores if core.node == node for cpu in core.cpus}
        if node is not None and len(share.cores) >= 7 and len(set(nodes)) == packages:
            assert set(used) <= on_node
    assert sorted(taken) == list(topology.cpus)


def test_a_share_that_is_too_small_says_what_there_is(tmp_path: Path) -> None:
    topology = cores.read_topology(tmp_path, range(machine(tmp_path, 1, 8, smt=False)))
    bus_ids = gpus_at(tmp_path, (0, 0))
    share = cores.share_of_gpu(topology, bus_ids[1], bus_ids, tmp_path)
    with pytest.raises(MeasurementError, match="need 5 physical cores; there are 4"):
        cores.placement(share, engines=2, cores_per_engine=2)
    with pytest.raises(ValueError, match="not in list"):
        cores.share_of_gpu(topology, "00000000:FF:00.0", bus_ids, tmp_path)


THREADED = """
import threading, sys
stop = threading.Event()
for _ in range(4):
    threading.Thread(target=stop.wait, daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def threaded() -> Iterator[int]:
    """A process with five threads."""
    process = subprocess.Popen([sys.executable, "-c", THREADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"up\n"
    yield process.pid
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_every_thread_is_confined_and_read_back(threaded: int) -> None:
    one = min(os.sched_getaffinity(0))
    cores.apply(threaded, {one})
    assert cores.read_back(threaded) == (one,)
    threads = [int(name.name) for name in Path(f"/proc/{threaded}/task").iterdir()]
    assert len(threads) == 5 and all(os.sched_getaffinity(thread) == {one} for thread in threads)


def test_a_set_without_any_core_of_the_machine_is_refused(threaded: int) -> None:
    with pytest.raises(MeasurementError, match="cannot be put on cpus"):
        cores.apply(threaded, {1000})


def test_niceness_is_that_of_the_nicest_thread(threaded: int) -> None:
    before = cores.niceness(threaded)
    thread = max(int(name.name) for name in Path(f"/proc/{threaded}/task").iterdir())
    os.setpriority(os.PRIO_PROCESS, thread, before + 3)
    assert cores.niceness(threaded) == before + 3


def test_a_process_that_is_gone() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for ask in (cores.read_back, cores.niceness):
        with pytest.raises(MeasurementError, match="is gone"):
            ask(gone.pid)
