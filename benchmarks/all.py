"""All rates in one table: `python -m benchmarks.all [NAME...]`, each benchmark in a process of its own.

The table is Markdown, as it stands in docs/benchmarks.md. CPU seconds beside wall seconds tell how much of a slow
figure was somebody else's work on the machine.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import polars as pl
import ray

from benchmarks.rate import Rate, machine

NAMES = ("expand", "plan", "simulate", "closed_loop", "store_scan", "judge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps([asdict(rate) for rate in importlib.import_module(f"benchmarks.{options.child}").rates()]))
        return
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    libraries = f"Polars {pl.__version__}, NumPy {np.__version__}, Ray {ray.__version__}"
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine()}, {libraries}\n")
    print("| what | a second | wall s | CPU s | load | beside |")
    print("|---|---|---|---|---|---|")
    for name in options.names or NAMES:
        for rate in rates_of(name):
            cpu = "" if math.isnan(rate.cpu_s) else f"{rate.cpu_s:.2f}"
            print(
                f"| {rate.what} | {rate.per_s:,.0f} {rate.unit} | {rate.wall_s:.2f} | {cpu} | {os.getloadavg()[0]:.1f} "
                f"| {rate.note} |",
                flush=True,
            )


def rates_of(name: str) -> list[Rate]:
    """Run one benchmark by itself: what one leaves in memory must not slow the next."""
    command = [sys.executable, "-m", "benchmarks.all", "--child", name]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [Rate(**fields) for fields in json.loads(ended.stdout.splitlines()[-1])]


if __name__ == "__main__":
    main()
