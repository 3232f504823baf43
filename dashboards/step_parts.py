"""Where the time of a replayed step goes: by part of the model as profiled, and by half of its layers.

A step of `step_s` seconds, replayed as one graph, holds kernels of the parts (`orchestrator/step_profile.py`) and the
time between kernels, which is what the parts leave of it.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

# What stays of a layer when its other half is taken out (workloads/ablation_models.py), but for norms and activations,
# which are fused with their neighbours and told apart by nothing: they are part of the rest.
HALVES = {
    "attention": frozenset({"attention", "kv_write", "qkv_proj", "o_proj"}),
    "mlp": frozenset({"gate_up_proj", "down_proj"}),
}
REST, BETWEEN = "rest", "between kernels"
# Sources of the single engine's samples: the step as replayed, and its profile.
STEP, PART = "engine0.step", "engine0.part"
# Kernels that are launched one by one take up to this much of a step that is replayed as one graph.
MOST = 1.05
CELL = ("sweep", "gpu_kind", "model", "kind", "prompt_tokens", "output_tokens", "concurrency")


def half_of(part: str) -> str:
    """`attention`, `mlp` or `rest`. Products of one shape share a name, joined by `|`."""
    names = set(part.split("|"))
    return next((half for half, members in HALVES.items() if names <= members), REST)


def step_parts(trials: pl.DataFrame, windows: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """One row a trial and part: CELL, trial_id, step_s, tokens, sequences, part, half, seconds a step.

    Of trials of one engine without MPS that were profiled, means over their certified windows; `BETWEEN` is a part,
    below zero where kernels took longer under the profiler than the whole step does without it. A profile with more
    than MOST of the step in it has caught kernels of something else, and is left out.
    """
    single = trials.filter(sharing="single", outcome="ok").select("trial_id", "attempt_id", *CELL)
    certified = windows.filter("certified").select("trial_id", "attempt_id", "window_index")
    seen = (
        samples.filter(pl.col("source").is_in([STEP, PART]))
        .join(single, on=["trial_id", "attempt_id"])
        .join(certified, on=["trial_id", "attempt_id", "window_index"])
    )
    facts = seen.filter(source=STEP).group_by("trial_id").agg(
        pl.col("value").filter(metric=name).mean().alias(name) for name in ("step_s", "tokens", "sequences")
    )  # fmt: skip
    profiles = seen.filter(source=PART).join(facts, on="trial_id")
    window = ["trial_id", "window_index"]
    kept = profiles.filter(pl.col("value").sum().over(window) <= MOST * pl.col("step_s")).with_columns(
        windows=pl.col("window_index").n_unique().over("trial_id")
    )
    columns = [*CELL, "trial_id", "step_s", "tokens", "sequences"]
    # A part that a window does not name took no time in it.
    profiled = kept.group_by(*columns, part=pl.col("metric").str.strip_suffix("_s")).agg(
        seconds=pl.col("value").sum() / pl.col("windows").first()
    )
    gaps = profiled.group_by(columns).agg(
        part=pl.lit(BETWEEN), seconds=pl.col("step_s").first() - pl.col("seconds").sum()
    )
    both = pl.concat([profiled, gaps])
    halves = {part: half_of(part) for part in both["part"].unique()} | {BETWEEN: BETWEEN}
    return both.with_columns(half=pl.col("part").replace_strict(halves, return_dtype=pl.String)).sort(
        *CELL, "trial_id", "part"
    )


def by_half(parts: pl.DataFrame) -> pl.DataFrame:
    """As `step_parts`, a row a trial and half."""
    kept = [name for name in parts.columns if name not in ("part", "seconds", "half")]
    return parts.group_by(*kept, "half").agg(pl.col("seconds").sum()).sort(*CELL, "trial_id", "half")


def part_order(parts: Iterable[str]) -> list[str]:
    """Attention first, then the MLP, what is neither, and the time between kernels."""
    rank = [*HALVES, REST, BETWEEN]
    return sorted(parts, key=lambda part: (rank.index(BETWEEN if part == BETWEEN else half_of(part)), part))
