"""What a measured store says, as a page: written from the store by this command, so that it can be made again.

    python -m dashboards.findings reference/h200 --again reference/h200-pair \\
        --core-speeds reference/core-speeds-h200.parquet -o docs/findings.md

Every figure on the page is computed (dashboards/findings_tables.py,
dashboards/repeat_tables.py); the prose around them says what was done and what
was not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from dashboards import cells
from dashboards.findings_tables import (
    graph_table,
    planned_verdicts,
    power_table,
    speed_levels,
    speed_table,
    time_spent,
    verdict_table,
)
from dashboards.repeat_tables import (
    again_table,
    false_alarms,
    gpu_table,
    noise_table,
    residency_table,
    side_by_side,
)
from orchestrator.equivalence import residency
from orchestrator.errors import MpscapeError
from orchestrator.store import ResultStore

REFERENCE_CELL = {
    "model": "Qwen/Qwen2.5-1.5B", "kind": "prefill", "prompt_tokens": 512, "output_tokens": 1, "concurrency": 128,
}  # fmt: skip


def page(store: ResultStore, source: str, again: ResultStore, core_speeds: Path | None = None) -> str:
    """The findings of `store` as Markdown; `source` is how the reader names it. Raises StoreError.

    again: a store with one sweep of `store`, run once more on several GPUs at once. core_speeds: a Parquet file of
    (time_s, cpu, speed_mops), read on the idle machine.
    """
    trials = store.read("trials")
    windows = store.read("windows").join(
        trials.select("trial_id", "attempt_id", "sweep", "model", "kind", "arm", "prompt_tokens", "concurrency").rename(
            {"prompt_tokens": "context"}
        ),
        on=["trial_id", "attempt_id"],
    )
    verdicts = planned_verdicts(store)
    (sweep,) = again.sweeps()
    return "\n".join(
        [
            HEAD.format(source=source, world=_world(trials)),
            _run(trials, windows),
            "\nOf the time for which the GPU was held, by the host's own account:\n",
            time_spent(store),
            "\n## Verdicts\n",
            VERDICT_NOTE,
            verdict_table(verdicts),
            f"\n## `{sweep}` again, on two other GPUs at once\n",
            AGAIN_NOTE.format(side_by_side=side_by_side(again, sweep), spent=time_spent(again)),
            again_table(verdicts.filter(sweep=sweep), planned_verdicts(again)),
            "\n## One kind, several GPUs\n",
            GPU_NOTE,
            gpu_table([store, again], REFERENCE_CELL),
            "\n## One engine, two speeds: the core under EngineCore\n",
            SPEED_NOTE.format(levels=speed_levels(core_speeds)),
            speed_table(windows),
            "\n## The same against the same\n",
            NOISE_NOTE,
            noise_table(trials, windows.with_columns(rate=cells.rate())),
            ALARM_NOTE,
            false_alarms([store, again]),
            "\n## An arm alone against the same arm among resident engines\n",
            RESIDENCY_NOTE,
            residency_table(residency(trials, store.read("windows"))),
            "\n## Steps without a CUDA graph\n",
            GRAPH_NOTE,
            graph_table(windows),
            "\n## Power\n",
            POWER_NOTE,
            power_table(windows),
            TAIL,
        ]
    )


def _world(trials: pl.DataFrame) -> str:
    software = json.loads(trials["software"].drop_nulls()[0])
    gpus = ", ".join(sorted(trials["gpu_name"].drop_nulls().unique()))
    weights = ", ".join(sorted(trials["weights"].drop_nulls().unique()))
    return f"{gpus}, driver {software['driver']}, vLLM {software['vllm']}, torch {software['torch']}, {weights} weights"


def _run(trials: pl.DataFrame, windows: pl.DataFrame) -> str:
    lines = []
    for (sweep,), rows in trials.group_by("sweep", maintain_order=True):
        own = windows.filter(pl.col("sweep") == sweep)
        boots = rows.unique("block_id").height
        lines.append(
            f"- `{sweep}`: {rows.height} trials, {own.height} windows of {own['duration_s'].sum():.0f} s in all, "
            f"{own['certified'].sum()} of them certified, {boots} sets of boots, {rows['gpu_uuid'].n_unique()} GPU(s)"
        )
    return "\n".join(sorted(lines))


HEAD = """# Findings so far

