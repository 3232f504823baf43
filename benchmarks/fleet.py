"""What the orchestration itself costs: `python -m benchmarks.fleet [--trials 100000] [--gpus 1000] [--actors 16]`.

First the driver alone, in process: a sweep is expanded, planned and handed out to as many GPUs as asked, and receipts
come back at once. Then the same through Ray, with real actors that measure nothing and write nothing. What is timed is
the driver's part of a trial: assignment, receipt, ledger. Measuring and writing are the hosts' work and are left out.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.rate import Rate, machine, timed
from orchestrator.cluster import connected
from orchestrator.expand import expand
from orchestrator.gpus import KINDS
from orchestrator.host import Assignment, GpuHost, Receipt
from orchestrator.ledger import Ledger
from orchestrator.plan import Block, plan
from orchestrator.pool import Landed, run_blocks
from orchestrator.runner import TrialSummary
from orchestrator.spec import parse_spec
from orchestrator.store import ResultStore
from orchestrator.tries import Attempt, End, Work
from tests.ray_head import ray_head

TRIALS, GPUS, ACTORS = 100_000, 1000, 16
SPEC = """\
schema_version: 1
name: fleet-benchmark
question: What does the orchestration of a trial cost?
backend: simulated
gpu: H100
arms: {{single: {{sharing: single}}, mps2: {{sharing: mps, engines: 2}}}}
workload: {{output_tokens: 128}}
sweep:
  grid:
    model: [Qwen2.5-0.5B, Qwen2.5-1.5B, Qwen2.5-3B, Qwen2.5-7B]
    prompt_tokens: [{prompts}]
    concurrency: [16, 32]
repeats: {repeats}
"""


def opened(trials: int, gpus: int, folder: Path) -> tuple[Ledger, tuple[Block, ...]]:
    """A ledger on an empty store and at least one block a GPU: a block is a model's share of one repeat."""
    repeats = max(3, -(-gpus // 4))
    prompts = max(1, -(-trials // (4 * 2 * 2 * repeats)))
    spec = parse_spec(SPEC.format(prompts=", ".join(str(16 * n) for n in range(1, prompts + 1)), repeats=repeats))
    ledger = Ledger.open(spec, ResultStore.open(str(folder), create=True), expand(spec, "simulated", "H100"), False)
    return ledger, plan(ledger.repeats, KINDS["H100"]).only(ledger.remaining).blocks


def receipts(block: Block) -> Iterator[Receipt]:
    """What a host would answer that had measured `block`."""
    for repeat in block.repeats:
        cell, work = repeat.cell, repeat.cell.workload
        yield Receipt(
            repeat.repeat_id,
            True,
            "host",
            tuple(
                TrialSummary(
                    trial_id=repeat.trial_id(arm),
                    arm=arm.name,
                    model=cell.model,
                    kind=work.kind,
                    prompt_tokens=work.prompt_tokens,
                    concurrency=cell.concurrency,
                    repeat=repeat.number,
                    outcome="ok",
                    reason=None,
                    tokens_per_s=1.0,
                    windows=4,
                )
                for arm in repeat.arms
            ),
        )


class IdleHost(GpuHost):
    """Answers for a block without measuring it."""

    def run(self, assignment: Assignment) -> Iterator[Receipt]:
        yield from receipts(assignment.block)


def in_process(ledger: Ledger, blocks: tuple[Block, ...], gpus: int) -> int:
    """Hand out all blocks to `gpus` GPUs that take turns in answering; returns how many were at work at once."""
    waiting, at_work, most = deque(Work.first(block) for block in blocks), deque[tuple[Attempt, Iterator[Receipt]]](), 0
    while waiting or at_work:
        while waiting and len(at_work) < gpus:
            work = waiting.popleft()
            block = ledger.assignment(work.block).block
            at_work.append((Attempt(work, {repeat.repeat_id: repeat for repeat in block.repeats}), receipts(block)))
        most = max(most, len(at_work))
        attempt, answers = at_work.popleft()
        if (receipt := next(answers, None)) is None:
            assert attempt.rest(End.ENDED) == (None, {})
            continue
        ledger.land(receipt, attempt.land(receipt.repeat_id, None))
        at_work.append((attempt, answers))
    return most


def through_ray(ledger: Ledger, blocks: tuple[Block, ...]) -> None:
    with connected() as cluster, closing(run_blocks(blocks, cluster, ledger.assignment, IdleHost)) as events:
        for event in events:
            assert isinstance(event, Landed)
            ledger.land(event.receipt, event.final)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rates(trials: int = TRIALS, gpus: int = GPUS, actors: int = ACTORS) -> list[Rate]:
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), peak_bytes()
        (ledger, blocks), wall_s, cpu_s = timed(lambda: opened(trials, gpus, folder / "one"))
        grown = (peak_bytes() - before) / ledger.trials
        note = f"{len(blocks)} blocks, {cpu_s / ledger.trials * 1e6:.0f} µs and {grown:,.0f} bytes a trial"
        found.append(Rate("spec to blocks, ledger included", ledger.trials, "trials", wall_s, cpu_s, note))

        before = peak_bytes()
        most, wall_s, cpu_s = timed(lambda: in_process(ledger, blocks, gpus))
        grown = (peak_bytes() - before) / ledger.trials
        note = f"{most} GPUs at once, {cpu_s / ledger.trials * 1e6:.0f} µs and {grown:,.0f} bytes a trial"
        found.append(Rate("driver alone, in process", ledger.trials, "trials", wall_s, cpu_s, note))

        ledger, blocks = opened(trials, gpus, folder / "two")
        with ray_head(folder, cpus=actors) as head:
            os.environ.update(head.environment())
            before = peak_bytes()
            _, wall_s, cpu_s = timed(lambda: through_ray(ledger, blocks))
        grown = (peak_bytes() - before) / ledger.trials
        assert ledger.counts()["ok"] == ledger.trials
        note = (
            f"{actors} actors on {len(os.sched_getaffinity(0))} cores, Ray's start and theirs included, driver "
            f"{cpu_s / ledger.trials * 1e6:.0f} µs and {grown:,.0f} bytes a trial"
        )
        found.append(Rate("driver through Ray", ledger.trials, "trials", wall_s, cpu_s, note))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--gpus", type=int, default=GPUS)
    parser.add_argument("--actors", type=int, default=ACTORS)
    options = parser.parse_args()
    for rate in rates(options.trials, options.gpus, options.actors):
        print(
            f"{rate.what}: {rate.amount:,.0f} trials in {rate.wall_s:.1f} s ({rate.per_s:,.0f} a second): {rate.note}"
        )
    print(machine())


if __name__ == "__main__":
    main()
