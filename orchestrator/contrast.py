"""Paired log ratios of two arms: rounds -> boots -> one interval.

The estimand is the ratio of mean rates over boots, the means being geometric: exp of the mean over boots of
log(candidate's rate / baseline's rate). It is symmetric in the arms, multiplies exactly along single -> timesliced ->
mps over the same rounds, and Student's interval is for it and for nothing else. The ratio of arithmetic means over
boots is reported beside it.

Windows of one round are seconds apart, so their difference of logs is free of what drifts slowly; a boot's contrast is
the mean over its rounds. Boots are the independent units, with one contrast each: t over them asks nothing of the
correlation within a boot, and boots of unequal variance leave it at or below its level, at every level up to 8.3 % (R.
Ibragimov and U. K. Mueller, "t-statistic based correlation and heterogeneity robust inference", J. Business and
Economic Statistics 28 (2010) 453-468). What windows scatter within boots serves as a floor only: no interval is
narrower than that scatter allows, however well three boots happen to agree.
"""

from __future__ import annotations

import polars as pl

from orchestrator.sequential import ALPHA, with_reach
from orchestrator.student import quantile

# metric -> column of `windows`; a latency ratio below one is better
LATENCIES = {
    "ttft_p50": "ttft_p50_s",
    "ttft_p99": "ttft_p99_s",
    "tpot_p50": "tpot_p50_s",
    "tpot_p99": "tpot_p99_s",
    "e2e_p50": "e2e_p50_s",
    "e2e_p99": "e2e_p99_s",
}
METRICS = ("throughput", *LATENCIES)
CELL = ("sweep", "backend", "gpu_kind", "model", "kind", "prompt_tokens", "output_tokens", "concurrency", "residency")


def numbered(trials: pl.DataFrame) -> pl.DataFrame:
    """`trials` with numbers for cells (`cell_id`) and trials (`trial`: numbers join faster than texts), with
    `residency` and `boot_id` filled where an arm never came up, and `together`: whether a repeat's arms boot as one.

    A cell is judged by residency apart: windows of engines that are alone and of resident ones are not one population.
    """
    residency = pl.col("residency").fill_null(pl.col("residency").drop_nulls().first().over("repeat_id"))
    return (
        trials.with_columns(residency.fill_null("resident"))
        .with_columns(
            cell_id=pl.struct(CELL).rank("dense"),
            boot_id=pl.coalesce("boot_id", pl.format("{}/{}", "repeat_id", "arm")),
            **({} if "together" in trials.columns else {"together": residency.fill_null("resident") == "resident"}),
        )
        .sort("cell_id", "repeat", "repeat_id", "arm")
        .with_row_index("trial")
    )


def pairs(trials: pl.DataFrame) -> pl.DataFrame:
    """Which arms are compared: (pair_id, cell_id, arm, baseline, part), from numbered trials.

    Every arm against its repeat's baseline, and each mps(n) against the timesliced(n) with the same cores and engine
    arguments. `part` names what the step isolates: `host_parallelism` (timesliced / single), `kernel_overlap`
    (mps / timesliced), `mps_cost` (mps(1) / single), `gain` (mps(n) / single); null for any other pair.
    """
    setting = ["cell_id", "engines", "cores_per_engine", "pinned", "engine_args"]
    # An arm that was measured alone after the others had gone is for orchestrator/equivalence.py.
    lone = (pl.col("residency") == "alone") & (pl.len().over("repeat_id") == 1)
    arms = (
        trials.filter(~lone)
        .group_by("cell_id", "arm", maintain_order=True)
        .agg(pl.col("sharing", *setting[1:]).first(), pl.col("baseline").drop_nulls().unique())
    )
    against = arms.explode("baseline", empty_as_null=True, keep_nulls=True).filter(pl.col("baseline") != pl.col("arm"))
    sliced = arms.filter(sharing="timesliced").select(*setting, baseline=pl.col("arm"))
    overlap = arms.filter(sharing="mps").drop("baseline").join(sliced, on=setting, nulls_equal=True)
    shape = ["cell_id", "arm", "baseline", "sharing", "engines"]
    reference = arms.select("cell_id", baseline="arm", against="sharing")
    one, many = pl.col("against") == "single", pl.col("engines") > 1
    part = (
        pl.when(one & (pl.col("sharing") == "timesliced")).then(pl.lit("host_parallelism"))
        .when(one & (pl.col("sharing") == "mps") & many).then(pl.lit("gain"))
        .when(one & (pl.col("sharing") == "mps")).then(pl.lit("mps_cost"))
        .when((pl.col("against") == "timesliced") & (pl.col("sharing") == "mps")).then(pl.lit("kernel_overlap"))
    )  # fmt: skip
    return (
        pl.concat([against.select(shape), overlap.select(shape)])
        .unique(["cell_id", "arm", "baseline"], keep="first")
        .join(reference, on=["cell_id", "baseline"], how="left")
        .sort("cell_id", "arm", "baseline")
        .select("cell_id", "arm", "baseline", part=part)
        .with_row_index("pair_id")
    )