Measured, not simulated. Made from `{source}` by `python -m dashboards.findings`; the store holds every window, and the
requests of every 4th client. World: {world}.
Prompts are random token ids, sampling is greedy. Unless an arm's name says otherwise, engines are pinned, EngineCore
alone on one core, frontend and clients on another, and weights are dummies, which are near zero.

What was run:
"""

VERDICT_NOTE = """The ratio is of throughput, at equal total concurrency, as a geometric mean over boots. Three sets of
boots are the least for `wins` or `loses`. Their number stood in the sweep files before anything was measured, so the
intervals are Student's (`--planned-boots`); whoever adds boots after a look has to drop that.
"""

AGAIN_NOTE = """The same file, through one `ray job submit` on a host with two GPUs, each with half of the host's cores:
{side_by_side}. Of that time:

{spent}
"""

GPU_NOTE = """The cell that most GPUs have seen: Qwen2.5-1.5B, prompts of 512 tokens, one output token, 128 clients,
where the power limit binds. Boots of one GPU agree and GPUs differ, so an interval over boots of one GPU is too narrow
for the next one: it speaks of the GPUs that were measured. (The GPU with the highest rate has plain counts, see
`reference/README.md`.)
"""

SPEED_NOTE = """One and the same engine gives two rates, minutes or seconds apart. The cause is outside the engine: the
speed of the core that EngineCore runs on moves between two levels{levels}, for tens of milliseconds to
seconds at a time, on a machine that does nothing else. It fits another guest of the host using the
sibling hardware thread of our core: no steal time is charged for that, and the guest's topology does
not show siblings. EngineCore therefore times a fixed piece of work at each step, and every window
carries the mean. Where EngineCore bounds the rate, the rate follows that speed with a slope near 1,
and little scatter is left once it is known; where the GPU bounds it, the slope is near 0.
"""

NOISE_NOTE = """What differs here is nothing but chance: two windows of one arm, next to each other in one boot; two
arms of one boot that differ in name alone (`single` and `single-again`); one arm in two boots. Where EngineCore bounds
the rate, its core's speed is what moves; where the GPU's power limit does, hardly anything moves.
"""

ALARM_NOTE = """
Judged as if they were different, at a margin of zero, so that whoever wins does so by mistake: the windows of every arm
of three boots or more, dealt out to two arms in turns, and `single-again` against `single`, of both stores.
"""

RESIDENCY_NOTE = """The engines of all arms are loaded side by side, and only one arm gets load. At the end of a set of
boots all engines but one arm's were ended, and that arm was measured again, in the same boot. Harmless means: the
interval lies within half the tie margin.
"""

GRAPH_NOTE = """A closed loop out of step mixes decodes and prefills in most steps. With 256 clients and prompts of 128
tokens, steps with three prefills exceed 512 tokens, vLLM's largest captured CUDA graph by default, and
are launched kernel by kernel; a pair's steps hold half as much and fit. Capturing up to 1,024 tokens
gives the single engine part of what a second engine would (sweep `capture-size`); `smoke-gpu` gives
every arm 1,024.
"""

POWER_NOTE = """Prefill with 8,192 tokens a step draws the power limit in every arm that keeps the GPU busy: the clock
then falls in the denser arm, and what MPS overlaps is paid for in clock.
"""

TAIL = """
## Placement and weights

`single-unpinned` lets the engine float over the whole machine, `single-random` fills the weights with numbers of the
size that trained ones have; both stand in the verdict table against `single`. On these hosts, their cores slowed by
neighbours that nobody sees, an engine that may leave a slow core gave as much as one that may not, or more: pinning
makes arms comparable, and is no gain by itself here. In prefill the power limit binds with either weights, and the
clock that it leaves is a little lower where the numbers are real.

## Not measured yet

Further models and contexts, sustained windows, a GPU with and without a busy neighbour, what becomes of a sweep whose
parts are killed on a GPU, and the published claims one by one.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.findings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--again", required=True, help="store with one of the sweeps, run once more elsewhere")
    parser.add_argument("--core-speeds", type=Path, help="Parquet file of core speeds on the idle machine")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    options = parser.parse_args(arguments)
    try:
        store, again = (ResultStore.open(each, create=False) for each in (options.store, options.again))
        text = page(store, options.store, again, options.core_speeds) + "\n"
    except MpscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
