"""A storm over a simulated sweep: hosts, raylets, nodes and drivers are killed at random until the kills are spent.

    python -m tests.node_loss --kills 300 --seed 1

A cluster of several nodes runs on this machine, each node a raylet with workers of its own. A killed node comes back, a
killed driver is started again with the same command, and a sweep that ends too early is followed by the next. Then it
is looked at whether every trial of every sweep is there once, ended well and undamaged, whether the store tells of the
attempts that were lost, and whether any process is left.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.commit import parse_commit_path
from orchestrator.process import ProcessIdentity, carrying, wait_gone
from orchestrator.store import ResultStore
from tests.ray_head import LIMIT_S, MARK, REPOSITORY, Head, end_marked, ray_head, ray_node
from tests.small_sweep import SPEC, command

HOST = "ray::GpuHost"
# What is killed, and how often in 20 kills: a node takes its hosts with it and seconds to come back.
VICTIMS = {"host": 12, "driver": 4, "raylet": 2, "node": 2}
# Raylets that notice soon, so that a storm is about the sweep and not about waiting.
SOON = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
STARTS = 3
SLOW_START = "timed out during startup"


@dataclass
class Report:
    """What a storm did and what it left. strays: processes that should be gone; faults: of the stores."""

    kills: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    repeats: int = 0
    trials: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    lost_attempts: int = 0
    uncounted_attempts: int = 0
    most_attempts: int = 0
    faults: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Every trial once, all of them ok, nothing damaged and nobody left."""
        return (
            self.rows == self.trials > 0
            and self.outcomes == {"ok": self.trials}
            and not self.faults
            and not self.strays
        )


class Nodes:
    """The cluster's nodes by name; each can be ended and started again."""

    def __init__(self, head: Head, count: int, cpus: int) -> None:
        self.head, self.cpus = head, cpus
        self.stacks: dict[str, ExitStack] = {}
        self.marks: dict[str, str] = {}
        for number in range(count):
            self.start(f"n{number}")

    def start(self, name: str) -> None:
        """Ray gives a raylet 30 s to come up, which a busy machine may not: that is no fault of the sweep's."""
        for left in reversed(range(STARTS)):
            stack = ExitStack()
            try:
                self.marks[name] = stack.enter_context(ray_node(self.head, self.cpus, name))
            except AssertionError as error:
                if SLOW_START not in str(error) or not left:
                    raise
            else:
                self.stacks[name] = stack
                return

    def restart(self, name: str) -> None:
        self.stacks.pop(name).close()
        self.start(name)

    def close(self) -> None:
        for stack in self.stacks.values():
            stack.close()

    def processes(self, name: str, begins: str) -> list[ProcessIdentity]:
        """The node's processes whose command begins so, in no order that chance did not make."""
        members = sorted(carrying(MARK, self.marks[name]))
        return [one for one in members if (words := one.command()) and Path(words[0]).name.startswith(begins)]