def sides(trials: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """One row a pair and repeat: both trials of the repeat, nulls on a side whose arm is not in it."""
    kept = ["trial_id", "trial", "boot_id", "outcome", "gpu_uuid"]
    candidate = trials.select("cell_id", "repeat_id", "arm", *kept)
    baseline = candidate.rename({"arm": "baseline"} | {name: f"base_{name}" for name in kept})
    repeats = trials.select("cell_id", "repeat_id", "residency").unique()
    return (
        pairs.join(repeats, on="cell_id")
        .join(candidate, on=["cell_id", "repeat_id", "arm"], how="left")
        .join(baseline, on=["cell_id", "repeat_id", "baseline"], how="left")
    )


def rate(tokens_in: str = "prompt_tokens", tokens_out: str = "output_tokens") -> pl.Expr:
    """Tokens/s of a window, the one definition for all verdicts and figures: output tokens, and prompt tokens for kinds
    of prefill, whose requests have one output token; the tapered rates where there are any (orchestrator/taper.py).

    tokens_in, tokens_out: the columns of the window's counts.
    """
    credited = pl.when(is_prefill()).then(tokens_in).otherwise(tokens_out)
    return pl.coalesce("prefill_tokens_s", "output_tokens_s", credited / pl.col("duration_s"))


def is_prefill() -> pl.Expr:
    """Whether the kind is prefill, served or replayed."""
    return pl.col("kind").str.starts_with("prefill")


def log_windows(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Windows of the trials that ended well, each metric as its natural log, and `core`, that of the core speed; null
    where it is not a positive number. `throughput` is `rate`.
    """
    kept = ["trial_id", "attempt_id", "trial", "cell_id", "arm", "boot_id", "kind"]
    ok = trials.filter(outcome="ok").select(kept)
    metrics = {"throughput": rate()} | {metric: pl.col(column) for metric, column in LATENCIES.items()}
    metrics["core"] = pl.col("engine_core_speed_mops")
    needed = ["trial_id", "attempt_id", "round_index", "order_index", "previous_arm", "certified"]
    return (
        windows.select(
            *needed, "output_tokens", "prompt_tokens", "prefill_tokens_s", "output_tokens_s", "duration_s",
            "engine_core_speed_mops",
            *LATENCIES.values(),
        )
        .join(ok, on=["trial_id", "attempt_id"])
        .select(
            "trial", "cell_id", "arm", "boot_id", *needed[2:5],
            pl.col("certified").fill_null(False),
            **{name: pl.when((value > 0) & value.is_finite()).then(value.log()) for name, value in metrics.items()},
        )
    )  # fmt: skip


def rounds(logs: pl.DataFrame, sides: pl.DataFrame) -> pl.DataFrame:
    """Log ratios by pair and round of resident repeats: one row where both arms have a certified window.

    A window that is not certified takes its whole round with it, for the pairs that its arm is in.
    """
    values = (*METRICS, "core")
    by_round = logs.group_by("trial", "round_index").agg(pl.col("certified").all(), pl.col(values).mean())
    sound = by_round.filter("certified").drop("certified")
    base = sound.rename({"trial": "base_trial"} | {value: f"base_{value}" for value in values})
    return (
        sides.filter(residency="resident")
        .join(sound, on="trial")
        .join(base, on=["base_trial", "round_index"])
        .with_columns(pl.col(metric) - pl.col(f"base_{metric}") for metric in METRICS)
    )


def boot_contrasts(logs: pl.DataFrame, sides: pl.DataFrame, rounds: pl.DataFrame) -> pl.DataFrame:
    """One row a pair, metric and boot: `contrast` (mean log ratio), `base` (mean log of the baseline), `windows`
    (pairs of windows it rests on), `noise` (variance that the windows' scatter gives to it) and `noise_df`.

    Resident arms are paired round by round. Arms measured alone share no round: their means are paired by repeat.
    Repeats that shared the baseline's boot are one boot.
    """
    key = ["pair_id", "repeat_id", "base_boot_id", "boot_id"]
    alone = sides.filter(residency="alone")
    involved = pl.concat([alone.select("trial"), alone.select(trial="base_trial")]).unique()
    sound = logs.filter("certified").join(involved, on="trial", how="semi")
    tables = []
    resident = rounds.group_by(key).agg(
        expression.alias(f"{name} {metric}")
        for metric in METRICS
        for name, expression in _paired(pl.col(metric), pl.col(f"base_{metric}")).items()
    )
    for metric in METRICS:
        value = pl.col(metric)
        tables.append(
            resident.filter(pl.col(f"windows {metric}") > 0).select(
                *key, *(pl.col(f"{name} {metric}").alias(name) for name in _PAIRED), metric=pl.lit(metric)
            )
        )
        arm = (
            sound.drop_nulls(metric).group_by("trial").agg(mean=value.mean(), noise=value.var() / pl.len(), n=pl.len())
        )
        tables.append(
            alone.join(arm, on="trial")
            .join(arm, left_on="base_trial", right_on="trial", suffix="_base")
            .select(*key, contrast=pl.col("mean") - pl.col("mean_base"), base="mean_base",
                    windows=pl.min_horizontal("n", "n_base"), noise=pl.col("noise") + pl.col("noise_base"),
                    noise_df=pl.min_horizontal("n", "n_base") - 1, metric=pl.lit(metric))
        )  # fmt: skip
    counted = [pl.col("windows", "noise_df").cast(pl.Int64)]
    by_repeat = pl.concat([table.with_columns(counted) for table in tables])
    return by_repeat.group_by("pair_id", "metric", boot="base_boot_id").agg(
        pl.col("contrast", "base").mean(),
        pl.col("windows", "noise_df").sum(),
        noise=pl.col("noise").mean() / pl.len(),
        candidate_boots=pl.col("boot_id").unique(),
    )


_PAIRED = ("contrast", "base", "windows", "noise", "noise_df")


def _paired(value: pl.Expr, base: pl.Expr) -> dict[str, pl.Expr]:
    """What the rounds of one boot say, by the names of _PAIRED. value: log ratios, null in rounds that do not count."""
    counted = value.count()
    summed = (value.mean(), base.filter(value.is_not_null()).mean(), counted, value.var() / counted, counted - 1)
    return dict(zip(_PAIRED, summed, strict=True))


def intervals(contrasts: pl.DataFrame) -> pl.DataFrame:
    """One row a pair and metric: `log_ratio`, `half_width` (null below two boots), `se`, `boot_sd` (of one boot's
    contrast), `boots`, `windows`, `ratio_of_means` (arithmetic, over boots), `noise_share` (of the boots' variance,
    what the scatter of windows explains) and `candidate_boots` (how many different ones).

    half_width = max(c s / sqrt(R), q w / R): s over the R boots with c from `critical_value`, and the floor of the
    windows' own scatter, w^2 = sum of `noise`, with Student's q at its degrees of freedom.
    contrasts: of `boot_contrasts`, with `planned`, the number of boots that was fixed beforehand, or null.
    """
    rows = contrasts.group_by("pair_id", "metric").agg(
        planned=pl.col("planned").first(),
        boots=pl.len().cast(pl.Int64),
        windows=pl.col("windows").sum(),
        log_ratio=pl.col("contrast").mean(),
        scatter=pl.col("contrast").std(),
        noise=pl.col("noise").sum(),
        noise_df=pl.col("noise_df").sum(),
        ratio_of_means=(pl.col("base") + pl.col("contrast")).exp().sum() / pl.col("base").exp().sum(),
        candidate_boots=pl.col("candidate_boots")
        .list.explode(empty_as_null=True, keep_nulls=True)
        .n_unique()
        .cast(pl.Int64),
    )
    floor = {df: quantile(1 - ALPHA / 2, df) for df in rows["noise_df"].unique() if df > 0}
    root = pl.col("boots").sqrt()
    return with_reach(rows).with_columns(
        floor=pl.col("noise_df").replace_strict(floor, default=None, return_dtype=pl.Float64),
    ).select(
        "pair_id", "metric", "boots", "windows", "log_ratio", "ratio_of_means", "candidate_boots",
        half_width=pl.when(pl.col("boots") > 1).then(
            pl.max_horizontal(
                pl.col("reach") * pl.col("scatter") / root, pl.col("floor") * pl.col("noise").sqrt() / pl.col("boots")
            )
        ),
        reach="reach",
        noise_share=(pl.col("noise") / pl.col("boots") / pl.col("scatter") ** 2).clip(0.0, 1.0),
    ).with_columns(se=pl.col("half_width") / pl.col("reach")).with_columns(boot_sd=pl.col("se") * root)  # fmt: skip
