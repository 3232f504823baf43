"""What is said of the course of a cell's windows: its arms, their carry-over, and the ratio itself."""

from __future__ import annotations

import polars as pl

from orchestrator import steadiness

SMALLEST = 0.01  # log: no course below 1 % is worth a word


def courses(logs: pl.DataFrame, rounds: pl.DataFrame, pairs: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """By pair: `drift` (of the ratio itself, log over a repeat, null where steady) and `course` (what to say)."""
    floor = max(float(facts["margin"].min() or 0.0) / 2, SMALLEST)  # type: ignore[arg-type]
    sound = logs.filter("certified")
    arms = steadiness.states(sound, ["cell_id", "arm"], "boot_id", "order_index", "throughput", floor)
    left = steadiness.carry_over(sound, ["cell_id", "arm"], "boot_id", "throughput", floor)
    size = (
        pl.when(pl.col("state") == "drifting").then(pl.format("drifts by {} % over a repeat", _percent("trend")))
        .when(pl.col("state") == "level_shift").then(pl.format("shifts level by {} % within a boot", _percent("shift")))
        .when(pl.col("state") == "bistable").then(pl.format("is bistable, modes {} % apart", _percent("gap")))
    )  # fmt: skip
    told = arms.select("cell_id", "arm", text=pl.format("{} {}", "arm", size))
    after = left.select(
        "cell_id",
        "arm",
        text=pl.format(
            "{} differs by {} % in windows after {} (carry-over)", "arm", _percent("effect"), "previous_arm"
        ),
    )
    by_arm = pl.concat([told, after]).drop_nulls("text").group_by("cell_id", "arm", maintain_order=True).agg("text")
    ratio = steadiness.states(rounds, ["pair_id"], "base_boot_id", "round_index", "throughput", floor)
    by_pair = ratio.select(
        "pair_id",
        "state",
        drift=pl.when(pl.col("state") == "drifting").then("trend"),
        text=pl.format("the ratio {}", size),
    )
    empty = pl.lit([], pl.List(pl.String))
    return (
        pairs.select("pair_id", "cell_id", "arm", "baseline")
        .join(by_pair, on="pair_id", how="left")
        .join(by_arm, on=["cell_id", "arm"], how="left", suffix="_arm")
        .join(by_arm, left_on=["cell_id", "baseline"], right_on=["cell_id", "arm"], how="left", suffix="_base")
        .select(
            "pair_id", "drift",
            course=pl.concat_list(
                pl.concat_list("text").list.drop_nulls(),
                pl.col("text_base").fill_null(empty), pl.col("text_arm").fill_null(empty),
            ),
        )
    )  # fmt: skip


def _percent(column: str) -> pl.Expr:
    return ((pl.col(column).exp() - 1) * 100).round(1)
