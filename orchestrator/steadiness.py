"""Is a series of windows steady: trend, level shift, two modes; and what one arm leaves behind for the next.

Every test has a floor for its size next to its significance level, since with enough windows any wobble is significant,
and since windows seconds apart are correlated, which no test on eight of them can allow for. A state is a result that
is reported, not an excuse to measure again.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from orchestrator.student import upper_tail

LEVEL = 0.01
MIN_WINDOWS = 4  # in a boot, below which nothing is said of its course
MIN_FOR_MODES = 8  # in all boots
STATES = ("too_short", "steady", "drifting", "level_shift", "bistable")

# Share of the sum of squares that the best cut in two explains: 0.75 for an even spread, however long; the 99 % point
# of n even draws lies below 0.75 + 0.56 n^-0.465 for n from 8 to 200 (40,000 simulated series each), and Gaussian or
# heavy-tailed series stay further below. A straight drift is an even spread, so it does not pass for two modes.
EVEN_SHARE, SPREAD, POWER = 0.75, 0.56, -0.465


def states(series: pl.DataFrame, by: Sequence[str], boot: str, order: str, value: str, floor: float) -> pl.DataFrame:
    """The state of each series, one row a group `by`.

    series: one row a window; `value` is a log (nulls are left out), `order` sorts the windows of a `boot`.
    floor: smallest change of the log that counts.
    Columns: `by`, `state` (one of STATES), `trend` (change of the log from a boot's first window to its last, common
    slope over boots), `trend_p`, `shift` (largest step within a boot), `shift_p` (over all cuts and boots), `gap`
    (between the two modes) and `low_share` (of the windows, in the lower mode).

    `bistable` needs a boot that goes from one mode to the other and back: boots that differ are the boots' own spread,
    which the interval carries already. The probability that R boots all miss a mode with share q is (1 - q)^R.
    """
    frame = (
        _coded(series.drop_nulls(value), by, boot, value, order)
        .with_columns(
            k=pl.int_range(1, pl.len() + 1).over("run"),
            size=pl.len().over("run").cast(pl.Int64),
            dy=pl.col("y") - pl.col("y").mean().over("run"),
        )
        .with_columns(dx=(pl.col("k") - (pl.col("size") + 1) / 2) / pl.max_horizontal(pl.col("size") - 1, pl.lit(1)))
    )
    names = frame.group_by("series").agg(pl.col(by).first())
    steps = frame.drop(by)
    found = names.join(_trend(steps), on="series").join(_shift(steps), on="series", how="left")
    found = found.join(_modes(steps), on="series", how="left")
    stepped = (pl.col("shift_p") < LEVEL) & (pl.col("shift").abs() > floor)
    sloped = (pl.col("trend_p") < LEVEL) & (pl.col("trend").abs() > floor)
    limit = EVEN_SHARE + SPREAD * pl.col("n").cast(pl.Float64).pow(POWER)
    two = (pl.col("n") >= MIN_FOR_MODES) & (pl.col("cut_share") > limit) & (pl.col("gap") > floor)
    sooner = (pl.col("shift_p") < pl.col("trend_p")).fill_null(True)
    state = (
        pl.when(pl.col("longest") < MIN_WINDOWS).then(pl.lit("too_short"))
        .when(two & (pl.col("switches") >= 2)).then(pl.lit("bistable"))
        .when(stepped & (~sloped | sooner)).then(pl.lit("level_shift"))
        .when(sloped).then(pl.lit("drifting"))
        .otherwise(pl.lit("steady"))
    )  # fmt: skip
    return found.select(*by, "trend", "trend_p", "shift", "shift_p", "gap", "low_share", state=state)


def _coded(series: pl.DataFrame, by: Sequence[str], boot: str, value: str, *order: str) -> pl.DataFrame:
    """`by`, `order` and `y` (the value), sorted, with a number for each group (`series`) and each of its boots (`run`),
    because windows over one number are several times as fast as over several texts."""
    frame = series.select(*by, boot, *order, y=value).sort(*by, boot, *order)
    new_series = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in by)
    new_run = new_series | pl.col(boot).ne_missing(pl.col(boot).shift())
    return frame.select(*by, *order, "y", series=new_series.cum_sum(), run=new_run.cum_sum())


def _trend(frame: pl.DataFrame) -> pl.DataFrame:
    """Least squares with one level a boot and a common slope; dx runs from -1/2 to 1/2 in every boot."""
    sums = frame.group_by("series").agg(
        n=pl.len().cast(pl.Int64),
        boots=pl.col("run").n_unique().cast(pl.Int64),
        longest=pl.col("size").max(),
        sxx=(pl.col("dx") ** 2).sum(),
        sxy=(pl.col("dx") * pl.col("dy")).sum(),
        syy=(pl.col("dy") ** 2).sum(),
    )
    slope = pl.when(pl.col("sxx") > 0).then(pl.col("sxy") / pl.col("sxx"))
    df = pl.col("n") - pl.col("boots") - 1
    fit = sums.with_columns(trend=slope, df=df)
    rest = (pl.col("syy") - pl.col("trend") * pl.col("sxy")).clip(0.0) / pl.col("df")
    return _with_p(fit, pl.col("trend") / (rest / pl.col("sxx")).sqrt(), pl.col("df"), pl.lit(1), "trend_p")


def _shift(frame: pl.DataFrame) -> pl.DataFrame:
    """The best cut of each boot into before and after, at least two windows a side; Bonferroni over cuts and boots."""
    before, k, size = pl.col("dy").cum_sum().over("run"), pl.col("k"), pl.col("size")
    cuts = frame.with_columns(before=before, total=(pl.col("dy") ** 2).sum().over("run"))
    cuts = cuts.filter(k >= 2, k <= size - 2).with_columns(
        step=-pl.col("before") * size / (k * (size - k)), gained=pl.col("before") ** 2 * size / (k * (size - k))
    )
    best = cuts.filter(pl.col("gained") == pl.col("gained").max().over("run")).unique(
        "run", keep="first", maintain_order=True
    )
    left = (pl.col("total") - pl.col("gained")).clip(0.0) / (size - 2)
    tested = _with_p(best, (pl.col("gained") / left).sqrt(), size - 2, size - 3, "boot_p")
    return (
        tested.sort("boot_p", nulls_last=True)
        .group_by("series", maintain_order=True)
        .agg(pl.col("step").first().alias("shift"), shift_p=(pl.col("boot_p").first() * pl.len()).clip(0.0, 1.0))
    )


def _modes(frame: pl.DataFrame) -> pl.DataFrame:
    """The best cut of the sorted values in two, and how often the series crosses it within its busiest boot."""
    y = pl.col("y")
    rank = frame.select("series", "y").sort("series", "y").with_columns(
        below=y.cum_sum().over("series"), total=y.sum().over("series"),
        squares=((y - y.mean().over("series")) ** 2).sum().over("series"),
        i=pl.int_range(1, pl.len() + 1).over("series"), n=pl.len().over("series").cast(pl.Int64),
        after=y.shift(-1).over("series"),
    )  # fmt: skip
    i, n = pl.col("i"), pl.col("n")
    gap = (pl.col("total") - pl.col("below")) / (n - i) - pl.col("below") / i
    share = pl.col("gap") ** 2 * i * (n - i) / n / pl.col("squares")
    cuts = rank.filter(i >= 2, i <= n - 2).with_columns(gap=gap).with_columns(cut_share=share)
    best = (
        cuts.filter(pl.col("cut_share") == pl.col("cut_share").max().over("series"))
        .unique("series", keep="first", maintain_order=True)
        .select("series", "cut_share", "gap", low_share=i / n, cut=(y + pl.col("after")) / 2)
    )
    upper = frame.join(best.select("series", "cut"), on="series", how="inner", maintain_order="left").select(
        "series", "run", up=y > pl.col("cut")
    )
    crossed = (pl.col("up") != pl.col("up").shift(1)) & (pl.col("run") == pl.col("run").shift(1))
    switches = upper.with_columns(crossed=crossed).group_by("series", "run").agg(switches=pl.col("crossed").sum())
    return best.drop("cut").join(switches.group_by("series").agg(pl.col("switches").max()), on="series", how="left")


def carry_over(series: pl.DataFrame, by: Sequence[str], boot: str, value: str, floor: float) -> pl.DataFrame:
    """Where the arm whose window came before changes a window: (`by`, `previous_arm`, `effect`, `p`), at most one row a
    group, only where it is significant (Bonferroni over the previous arms) and larger than `floor`.

    effect: mean log after that arm, less the mean after all others, each centred by boot.
    """
    centred = _coded(series.drop_nulls([value, "previous_arm"]), by, boot, value, "previous_arm").with_columns(
        dy=pl.col("y") - pl.col("y").mean().over("run"), boots=pl.col("run").n_unique().over("series")
    )
    after = centred.group_by([*by, "previous_arm"]).agg(
        m=pl.len().cast(pl.Int64),
        mean=pl.col("dy").mean(),
        rest=((pl.col("dy") - pl.col("dy").mean()) ** 2).sum(),
        boots=pl.col("boots").first().cast(pl.Int64),
    )
    whole = after.with_columns(
        n=pl.col("m").sum().over(by), arms=pl.len().over(by).cast(pl.Int64), rest=pl.col("rest").sum().over(by),
        total=(pl.col("m") * pl.col("mean")).sum().over(by),
    ).filter(pl.col("arms") > 1)  # fmt: skip
    others, df = pl.col("n") - pl.col("m"), pl.col("n") - pl.col("arms") - pl.col("boots") + 1
    effect = pl.col("mean") - (pl.col("total") - pl.col("m") * pl.col("mean")) / others
    measured = whole.with_columns(effect=effect)
    error = (pl.col("rest") / df * (1 / pl.col("m") + 1 / others)).sqrt()
    tested = _with_p(measured, pl.col("effect") / error, df, pl.col("arms"), "p")
    return (
        tested.filter(pl.col("p") < LEVEL, pl.col("effect").abs() > floor)
        .sort("p", "previous_arm")
        .group_by(by, maintain_order=True)
        .first()
        .select(*by, "previous_arm", "effect", "p")
    )


def _with_p(frame: pl.DataFrame, t: pl.Expr, df: pl.Expr, tests: pl.Expr, name: str) -> pl.DataFrame:
    """Adds the two-sided p-value of `t`, times the number of `tests`; null where there is nothing to test."""
    asked = frame.select(t=t.abs().cast(pl.Float64), df=df.cast(pl.Float64), tests=tests.cast(pl.Float64))
    p = (
        2
        * upper_tail(asked["t"].fill_null(float("nan")).to_numpy(), asked["df"].to_numpy())
        * asked["tests"].to_numpy()
    )
    return frame.with_columns(pl.Series(name, p).fill_nan(None).clip(0.0, 1.0))
