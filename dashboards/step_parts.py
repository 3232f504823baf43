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
CELL = ("sweep", "gpu_kind", "model", "kind", "prompt_tokens", "output_tokens", "concurrency")


def half_of(part: str) -> str:
    """`attention`, `mlp` or `rest`. Products of one shape share a name, joined by `|`."""
    names = set(part.split("|"))
    return next((half for half, members in HALVES.items() if names <= members), REST)


def step_parts(trials: pl.DataFrame, windows: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """One row a trial and part: CELL, trial_id, step_s, tokens, sequences, part, half, seconds a step.

    Of trials of one engine without MPS that were profiled, means over their certified windows; `BETWEEN` is a part,
    below zero where kernels took longer under the profiler than the whole step does without it.
    """
    single = (
        trials.filter(sharing="single", outcome="ok")
        .select("trial_id", "attempt_id", *CELL)
        .join(
            windows.filter("certified").select("trial_id", "attempt_id", "window_index"), on=["trial_id", "attempt_id"]
        )
    )
    seen = samples.filter(pl.col("source").is_in(["engine0.step", "engine0.part"])).join(
        single, on=["trial_id", "attempt_id", "window_index"]
    )
    facts = (
        seen.filter(source="engine0.step")
        .group_by("trial_id", "metric")
        .agg(pl.col("value").mean())
        .pivot("metric", index="trial_id", values="value")
    )
    if not {"step_s", "tokens", "sequences"} <= set(facts.columns):
        return _none()
    profiled = (
        seen.filter(source="engine0.part")
        .group_by("trial_id", "window_index", *CELL, part=pl.col("metric").str.strip_suffix("_s"))
        .agg(pl.col("value").sum())
        # A part that a window does not name took no time in it.
        .group_by("trial_id", *CELL, "part")
        .agg(total=pl.col("value").sum())
        .join(
            seen.filter(source="engine0.part").group_by("trial_id").agg(windows=pl.col("window_index").n_unique()),
            on="trial_id",
        )
        .with_columns(seconds=pl.col("total") / pl.col("windows"))
        .join(facts, on="trial_id")
    )
    columns = [*CELL, "trial_id", "step_s", "tokens", "sequences", "part", "seconds"]
    gaps = profiled.group_by([name for name in columns if name not in ("part", "seconds")]).agg(
        part=pl.lit(BETWEEN), seconds=pl.col("step_s").first() - pl.col("seconds").sum()
    )
    both = pl.concat([profiled.select(columns), gaps.select(columns)])
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


def _none() -> pl.DataFrame:
    texts = ["sweep", "gpu_kind", "model", "kind", "trial_id", "part", "half"]
    order = [*CELL, "trial_id", "step_s", "tokens", "sequences", "part", "seconds", "half"]
    numbers = ["step_s", "tokens", "sequences", "seconds"]
    return pl.DataFrame(
        schema={name: pl.String if name in texts else pl.Float64 if name in numbers else pl.Int64 for name in order}
    )
