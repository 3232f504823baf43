"""How fast the store writes repeats and reads windows, beside one plain Parquet file with the same rows.

    python -m benchmarks.store_scan [--trials 10000] [--windows 100] [--arms 4] [--folder DIR]

Builds a store of `trials * windows` window rows in a temporary folder, one data file a repeat as a sweep writes it, and
times each way to read it `--rounds` times. The plain file holds the same rows, has neither commits nor checks and is
the floor for the full read: the ratio to it is what many small files, listing, footers and the join cost together.
The page cache is warm in all of them. The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import psutil

from benchmarks.rate import Rate
from orchestrator.records import WINDOWS
from orchestrator.store import ResultStore

FEW_COLUMNS = ["trial_id", "window_index", "duration_s", "output_tokens", "ttft_p99_s", "certified"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--windows", type=int, default=100, help="a trial")
    parser.add_argument("--arms", type=int, default=4, help="trials a repeat, so a data file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the temporary store is made (default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), options.trials // options.arms, options.arms, options.windows, options.rounds)
    report(results)


def measure(folder: Path, repeats: int, arms: int, windows: int, rounds: int) -> dict[str, Any]:
    """Seconds by way of reading, median over `rounds`, with what they were measured on."""
    uri = str(folder / "store")
    writer = ResultStore.open(uri, create=True)
    rng = np.random.default_rng(1)
    write_s = 0.0
    for number in range(repeats):
        frames = repeat_frames(rng, number, arms, windows)
        start = time.perf_counter()
        writer.write_repeat("bench", f"{number:08x}", f"{number:032x}", frames, 1)
        write_s += time.perf_counter() - start

    rows = writer.read("windows")
    assert rows.height == repeats * arms * windows, "the store lost rows"
    plain = folder / "plain.parquet"
    rows.write_parquet(plain)

    def fresh() -> ResultStore:
        return ResultStore.open(uri, create=False)

    ways: dict[str, Callable[[], object]] = {
        "plain file, all columns": lambda: pl.read_parquet(plain),
        "store, all columns, first read": lambda: fresh().read("windows"),
        "store, all columns, next read": lambda: writer.read("windows"),
        "plain file, 6 columns": lambda: pl.read_parquet(plain, columns=FEW_COLUMNS),
        "store, 6 columns, first read": lambda: fresh().read("windows", columns=FEW_COLUMNS),
        "store, 6 columns, next read": lambda: writer.read("windows", columns=FEW_COLUMNS),
        "resume: committed()": lambda: fresh().committed("bench"),
        "verify()": lambda: writer.verify("bench"),
    }
    return {
        "rows": rows.height,
        "repeats": repeats,
        "trials": repeats * arms,
        "write_s": write_s,
        "median_s": {way: median(_seconds(read) for _ in range(rounds)) for way, read in ways.items()},
        "machine": machine(folder),
    }


def repeat_frames(rng: np.random.Generator, number: int, arms: int, windows: int) -> dict[str, pl.DataFrame]:
    """Rows with every window column filled; random numbers, so that they compress no better than real ones."""
    trial_ids = [f"{number:08x}{arm:08x}" for arm in range(arms)]
    height = arms * windows
    columns: dict[str, Any] = {"trial_id": np.repeat(trial_ids, windows), "window_index": np.tile(range(windows), arms)}
    for name, dtype in WINDOWS.items():
        if dtype == pl.Float64:
            columns[name] = rng.random(height)
        elif dtype == pl.Int64 and name not in columns:
            columns[name] = rng.integers(0, 1 << 32, height)
    trials = {"trial_id": trial_ids, "arm": [f"arm{arm}" for arm in range(arms)], "outcome": ["ok"] * arms}
    frame = pl.DataFrame(columns).with_columns(
        certified=True, certificate=pl.lit('{"little": "law"}'), bound_by=pl.lit("engine_core")
    )
    return {"trials": pl.DataFrame(trials), "windows": frame}


def machine(folder: Path) -> str:
    """What the numbers were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor() or platform.machine(),
    )
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    disk = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
    return (
        f"{model}, {len(os.sched_getaffinity(0))} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {disk}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, Polars {pl.__version__}"
    )


def report(results: dict[str, Any]) -> None:
    print(f"{results['machine']}")
    print(f"{results['trials']:,} trials in {results['repeats']:,} repeats, {results['rows']:,} window rows\n")
    rate = results["repeats"] / results["write_s"]
    print(f"{'write_repeat (fsynced)':34}{results['write_s']:8.2f} s{rate:14,.0f} repeats/s")
    for way, seconds in results["median_s"].items():
        line = f"{way:34}{seconds:8.2f} s"
        if "columns" in way:
            floor = results["median_s"][f"plain file, {way.split(', ')[1]}"]
            line += f"{results['rows'] / seconds:14,.0f} rows/s   {seconds / floor:5.1f} x the plain file"
        else:
            line += f"{results['repeats'] / seconds:14,.0f} repeats/s"
        print(line)
    print(json.dumps(results))


def rates(repeats: int = 2_500, arms: int = 4, windows: int = 100, rounds: int = 3) -> list[Rate]:
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), repeats, arms, windows, rounds)
    median_s = results["median_s"]
    found = [Rate("store: write, fsynced", repeats, "repeats", results["write_s"], float("nan"))]
    for columns in ("all columns", "6 columns"):
        floor_s = median_s[f"plain file, {columns}"]
        for read in ("first read", "next read"):
            seconds = median_s[f"store, {columns}, {read}"]
            note = f"{seconds / floor_s:.1f} x one plain Parquet file with the same rows"
            found.append(Rate(f"store: {columns}, {read}", results["rows"], "rows", seconds, float("nan"), note))
    resume_s = median_s["resume: committed()"]
    return [*found, Rate("store: what is done already", repeats, "repeats", resume_s, float("nan"))]


def _seconds(read: Callable[[], object]) -> float:
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
