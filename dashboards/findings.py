"""What a measured store says, as a page: written from the store by this command, so that it can be made again.

    python -m dashboards.findings reference/h200 --core-speeds reference/core-speeds-h200.parquet -o docs/findings.md

Every figure on the page is computed here; the prose around them says what was done and what was not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from dashboards import cells
from dashboards.noise_table import noise
from orchestrator.account import read_accounts, shares
from orchestrator.equivalence import residency
from orchestrator.errors import MpscapeError
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge

# Every sweep of the record has three repeats in its file, from before anything was measured, or fewer.
PLANNED_BOOTS = 3
# A line through fewer windows than this says nothing.
FEWEST_WINDOWS = 5

PARTS = {"gain": "gain", "host_parallelism": "host parallelism", "kernel_overlap": "kernel overlap"}


def page(store: ResultStore, source: str, core_speeds: Path | None = None) -> str:
    """The findings of `store` as Markdown; `source` is how the reader names it. Raises StoreError.

    core_speeds: a Parquet file of (time_s, cpu, speed_mops), read on the idle machine.
    """
    trials = store.read("trials")
    windows = store.read("windows").join(
        trials.select("trial_id", "attempt_id", "sweep", "model", "kind", "arm", "prompt_tokens", "concurrency").rename(
            {"prompt_tokens": "context"}
        ),
        on=["trial_id", "attempt_id"],
    )
    verdicts = judge(trials, store.read("windows"), planned_boots=PLANNED_BOOTS).filter(metric="throughput")
    return "\n".join(
        [
            HEAD.format(source=source, world=_world(trials)),
            _coverage(trials, windows),
            _time_spent(store),
            "\n## Verdicts\n",
            VERDICT_NOTE,
            _verdict_table(verdicts),
            "\n## One engine, two speeds: the core under EngineCore\n",
            SPEED_NOTE.format(levels=_levels(core_speeds)),
            _speed_table(windows),
            "\n## The same against the same\n",
            NOISE_NOTE,
            _noise_table(trials, windows.with_columns(rate=cells.rate())),
            "\n## An arm alone against the same arm among resident engines\n",
            RESIDENCY_NOTE,
            _residency_table(residency(trials, store.read("windows"))),
            "\n## Steps without a CUDA graph\n",
            GRAPH_NOTE,
            _graph_table(windows),
            "\n## Power\n",
            POWER_NOTE,
            _power_table(windows),
            TAIL,
        ]
    )


def _world(trials: pl.DataFrame) -> str:
    software = json.loads(trials["software"].drop_nulls()[0])
    gpus = ", ".join(sorted(trials["gpu_name"].drop_nulls().unique()))
    weights = ", ".join(sorted(trials["weights"].drop_nulls().unique()))
    return f"{gpus}, driver {software['driver']}, vLLM {software['vllm']}, torch {software['torch']}, {weights} weights"


def _coverage(trials: pl.DataFrame, windows: pl.DataFrame) -> str:
    lines = []
    for (sweep,), rows in trials.group_by("sweep", maintain_order=True):
        own = windows.filter(pl.col("sweep") == sweep)
        boots = rows.unique("block_id").height
        lines.append(
            f"- `{sweep}`: {rows.height} trials, {own.height} windows of {own['duration_s'].sum():.0f} s in all, "
            f"{own['certified'].sum()} of them certified, {boots} sets of boots, {rows['gpu_uuid'].n_unique()} GPU(s)"
        )
    return "\n".join(sorted(lines))


def _verdict_table(verdicts: pl.DataFrame) -> str:
    rows = [
        (
            row["sweep"],
            row["model"].split("/")[-1],
            f"{row['kind']} {row['prompt_tokens']}/{row['output_tokens']}, {row['concurrency']}",
            f"{row['arm']} / {row['baseline']}",
            PARTS.get(row["part"], "ratio"),
            f"{row['ratio']:.2f}",
            "-" if row["ci_low"] is None else f"{row['ci_low']:.2f} to {row['ci_high']:.2f}",
            row["verdict"],
            str(row["boots"]),
            "; ".join(row["reasons"]),
        )
        for row in verdicts.sort("sweep", "model", "kind", "arm", "baseline").iter_rows(named=True)
    ]
    head = ("sweep", "model", "cell, clients", "arms", "part", "ratio", "95 % interval", "verdict", "boots", "reasons")
    return _table(head, rows)


def _time_spent(store: ResultStore) -> str:
    """Where the time went for which a GPU was held, for the sweeps that kept account of it."""
    lines = ["\nOf the time for which the GPU was held, by the host's own account:\n"]
    for sweep in store.sweeps():
        accounts = read_accounts(store, sweep)
        if not accounts.is_empty():
            share = shares(accounts)
            parts = ", ".join(f"{name} {share[name]:.0%}" for name in ("windows", "boot", "between", "teardown"))
            lines.append(f"- `{sweep}`, {accounts.height} of its blocks, {share['held_s']:.0f} s: {parts}")
    return "\n".join(lines)


def _noise_table(trials: pl.DataFrame, windows: pl.DataFrame) -> str:
    rows = [
        (
            row["sweep"],
            row["model"].split("/")[-1],
            f"{row['kind']} {row['prompt_tokens']}/{row['output_tokens']}, {row['concurrency']}",
            row["between"],
            str(row["comparisons"]),
            f"{100 * row['rms_log']:.2f} %",
        )
        for row in noise(trials, windows).iter_rows(named=True)
    ]
    return _table(("sweep", "model", "cell, clients", "between", "comparisons", "root mean square difference"), rows)


def _residency_table(found: pl.DataFrame) -> str:
    rows = [
        (
            row["sweep"],
            row["model"].split("/")[-1],
            f"{row['kind']} {row['prompt_tokens']}/{row['output_tokens']}, {row['concurrency']}",
            row["arm"],
            f"{row['ratio']:.4f}",
            "-" if row["ci_low"] is None else f"{row['ci_low']:.4f} to {row['ci_high']:.4f}",
            f"1 ± {row['bound']:.3f}",
            row["verdict"],
            str(row["boots"]),
        )
        for row in found.iter_rows(named=True)
    ]
    head = ("sweep", "model", "cell, clients", "arm", "resident / alone", "95 % interval", "bound", "verdict", "boots")
    return _table(head, rows)


def _speed_table(windows: pl.DataFrame) -> str:
    rows = []
    known = windows.filter(pl.col("engine_core_speed_mops").is_not_null()).with_columns(rate=cells.rate())
    for (sweep, model, kind, arm), seen in sorted(
        known.group_by("sweep", "model", "kind", "arm"), key=lambda item: item[0]
    ):
        speed, rate = np.log(seen["engine_core_speed_mops"].to_numpy()), np.log(seen["rate"].to_numpy())
        if len(speed) < FEWEST_WINDOWS:
            continue
        slope, offset = np.polyfit(speed, rate, 1)
        left = rate - slope * speed - offset
        rows.append(
            (
                str(sweep),
                str(model).split("/")[-1],
                str(kind),
                str(arm),
                str(len(speed)),
                f"{np.exp(speed.min()):.0f} to {np.exp(speed.max()):.0f}",
                f"{100 * rate.std(ddof=1):.1f} %",
                f"{slope:.2f}",
                f"{100 * left.std(ddof=2):.1f} %",
            )
        )
    head = ("sweep", "model", "kind", "arm", "windows", "core speed, Mops", "rate scatters by", "slope", "scatter left")
    return _table(head, rows)


def _levels(core_speeds: Path | None) -> str:
    """The two levels in words: the medians on either side of the middle between the slowest and fastest tenths."""
    if core_speeds is None:
        return ""
    speeds = pl.read_parquet(core_speeds)["speed_mops"].to_numpy()
    middle = np.quantile(speeds, [0.1, 0.9]).mean()
    slow, fast = np.median(speeds[speeds < middle]), np.median(speeds[speeds >= middle])
    share = 100 * (speeds < middle).mean()
    return f", about {fast:.0f} and {slow:.0f} million interpreter turns a second ({share:.0f} % of the time the lower)"


def _graph_table(windows: pl.DataFrame) -> str:
    means = (
        windows.with_columns(rate=cells.rate())
        .group_by("sweep", "model", "kind", "arm")
        .agg(pl.col("rate", "steps_full_graph_share", "steps_piecewise_graph_share", "steps_eager_share").mean())
        .sort("sweep", "model", "kind", "arm")
    )
    rows = [
        (
            *(row["sweep"], row["model"].split("/")[-1], row["kind"], row["arm"], f"{row['rate']:,.0f}"),
            *(f"{100 * row[f'steps_{mode}_share']:.0f} %" for mode in ("full_graph", "piecewise_graph", "eager")),
        )
        for row in means.iter_rows(named=True)
    ]
    return _table(("sweep", "model", "kind", "arm", "tokens/s", "full graph", "piecewise", "no graph"), rows)


def _power_table(windows: pl.DataFrame) -> str:
    means = (
        windows.group_by("sweep", "model", "kind", "arm")
        .agg(
            pl.col("gpu_active_share", "sm_active_share", "tensor_active_share", "dram_active_share").mean(),
            pl.col("sm_clock_mhz", "power_w", "power_capped_share").mean(),
            pl.col("bound_by").mode().sort().first(),
        )
        .sort("sweep", "model", "kind", "arm")
    )
    shares = ("gpu_active_share", "sm_active_share", "tensor_active_share", "dram_active_share")
    rows = [
        (
            *(row["sweep"], row["model"].split("/")[-1], row["kind"], row["arm"]),
            *(f"{100 * row[name]:.0f} %" for name in shares),
            *(f"{row['power_w']:.0f}", f"{row['sm_clock_mhz']:.0f}", f"{100 * row['power_capped_share']:.0f} %"),
            row["bound_by"],
        )
        for row in means.iter_rows(named=True)
    ]
    head = (
        "sweep",
        "model",
        "kind",
        "arm",
        "GPU active",
        "SM",
        "tensor",
        "DRAM",
        "W",
        "MHz",
        "capped",
        "mostly bound by",
    )
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


HEAD = """# Findings so far

