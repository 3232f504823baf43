"""Run a sweep: load the spec, plan it, measure what the store does not hold yet, judge, report.

    python -m orchestrator.sweep                                    # the default sweep
    python -m orchestrator.sweep sweeps/smoke-gpu.yaml --store results
    python -m orchestrator.sweep sweeps/scaling-landscape.yaml --dry-run --gpu H200
    ray job submit --working-dir . -- python -m orchestrator.sweep sweeps/scaling-landscape.yaml --store s3://bucket/x

Progress goes to standard error, one line a trial; the last line of standard output is one JSON object. Killed at any
moment, the same command completes the rest: a repeat is in the store whole or not at all.
Exit status: 0 every trial ok or skipped for a stated reason; 1 some trial failed, now or before; 2 bad spec or store;
3 no cluster or no such GPU in it; 130 interrupted, resumable.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cluster import Cluster, connected, in_ray_job
from orchestrator.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TRIAL_FAILED,
    ClusterError,
    MpscapeError,
    NoStore,
)
from orchestrator.expand import expand
from orchestrator.fleet_metrics import FleetMetrics
from orchestrator.gpus import KINDS
from orchestrator.ledger import Ledger
from orchestrator.objects import absolute_store, default_store
from orchestrator.plan import Plan, plan
from orchestrator.plan_table import print_plan
from orchestrator.pool import Landed, Lost, Quarantined, Stranded, run_blocks
from orchestrator.progress import ProgressLine
from orchestrator.spec import SweepSpec, default_spec_path, load_spec
from orchestrator.store import ResultStore
from orchestrator.target import Target, foregone, gpus_here, resolve
from orchestrator.verdicts import judge


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status and prints the JSON object."""
    options = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends like Ctrl-C
    try:
        return run(options)
    except MpscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def run(options: argparse.Namespace) -> int:
    """The way through, from the file to the verdicts. Ray is started only where something is left to measure."""
    spec = load_spec(options.spec or default_spec_path()).of_repeats(options.repeats).on(options.gpu)
    uri = absolute_store(options.store, under_ray_job=in_ray_job())
    if options.dry_run:
        return dry_run(spec, uri, options)
    store = ResultStore.open(uri, create=True)
    store.write_spec(spec.name, spec.sha, spec.text)
    with ExitStack() as stack:
        cluster = None if foregone(spec, options.backend) else stack.enter_context(connected())
        target = resolve(spec, options.backend, cluster.gpus if cluster else {})
        ledger = Ledger.open(spec, store, expand(spec, target.backend, target.kind.name), options.retry_failed)
        work = plan(ledger.repeats, target.kind).only(ledger.remaining)
        ledger.note_skips(work.skips)
        faults = tell(store.faults)
        if work.blocks:
            measure(work, cluster or stack.enter_context(connected()), ledger, target)
    status = report(spec, store, ledger)
    tell(store.faults[faults:])
    for quarantine in ledger.quarantined:
        print(f"quarantine: {quarantine}", file=sys.stderr)
    if ledger.stranded:
        left = len(ledger.stranded.repeats)
        raise ClusterError(f"{left} repeats are left, and the same command goes on with them: {ledger.stranded.reason}")
    return status


def measure(work: Plan, cluster: Cluster, ledger: Ledger, target: Target) -> None:
    """Run the blocks, and let ledger, progress and metrics know of everything that comes of it."""
    metrics = FleetMetrics(ledger.spec.name, target.backend)
    hosts = run_blocks(work.blocks, cluster, ledger.assignment, show_running=metrics.running)
    with (
        ProgressLine(ledger.trials, target.backend, done=ledger.settled) as progress,
        closing(hosts) as events,
    ):
        for event in events:
            metrics.show(ledger.counts, ledger.trials, len(ledger.quarantined))
            match event:
                case Landed(receipt, final):
                    ledger.land(receipt, final)
                    summaries = receipt.trials
                case Lost():
                    summaries, final = ledger.lose(event), event.final
                case Quarantined(quarantine):
                    ledger.set_aside(event)
                    progress.note(f"quarantine: {quarantine}")
                    continue
                case Stranded():
                    ledger.stranded = event
                    continue
            for summary in summaries:
                progress.trial(summary, retried=not final)


def tell(faults: Sequence[str]) -> int:
    """What is damaged in the store, on standard error; returns how many there are."""
    for fault in faults:
        print(f"store: {fault}", file=sys.stderr)
    return len(faults)


def dry_run(spec: SweepSpec, uri: str, options: argparse.Namespace) -> int:
    """Print the plan; touches neither the cluster nor the store, except to read what that holds."""
    target = resolve(spec, options.backend, {options.gpu: 1} if options.gpu else gpus_here())
    repeats = expand(spec, target.backend, target.kind.name)
    remaining = repeats
    try:
        remaining = Ledger.open(spec, ResultStore.open(uri, create=False), repeats, options.retry_failed).remaining
    except NoStore as error:
        print(f"nothing was measured yet: {error}", file=sys.stderr)
    done = len(repeats) - len(remaining)
    print_plan(plan(repeats, target.kind).only(remaining), spec, repeats, done, target, Console(width=160))
    return EXIT_OK


def report(spec: SweepSpec, store: ResultStore, ledger: Ledger) -> int:
    """Judge the store and print the sweep's JSON object, all of it by what the store holds."""
    counts = Ledger.open(spec, store, ledger.repeats, retry_failed=False).counts()
    print(
        json.dumps(
            {
                "sweep": spec.name,
                "store": store.uri,
                "trials": ledger.trials,
                **{outcome: counts[outcome] for outcome in ("ok", "failed", "skipped")},
                "quarantined": [asdict(quarantine) for quarantine in ledger.quarantined],
                "verdicts": verdict_counts(store, spec.name),
            }
        ),
        flush=True,
    )
    fine = counts["ok"] + counts["skipped"] == ledger.trials
    return EXIT_OK if fine else EXIT_TRIAL_FAILED


def verdict_counts(store: ResultStore, sweep: str) -> dict[str, Any]:
    """Throughput verdicts of the sweep's candidate arms, counted."""
    verdicts = judge(store.read("trials", [sweep]), store.read("windows", [sweep]))
    rows = verdicts.filter(verdicts["metric"] == "throughput")
    return dict(sorted(Counter(rows["verdict"]).items()))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("spec", nargs="?", type=Path, help="sweep file (default: the quickstart sweep)")
    where = "folder or bucket URI (default: results, under a Ray job ~/mpscape-results)"
    parser.add_argument("--store", default=default_store(in_ray_job()), help=where)
    parser.add_argument("--backend", choices=["auto", "vllm", "vllm-cpu", "simulated"], default=None)
    kind = "GPU kind, instead of what the file says; with --dry-run such a GPU need not be here"
    parser.add_argument("--gpu", choices=sorted(KINDS), help=kind)
    parser.add_argument("--repeats", type=int, metavar="N", help="sets of boots, instead of what the file says")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    parser.add_argument("--retry-failed", action="store_true", help="measure failed repeats anew")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
