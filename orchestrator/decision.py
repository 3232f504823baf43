"""From intervals and grounds to a verdict: which of the four words, why, and what would decide it."""

from __future__ import annotations

import polars as pl

from orchestrator.sequential import MAX_BOOTS, MIN_BOOTS, boots_to_decide

FAR = f"more than {MAX_BOOTS} boots at the spread seen: the ratio lies too near an end of the margin"

# What is measured already stays: a repeat's number is part of its identity, so the sweep measures the new ones only.
MORE_BOOTS = (
    "more boots: {}; `python -m orchestrator.sweep sweeps/{}.yaml --store STORE --repeats {}` measures them beside the "
    "{} there are: "
)

MORE_WINDOWS = "; more windows a repeat would help as much"


def decide(rows: pl.DataFrame) -> pl.DataFrame:
    """Adds `verdict` with its ratio, interval and `reasons`; `judged` where nothing forbade a verdict.

    `wins` means better, so for a latency the ratio is below one. A ratio that drifts has to earn its verdict at the
    start of a repeat and at its end; `unsteady` where it does not.
    """
    above = word(pl.col("low"), pl.col("high"), pl.col("margin"))
    bend = pl.col("drift").abs().fill_null(0.0) / 2
    bent = word(pl.col("low") - bend, pl.col("high") + bend, pl.col("margin"))
    sound = (pl.col("against").list.len() == 0) & pl.col("half_width").is_finite().fill_null(False)
    hurt = sound & (pl.col("metric") == "throughput") & (above != "undecided") & (bent != above)
    text = pl.concat_list(
        pl.when(hurt).then(pl.lit("the verdict would not hold over the whole drift"))
    ).list.drop_nulls()
    lower_better = pl.col("metric") != "throughput"
    flipped = pl.when(lower_better & (above == "wins")).then(pl.lit("loses")).when(
        lower_better & (above == "loses")
    ).then(pl.lit("wins")).otherwise(above)  # fmt: skip
    open_text = pl.concat_list(
        pl.when(sound & (above == "undecided")).then(
            pl.format("the interval {} to {} holds an end of the margin", _shown("low"), _shown("high"))
        )
    ).list.drop_nulls()
    return rows.with_columns(
        better=pl.when(lower_better).then(pl.lit("lower")).otherwise(pl.lit("higher")),
        verdict=pl.when(sound & ~hurt).then(flipped).otherwise(pl.lit("undecided")),
        reasons=pl.concat_list(open_text, text, "against", "remarks"),
        judged=sound,
        unsteady=hurt.fill_null(False),
        ratio=pl.col("log_ratio").exp(),
        ci_low=pl.col("low").exp(),
        ci_high=pl.col("high").exp(),
    )


def word(low: pl.Expr, high: pl.Expr, margin: pl.Expr) -> pl.Expr:
    """The verdict that an interval of the log ratio gives, higher being better."""
    upper, lower = (1 + margin).log(), (1 - margin).log()
    return (
        pl.when(low > upper).then(pl.lit("wins"))
        .when(high < lower).then(pl.lit("loses"))
        .when((low >= lower) & (high <= upper)).then(pl.lit("tie"))
        .otherwise(pl.lit("undecided"))
    )  # fmt: skip


def _shown(log: str) -> pl.Expr:
    return pl.col(log).exp().round(3)


def with_reasons(rows: pl.DataFrame, before: pl.DataFrame, courses: pl.DataFrame) -> pl.DataFrame:
    """Adds `low` and `high` (logs), and the lists `against` (each forbids a verdict) and `remarks`."""
    texts = before.group_by("pair_id", maintain_order=True).agg(
        against=pl.col("text").filter("refuses"), remarks=pl.col("text").filter(~pl.col("refuses"))
    )
    rows = rows.join(texts, on="pair_id", how="left").join(courses, on="pair_id", how="left")
    empty = pl.lit([], pl.List(pl.String))
    low, high = pl.col("log_ratio") - pl.col("half_width"), pl.col("log_ratio") + pl.col("half_width")
    skew = (pl.col("ratio_of_means").log() - pl.col("log_ratio")).abs()
    few = pl.col("boots") < MIN_BOOTS
    own_against = [
        pl.when((pl.col("boots") == 0) & (pl.col("against").list.len().fill_null(0) == 0)).then(
            pl.format("no paired window with a positive {}", "metric")
        ),
        pl.when(few & (pl.col("boots") > 0)).then(pl.format("{} of at least {} boots", "boots", pl.lit(MIN_BOOTS))),
        pl.when(pl.col("candidate_boots") < pl.col("boots")).then(pl.lit("repeats share a boot of the candidate")),
    ]
    own_remarks = [
        pl.when((pl.col("windows") == pl.col("boots")) & (pl.col("boots") > 0)).then(
            pl.lit("one pair of windows a boot: the scatter within boots is not seen")
        ),
        pl.when(skew > pl.max_horizontal(pl.col("margin") / 2, pl.lit(0.01))).then(
            pl.format("the ratio of arithmetic means is {}", pl.col("ratio_of_means").round(3))
        ),
    ]
    return rows.with_columns(low=low, high=high).with_columns(
        against=pl.concat_list(pl.col("against").fill_null(empty), pl.concat_list(own_against).list.drop_nulls()),
        remarks=pl.concat_list(
            pl.concat_list(own_remarks).list.drop_nulls(),
            pl.col("remarks").fill_null(empty),
            pl.col("course").fill_null(empty),
        ),
    )


def with_next_step(rows: pl.DataFrame) -> pl.DataFrame:
    """Adds `boots_wanted`, `gpu_minutes` and `next_step`, null where a verdict stands."""
    names = ["log_ratio", "boot_sd", "boots", "margin"]
    numbers = rows.select(pl.col(names).cast(pl.Float64).fill_null(float("nan")))
    wanted = boots_to_decide(*(numbers[name].to_numpy() for name in names))
    few = pl.col("boots").is_between(1, MIN_BOOTS - 1)
    only_few = few & (pl.col("against").list.len() == 1)
    open_ = pl.col("verdict") == "undecided"
    rows = rows.with_columns(pl.Series("wanted", wanted).fill_nan(None).cast(pl.Int64)).with_columns(
        boots_wanted=pl.when(open_ & only_few).then(pl.max_horizontal("wanted", pl.lit(MIN_BOOTS)))
        .when(open_ & pl.col("judged") & ~pl.col("unsteady")).then("wanted")
    )  # fmt: skip
    more = pl.col("boots_wanted") - pl.col("boots")
    rows = rows.with_columns(gpu_minutes=more * (pl.col("measuring_s") + pl.col("booting_s")) / 60)
    noisy = (
        pl.when(pl.col("noise_share") > 0.5).then(pl.lit(MORE_WINDOWS))
        .otherwise(pl.lit(""))
    )  # fmt: skip
    cost = pl.format(
        "about {} GPU minutes, of which the booting is shared by the model's cells", pl.col("gpu_minutes").round(1)
    )
    command = pl.format(MORE_BOOTS, more, "sweep", pl.col("repeats") + more, "repeats")
    return rows.with_columns(
        next_step=pl.when(pl.col("boots_wanted").is_not_null()).then(
            pl.concat_str(command, cost.fill_null("cost not known"), noisy)
        )
        .when(open_ & pl.col("unsteady")).then(pl.lit("a longer warm-up, then measure anew: the ratio drifts"))
        .when(open_ & pl.col("judged")).then(pl.lit(FAR))
        .when(open_).then(pl.lit("measure anew once what the reasons name is removed"))
    )  # fmt: skip