@contextmanager
def driver(folder: Path, number: int, head: Head, repeats: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command line of sweep `number`, on the store in `folder`; killed at the end of the block if it still runs."""
    spec = folder / f"storm{number}.yaml"
    changes = {"name": f"storm{number}", "repeats": repeats, "simulation": {"wall_s_per_window": 0.05}}
    spec.write_text(json.dumps(SPEC | changes))
    with (folder / "driver.log").open("ab") as log:
        process = subprocess.Popen(
            command(spec, "--store", folder / "store"),
            env=head.environment(MPSCAPE_WAIT_FOR_NODES="120"), cwd=REPOSITORY,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def storm(folder: Path, kills: int, seed: int, nodes: int = 3, cpus: int = 2, repeats: int = 40) -> Report:
    """Kill until `kills` are spent, let the last sweep end, and look. repeats: of each of a sweep's two cells."""
    chance, report, began = random.Random(seed), Report(), time.monotonic()
    with ray_head(folder, cpus=0, environment=SOON) as head, ExitStack() as stack:
        fleet = Nodes(head, nodes, cpus)
        stack.callback(fleet.close)
        number, lives = 0, ExitStack()
        stack.callback(lambda: lives.close())
        running = lives.enter_context(driver(folder, number, head, repeats))
        while True:
            status = running.poll()
            if status is not None:
                lives.close()
                if status == 0 and sum(report.kills.values()) >= kills:
                    break
                # 0: that sweep is complete. Else it was killed, or had no host left for too long: the same command.
                number += status == 0
                print(f"{number} sweeps done, {report.kills.total()} kills", file=sys.stderr, flush=True)
                lives = ExitStack()
                running = lives.enter_context(driver(folder, number, head, repeats))
            elif sum(report.kills.values()) < kills:
                time.sleep(chance.uniform(0.0, 0.8))
                kind = chance.choices(list(VICTIMS), weights=list(VICTIMS.values()))[0]
                name = chance.choice(sorted(fleet.marks))
                if kind == "driver":
                    # Only one that has something to lose: others are still importing.
                    if hosts_there(fleet) and running.poll() is None:
                        running.kill()
                        report.kills[kind] += running.wait() == -signal.SIGKILL
                elif kind == "host":
                    hosts = fleet.processes(name, HOST)
                    report.kills[kind] += bool(hosts) and kill([chance.choice(hosts)])
                elif hosts_there(fleet):
                    report.kills[kind] += kill(fleet.processes(name, "raylet")) if kind == "raylet" else True
                    if kind == "node":
                        end_marked(fleet.marks[name])
                    fleet.restart(name)
            else:
                time.sleep(0.1)
        report.strays += left_of(fleet, head)
        examine(ResultStore.open(str(folder / "store"), create=False), number + 1, 4 * repeats, report)
    report.strays += [" ".join(one.command()) for one in carrying(MARK, head.mark)]
    report.seconds = round(time.monotonic() - began, 1)
    return report


def hosts_there(fleet: Nodes) -> bool:
    return any(fleet.processes(name, HOST) for name in fleet.marks)


def kill(victims: list[ProcessIdentity]) -> bool:
    return any([victim.signal(signal.SIGKILL) for victim in victims])


def left_of(fleet: Nodes, head: Head) -> list[str]:
    """Hosts that outlived their sweep, and drivers."""
    hosts = [one for name in fleet.marks for one in fleet.processes(name, HOST)]
    drivers = [one for one in carrying("RAY_ADDRESS", head.address) if "orchestrator.sweep" in one.command()]
    return [" ".join(one.command()) for one in wait_gone([*hosts, *drivers], LIMIT_S)]


def examine(store: ResultStore, sweeps: int, trials: int, report: Report) -> None:
    """Count what `sweeps` sweeps of `trials` trials each have left."""
    report.sweeps, report.trials = sweeps, sweeps * trials
    for number in range(sweeps):
        name = f"storm{number}"
        rows = store.read("trials", name)
        report.repeats += rows["repeat_id"].n_unique()
        report.rows += rows["trial_id"].n_unique() if rows["trial_id"].is_unique().all() else -rows.height
        report.outcomes.update(rows["outcome"].to_list())
        report.faults += store.verify(name)
        for commit in store.committed(name).values():
            attempts = store.attempts(name, commit)
            report.lost_attempts += sum(one.failed for one in attempts)
            report.most_attempts = max(report.most_attempts, len(attempts))
    files = [entry.path for entry in store.objects.listing("trials")]
    commits = [entry.path for entry in store.objects.listing("commits") if parse_commit_path(entry.path)]
    report.uncounted_attempts = len(files) - len(commits)


def main() -> int:
    """Run a storm and print its report; 0 where nothing was lost, twice, damaged or left over."""
    parser = argparse.ArgumentParser(prog="python -m tests.node_loss", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mpscape-storm-"))
    report = storm(folder, options.kills, options.seed, options.nodes)
    print(json.dumps({**vars(report), "sound": report.sound, "folder": str(folder)}))
    return 0 if report.sound else 1


if __name__ == "__main__":
    sys.exit(main())
