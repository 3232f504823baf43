"""An arm against itself, from a store: what the statistics say where there is nothing to find.

    trials, windows = halves(trials, windows)      # every arm becomes two, `one` and `other`, of the same boots
    judge(trials, windows, margin=0.0)             # whoever wins here wins by mistake

Windows 2 k and 2 k + 1 of a trial are a pair. Which of them belongs to `one` changes from pair to pair and from boot to
boot, so that a drift within boots favours neither.
"""

from __future__ import annotations

import polars as pl


def halves(trials: pl.DataFrame, windows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables as `verdicts.judge` takes them, with a sweep `<sweep>: <arm>` for every arm of every sweep.

    Of resident trials that ended well; a window without a partner is left out.
    """
    whole = trials.filter(pl.col("outcome") == "ok", pl.col("residency") == "resident")
    both = [
        whole.with_columns(
            trial_id=pl.col("trial_id") + f" {name}",
            sweep=pl.col("sweep") + ": " + pl.col("arm"),
            arm=pl.lit(name),
            baseline=pl.lit("one"),
        )
        for name in ("one", "other")
    ]
    number = pl.col("window_index")
    paired = (
        windows.join(whole.select("trial_id", "attempt_id", "repeat"), on=["trial_id", "attempt_id"])
        .filter(number // 2 * 2 + 1 < pl.len().over("trial_id"))
        .with_columns(round_index=number // 2, first=(number + number // 2 + pl.col("repeat")) % 2 == 0)
        .with_columns(
            trial_id=pl.col("trial_id") + pl.when("first").then(pl.lit(" one")).otherwise(pl.lit(" other")),
            window_index=number // 2,
        )
    )
    return pl.concat(both), paired.select(windows.columns).cast(dict(windows.schema))  # type: ignore[arg-type]
