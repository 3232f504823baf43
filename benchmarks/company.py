"""A neighbour that works and rests in turns, and what it does to the GPU next door.

    CUDA_VISIBLE_DEVICES=1 python -m benchmarks.company keep sweeps/smoke-gpu.yaml --seconds 240 -o company.json &
    CUDA_VISIBLE_DEVICES=0 python -m orchestrator.sweep sweeps/neighbour.yaml --store STORE
    python -m benchmarks.company effect STORE company.json

The first boots the last arm of the sweep's first block and loads it for 20 s, rests for 20 s, and so on; `company.json`
holds the spells of load on the host's monotonic clock, which both processes share, so a window of the second is known
to have had company, or none. The third compares them within a boot, where the engines are the very same.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl

from orchestrator.contrast import rate
from orchestrator.deployment import open_deployment
from orchestrator.errors import MpscapeError
from orchestrator.expand import expand
from orchestrator.gpu_lease import GpuLease
from orchestrator.host import host_nursery, settle_worker
from orchestrator.observation import WindowOrder
from orchestrator.plan import plan
from orchestrator.spec import load_spec
from orchestrator.store import ResultStore
from orchestrator.student import quantile
from orchestrator.target import gpus_here, resolve
from workloads.whole_file import write_whole

SPELL_S = 20.0
WARMUP_S = 0.5
# A window had company if the neighbour worked for this share of it, and had none at 1 minus this.
CLEAR = 0.95


def keep(sweep: Path, seconds: float, out: Path, spell_s: float = SPELL_S) -> None:
    """Work and rest in turns for `seconds` after the boot; `out` has (start_ns, end_ns) of each spell of load."""
    spec = load_spec(sweep)
    target = resolve(spec, None, gpus_here())
    block = plan(expand(spec, target.backend, target.kind.name), target.kind).blocks[0]
    arm, cell = block.arms[-1], block.repeats[0].cell
    spells: list[tuple[int, int]] = []
    with (
        GpuLease().held() if target.backend == "vllm" else nullcontext(),
        host_nursery() as births,
        open_deployment(block, [arm], settle_worker(), births) as deployment,
    ):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic_ns()
            deployment.measure(
                WindowOrder(arm, cell.workload, cell.concurrency, WARMUP_S, spell_s - WARMUP_S, seed=len(spells))
            )
            spells.append((began, time.monotonic_ns()))
            write_whole(out, json.dumps({"sweep": spec.name, "arm": arm.name, "spells_ns": spells}))
            time.sleep(spell_s)


def effect(trials: pl.DataFrame, windows: pl.DataFrame, spells: Sequence[tuple[int, int]]) -> pl.DataFrame:
    """By cell and arm: windows with and without company, and the ratio of their rates with its 95 % interval.

    The estimate is the difference of mean log rates within each boot, averaged over boots with weights
    n1 n2 / (n1 + n2); the interval is Student's with the scatter of windows pooled within boot and state. Windows of a
    mixed state are left out; null where one state is missing.
    """
    cell = ["model", "kind", "prompt_tokens", "output_tokens", "concurrency", "arm"]
    counts = {"output_tokens": "tokens_out", "prompt_tokens": "tokens_in"}
    told = (
        windows.filter("certified")
        .select("trial_id", "boot_id", "start_ns", "duration_s", "prefill_tokens_s", "output_tokens_s", *counts)
        .rename(counts)
        .join(trials.select("trial_id", *cell), on="trial_id")
        .with_columns(rate=rate("tokens_in", "tokens_out").log())
    )
    shares = [_share(spells, start, start + int(length * 1e9)) for start, length in
              told.select("start_ns", "duration_s").iter_rows()]  # fmt: skip
    states = [True if share >= CLEAR else False if share <= 1 - CLEAR else None for share in shares]
    told = told.with_columns(company=pl.Series(states, dtype=pl.Boolean)).drop_nulls("company")
    rows = [
        {**dict(zip(cell, key, strict=True)), **_contrast(group)}
        for key, group in told.group_by(cell, maintain_order=True)
    ]
    return pl.DataFrame(rows).sort(cell) if rows else pl.DataFrame()


def _share(spells: Sequence[tuple[int, int]], start_ns: int, end_ns: int) -> float:
    covered = sum(max(0, min(end, end_ns) - max(start, start_ns)) for start, end in spells)
    return covered / (end_ns - start_ns)


def _contrast(group: pl.DataFrame) -> dict[str, float | int | None]:
    weight = total = squares = 0.0
    freedom = 0
    counts = {True: 0, False: 0}
    for _, boot in group.group_by("boot_id", maintain_order=True):
        states = {state: boot.filter(company=state)["rate"].to_numpy() for state in counts}
        for state, rates in states.items():
            counts[state] += len(rates)
            squares += float(((rates - rates.mean()) ** 2).sum()) if len(rates) else 0.0
            freedom += max(len(rates) - 1, 0)
        here, there = states[True], states[False]
        if len(here) and len(there):
            share = len(here) * len(there) / (len(here) + len(there))
            weight += share
            total += share * float(here.mean() - there.mean())
    found: dict[str, float | int | None] = {"with_company": counts[True], "alone": counts[False]}
    if not weight or not freedom:
        return {**found, "ratio": None, "low": None, "high": None}
    centre = total / weight
    half = quantile(0.975, freedom) * math.sqrt(squares / freedom / weight)
    ends = np.exp([centre, centre - half, centre + half])
    return {**found, "ratio": float(ends[0]), "low": float(ends[1]), "high": float(ends[2])}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.company", description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    keeping = parts.add_parser("keep", help="work and rest in turns on this GPU")
    keeping.add_argument("sweep", type=Path)
    keeping.add_argument("--seconds", type=float, default=240.0)
    keeping.add_argument("--spell", type=float, default=SPELL_S, help="seconds of load, and of rest")
    keeping.add_argument("-o", "--out", type=Path, required=True)
    judging = parts.add_parser("effect", help="what it did to the windows of a store")
    judging.add_argument("store")
    judging.add_argument("company", type=Path)
    judging.add_argument("--sweep", default="neighbour")
    options = parser.parse_args(arguments)
    try:
        if options.part == "keep":
            keep(options.sweep, options.seconds, options.out, options.spell)
            return 0
        store = ResultStore.open(options.store, create=False)
        spells = [tuple(spell) for spell in json.loads(options.company.read_text(encoding="utf-8"))["spells_ns"]]
        found = effect(store.read("trials", [options.sweep]), store.read("windows", [options.sweep]), spells)
    except MpscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True):
        print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