Measured, not simulated. Made from `{source}` by `python -m dashboards.findings`; the store holds every window, and the
requests of every 4th client. World: {world}.
Prompts are random token ids, sampling is greedy. Unless an arm's name says otherwise, engines are pinned, EngineCore
alone on one core, frontend and clients on another, and weights are dummies, which are near zero.

What was run:
"""

VERDICT_NOTE = """The ratio is of throughput, at equal total concurrency, as a geometric mean over boots. Three sets of
boots are the least for `wins` or `loses`. Their number stood in the sweep files before anything was measured, so the
intervals are Student's (`--planned-boots 3`); whoever adds boots after a look has to drop that.
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
size that trained ones have; both stand in the verdict table against `single`, with two boots so far. On this host, its
cores slowed by neighbours that nobody sees, an engine that may leave a slow core gave more than one that may not:
pinning makes arms comparable, and is no gain by itself here. In prefill the power limit binds with either weights, and
the clock that it leaves is in the next line of figures above: a little lower where the numbers are real.

## Not measured yet

Further models and contexts, the third set of boots of `controls`, resident against alone for arms of several engines,
sustained windows, what becomes of a sweep whose parts are killed on a GPU, and the published claims one by one.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.findings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--core-speeds", type=Path, help="Parquet file of core speeds on the idle machine")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    options = parser.parse_args(arguments)
    try:
        text = page(ResultStore.open(options.store, create=False), options.store, options.core_speeds) + "\n"
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
