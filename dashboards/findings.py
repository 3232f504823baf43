"""What a measured store says, as a page: written from the store by this command, so that it can be made again.

    python -m dashboards.findings reference/h200 --again reference/h200-pair \\
        --earlier reference/h200-untuned reference/h200-pieces \\
        --core-speeds reference/core-speeds-h200.parquet --kills reference/kills-h200.json -o docs/findings.md

Every figure on the page is computed (dashboards/findings_tables.py,
dashboards/repeat_tables.py and others); the words around them stand in
dashboards/findings_prose.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from dashboards.ablation import SWEEPS as ABLATIONS
from dashboards.ablation_tables import NOT_YET, ablation_table, part_table, resource_table
from dashboards.claims import OF_MIXED, claims_table
from dashboards.findings_prose import (
    ABLATION_NOTE,
    AGAIN_NOTE,
    ALARM_NOTE,
    CLAIM_NOTE,
    EARLIER_NOTE,
    GPU_NOTE,
    GRAPH_NOTE,
    HEAD,
    KILL_NOTE,
    LANDSCAPE_NOTE,
    NOISE_NOTE,
    OPTIONS_NOTE,
    PART_NOTE,
    POWER_NOTE,
    REGION_NOTE,
    RESIDENCY_NOTE,
    RESOURCE_NOTE,
    SETTINGS_NOTE,
    SPEED_NOTE,
    SUSTAINED_NOTE,
    TAIL,
    TUNING_NOTE,
    VERDICT_NOTE,
)
from dashboards.findings_tables import (
    graph_table,
    planned_boots,
    planned_verdicts,
    power_table,
    speed_levels,
    speed_table,
    time_spent,
    verdict_table,
)
from dashboards.gains_by_settings import SWEEP as SETTINGS_SWEEP
from dashboards.gains_by_settings import gains_by_settings, graphs_in_words, means_in_words, settings_table
from dashboards.host_claims import SCHEDULING
from dashboards.kill_table import aftermath, kill_table
from dashboards.landscape_tables import SWEEPS as LANDSCAPES
from dashboards.landscape_tables import landscape_table
from dashboards.law_chapters import power_law_part, step_chapters
from dashboards.options import options_table
from dashboards.regions import regions, regions_table
from dashboards.repeat_tables import (
    again_table,
    false_alarms,
    gpu_table,
    noise_table,
    residency_table,
    side_by_side,
)
from dashboards.step_parts import step_parts
from dashboards.sustained import SWEEP as SUSTAINED
from dashboards.sustained import sustained_table
from dashboards.tuning import STAGES, choose, chosen, tuning_table
from orchestrator.contrast import rate
from orchestrator.equivalence import residency
from orchestrator.errors import MpscapeError
from orchestrator.store import ResultStore

# Their windows have tables of their own; means over the contexts of a landscape would say nothing.
OWN_TABLES = {*LANDSCAPES, *ABLATIONS.values(), *STAGES, SUSTAINED}
# Their baselines are engines with settings of their own, which the page names; that of `capture-size` is given up.
OPTION_SWEEPS = ("smoke-gpu", "controls", *STAGES, *LANDSCAPES)
REFERENCE_CELL = {
    "model": "Qwen/Qwen2.5-1.5B", "kind": "prefill", "prompt_tokens": 512, "output_tokens": 1, "concurrency": 128,
}  # fmt: skip


def page(
    store: ResultStore,
    source: str,
    again: ResultStore,
    earlier: Sequence[ResultStore],
    core_speeds: Path | None = None,
    kills: Path | None = None,
) -> str:
    """The findings of `store` as Markdown; `source` is how the reader names it. Raises StoreError.

    again: a store with one sweep of `store`, run once more on several GPUs at once. earlier: stores with the landscape
    measured with settings of the engines that were given up for better ones, oldest first. core_speeds: a Parquet file
    of (time_s, cpu, speed_mops), read on the idle machine. kills: as of `kill_table`.
    """
    trials = store.read("trials")
    rows = store.read("windows")
    windows = rows.join(
        trials.select("trial_id", "attempt_id", "sweep", "model", "kind", "arm", "prompt_tokens", "concurrency").rename(
            {"prompt_tokens": "context"}
        ),
        on=["trial_id", "attempt_id"],
    )
    others = windows.filter(~pl.col("sweep").is_in(OWN_TABLES))
    verdicts = planned_verdicts(store)
    parts = step_parts(trials, rows, samples_of(store, ABLATIONS.values()))
    scheduling = trials.filter(sweep=SCHEDULING)
    (sweep,) = again.sweeps()
    return "\n".join(
        [
            HEAD.format(source=source, world=_world(trials)),
            _run(trials, windows),
            "\nOf the time for which the GPU was held, by the host's own account:\n",
            time_spent(store),
            "\n## Before you reach for MPS\n",
            REGION_NOTE,
            regions_table(regions(verdicts, trials, rows, OPTION_SWEEPS)),
            OPTIONS_NOTE,
            options_table(verdicts, OPTION_SWEEPS),
            "\n## Verdicts\n",
            VERDICT_NOTE,
            verdict_table(verdicts.filter(~pl.col("sweep").is_in(OWN_TABLES))),
            "\n## The published claims\n",
            CLAIM_NOTE,
            claims_table(verdicts, trials, rows, parts, ladder_boots=planned_boots(store, SCHEDULING, scheduling)),
            "\n## The scaling landscape\n",
            LANDSCAPE_NOTE,
            landscape_table(verdicts, trials, rows) if {*LANDSCAPES} & {*store.sweeps()} else NOT_YET,
            "\n## The single engine's settings\n",
            TUNING_NOTE,
            *_tuning(verdicts, trials, rows),
            "\n## What a second engine adds, by how well the first was set up\n",
            *_by_settings([*earlier, store]),
            *map(_earlier, earlier),
            "\n## A minute beside seconds\n",
            SUSTAINED_NOTE,
            sustained_table(trials, rows, samples_of(store, [SUSTAINED])) or NOT_YET,
            "\n## Halves of a model\n",
            ABLATION_NOTE,
            ablation_table(verdicts, parts),
            *([] if parts.is_empty() else [PART_NOTE, part_table(parts), RESOURCE_NOTE, resource_table(parts)]),
            f"\n## `{sweep}` again, on two other GPUs at once\n",
            AGAIN_NOTE.format(side_by_side=side_by_side(again, sweep), spent=time_spent(again)),
            again_table(verdicts.filter(sweep=sweep), planned_verdicts(again)),
            "\n## One kind, several GPUs\n",
            GPU_NOTE,
            gpu_table([store, again], REFERENCE_CELL),
            "\n## One engine, two speeds: the core under EngineCore\n",
            SPEED_NOTE.format(levels=speed_levels(core_speeds)),
            speed_table(others),
            *step_chapters(store, [store, again, *earlier]),
            "\n## The same against the same\n",
            NOISE_NOTE,
            noise_table(trials, others.with_columns(rate=rate())),
            ALARM_NOTE,
            false_alarms([store, again, *earlier]),
            "\n## An arm alone against the same arm among resident engines\n",
            RESIDENCY_NOTE,
            residency_table(residency(trials, rows)),
            "\n## Steps without a CUDA graph\n",
            GRAPH_NOTE,
            graph_table(others),
            "\n## Power\n",
            POWER_NOTE,
            power_table(others),
            *power_law_part([store, again, *earlier]),
            *_killed(kills),
            TAIL,
        ]
    )


def samples_of(store: ResultStore, sweeps: Iterable[str]) -> pl.DataFrame:
    """Of those that the store has."""
    return store.read("samples", sorted({*sweeps} & {*store.sweeps()}))


def _tuning(verdicts: pl.DataFrame, trials: pl.DataFrame, windows: pl.DataFrame) -> list[str]:
    """Stage by stage, of those that were measured, and what the landscapes take by them."""
    said = []
    for stage in STAGES:
        if not trials.filter(sweep=stage).is_empty():
            choice = choose(verdicts, stage)
            said += [tuning_table(verdicts, trials, windows, stage), "", *([choice.words, ""] if choice else [])]
    taken = chosen(verdicts)
    return [*said, f"The landscapes take `{taken.best}`." if taken else ""]


def _by_settings(stores: Sequence[ResultStore]) -> list[str]:
    rows = gains_by_settings([store for store in stores if SETTINGS_SWEEP in store.sweeps()])
    return [SETTINGS_NOTE, means_in_words(rows), "", settings_table(rows)]


def _earlier(store: ResultStore) -> str:
    trials, windows, verdicts = store.read("trials"), store.read("windows"), planned_verdicts(store)
    return "\n".join(
        [
            EARLIER_NOTE.format(source=Path(store.uri).name, graphs=graphs_in_words(trials)),
            time_spent(store) + "\n",
            claims_table(verdicts, trials, windows, step_parts(trials, windows, samples_of(store, [])), OF_MIXED),
            "",
            landscape_table(verdicts, trials, windows),
        ]
    )


def _killed(kills: Path | None) -> list[str]:
    if kills is None:
        return []
    end = f"\nThe same command then ended with {aftermath(kills)}."
    return ["\n## Killed in the middle of a window\n", KILL_NOTE, kill_table(kills), end]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.findings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--again", required=True, help="store with one of the sweeps, run once more elsewhere")
    given_up = "stores with the landscape as measured with settings that were given up, oldest first"
    parser.add_argument("--earlier", nargs="+", metavar="STORE", default=[], help=given_up)
    parser.add_argument("--core-speeds", type=Path, help="Parquet file of core speeds on the idle machine")
    parser.add_argument("--kills", type=Path, help="record of tests/test_kill_gpu.py")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: standard output)")
    options = parser.parse_args(arguments)
    try:
        names = (options.store, options.again, *options.earlier)
        store, again, *earlier = (ResultStore.open(name, create=False) for name in names)
        text = page(store, options.store, again, earlier, options.core_speeds, options.kills) + "\n"
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
