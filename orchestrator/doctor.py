"""Is this machine fit to measure, and what to do if not.

    python -m orchestrator.doctor [--json] [--store URI]

Ends with 0 only where measuring makes sense: a GPU, MPS and an engine. Changes nothing on the machine; the one object
that it writes into an existing store is deleted again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pynvml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator import fitness, gpm
from orchestrator.cores import read_topology
from orchestrator.cpu_telemetry import CpuClock, CpuShares, shares
from orchestrator.errors import MeasurementError, MpsError, StoreError
from orchestrator.fitness import Check
from orchestrator.gpu_devices import Gpu, list_gpus, nvml_session
from orchestrator.mps_control import find_binary
from orchestrator.objects import Objects, local_folder
from orchestrator.provenance import driver_versions, package_version

FIT, NOT_FIT = 0, 1
LOOK_S = 1.0
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m orchestrator.doctor", description="Is this machine fit to measure?")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--store", help="folder or bucket URI that a sweep is to write to")
    options = parser.parse_args(argv)
    checks = examine(options.store)
    if options.json:
        print(json.dumps({"fit": _fit(checks), "checks": [asdict(check) for check in checks]}))
    else:
        console = Console()
        console.print(_table(checks))
        console.print(closing_line(checks), soft_wrap=True, highlight=False, markup=False)
    return FIT if _fit(checks) else NOT_FIT


def examine(store: str | None = None, nvml: Any = pynvml, look_s: float = LOOK_S) -> list[Check]:
    """Look at everything; takes `look_s` seconds for the processor."""
    gpus: tuple[Gpu, ...] = ()
    fault = None
    try:
        gpus = list_gpus(nvml)
    except MeasurementError as error:
        fault = str(error)
    topology = read_topology()
    checks = [
        fitness.gpu(gpus, fault),
        fitness.driver(driver_versions(nvml)),
        fitness.mps(_mps_binary(), os.environ),
        fitness.engine({name: package_version(name) for name in fitness.TESTED_ENGINES}),
    ]
    if gpus:
        checks += [
            fitness.counters(_refusals(gpus, nvml)),
            fitness.compute_mode(gpus),
            fitness.partitions(gpus),
            fitness.occupants(gpus),
        ]
    checks += [
        fitness.cores(topology, len(gpus)),
        fitness.disturbance(_look(topology.cpus, look_s)),
        fitness.own_niceness(os.getpriority(os.PRIO_PROCESS, 0)),
        fitness.ray_flags(_raylets()),
        fitness.sandbox(platform.release()),
        fitness.shared_memory(_free_bytes(Path("/dev/shm"))),
    ]
    return checks + _store_checks(store)


def closing_line(checks: list[Check]) -> str:
    """What follows from the checks, in one line."""
    if _fit(checks):
        warnings = sum(check.verdict == "warn" for check in checks)
        return f"Fit to measure, with {warnings} warnings." if warnings else "Fit to measure."
    missing = ", ".join(check.missing for check in checks if check.verdict == "fail")
    return f"Not fit to measure: {missing}. `python -m orchestrator.sweep --backend simulated` works without a GPU."


def _fit(checks: list[Check]) -> bool:
    return all(check.verdict != "fail" for check in checks)


def _table(checks: list[Check]) -> Table:
    table = Table(show_lines=False)
    for column in ("check", "seen", "verdict", "fix"):
        table.add_column(column, overflow="fold")
    for check in checks:
        colour = COLOURS[check.verdict]
        table.add_row(check.name, escape(check.seen), f"[{colour}]{check.verdict}[/{colour}]", escape(check.fix))
    return table


def _mps_binary() -> str | None:
    try:
        return str(find_binary())
    except MpsError:
        return None


def _refusals(gpus: tuple[Gpu, ...], nvml: Any) -> dict[str, str | None]:
    with nvml_session(nvml):
        return {one.uuid: gpm.probe(nvml.nvmlDeviceGetHandleByUUID(one.uuid), nvml) for one in gpus}


def _look(cpus: tuple[int, ...], seconds: float) -> CpuShares:
    clock = CpuClock()
    first = clock.snapshot([os.getpid()], cpus)
    time.sleep(seconds)
    return shares(first, clock.snapshot([os.getpid()], cpus))


def _raylets() -> list[Mapping[str, str] | None]:
    """The environments of the raylets that run here; None for one that may not be read."""
    found: list[Mapping[str, str] | None] = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "raylet":
            try:
                found.append(process.environ())
            except psutil.AccessDenied:
                found.append(None)
            except psutil.NoSuchProcess:
                continue
    return found


def _store_checks(uri: str | None) -> list[Check]:
    folder = local_folder(uri) if uri is not None else Path()
    checks = []
    if uri is not None and (folder is None or folder.is_dir()):
        try:
            Objects.connect(uri, create=False).prove_writable()
            checks.append(fitness.store(uri, None))
        except StoreError as error:
            checks.append(fitness.store(uri, str(error)))
    if folder is not None:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if uri is not None and not folder.exists() and not os.access(there, os.W_OK):
            checks.append(fitness.store(uri, f"{there} is not writable"))
        checks.append(fitness.disk(str(there), shutil.disk_usage(there).free))
    return checks


def _free_bytes(folder: Path) -> int | None:
    return shutil.disk_usage(folder).free if folder.is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
