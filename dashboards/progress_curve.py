"""How far a sweep is: what its file asks for, what is committed, and when the rest may be there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import plotly.graph_objects as go
import polars as pl

from dashboards import theme
from dashboards.health import OUTCOMES

# The pace is that of the last commits: early ones carry compilation and cold caches.
PACE_OVER = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """planned: trials that the sweep file asks for, None where the store does not keep it. Times are wall clock."""

    planned: int | None
    done: int
    last_unix_s: float | None
    left_s: float | None

    @property
    def share(self) -> float | None:
        return self.done / self.planned if self.planned else None


def progress(trials: pl.DataFrame, planned: int | None) -> Progress:
    """trials: of one sweep, with `committed_unix_s`, the time at which the repeat of each was committed."""
    times = trials["committed_unix_s"].drop_nulls().sort()
    done = len(trials)
    recent = (
        trials.group_by("repeat_id").agg(pl.col("committed_unix_s").max(), trials=pl.len()).sort("committed_unix_s")
    )
    recent = recent.drop_nulls("committed_unix_s").tail(PACE_OVER)
    left_s = None
    if planned is not None and len(recent) > 1:
        span_s = recent["committed_unix_s"][-1] - recent["committed_unix_s"][0]
        left_s = span_s / sum(recent["trials"][1:]) * max(0, planned - done)
    return Progress(planned, done, times[-1] if len(times) else None, left_s)


def progress_curve(trials: pl.DataFrame, planned: int | None, simulated: bool) -> go.Figure:
    """Trials committed over wall-clock time, by outcome; dotted: how many the sweep file asks for."""
    title = "Trials committed"
    if trials.is_empty():
        return theme.nothing(title, "Nothing is committed yet.", simulated)
    rows = trials.drop_nulls("committed_unix_s").sort("committed_unix_s")
    counts = dict(trials["outcome"].value_counts().iter_rows())
    of = f" of {planned:,}" if planned is not None else ""
    said = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in OUTCOMES if outcome in counts)
    fig = theme.figure(title, 320, f"{len(trials):,}{of} trials committed: {said}.", simulated)
    for outcome, colour in OUTCOMES.items():
        part = rows.filter(pl.col("outcome") == outcome).group_by("committed_unix_s").len().sort("committed_unix_s")
        if part.is_empty():
            continue
        fig.add_scatter(
            x=[datetime.fromtimestamp(time, UTC) for time in part["committed_unix_s"]],
            y=part["len"].cum_sum().to_list(),
            mode="lines+markers" if len(part) < 60 else "lines",
            line={"color": colour, "width": 2.4, "shape": "hv"},
            marker={"size": 6},
            name=outcome,
            hovertemplate=f"%{{y:,}} {outcome} by %{{x|%H:%M:%S}} UTC<extra></extra>",
        )
    if planned is not None:
        fig.update_layout(shapes=[theme.rule(y=planned)])
    fig.update_xaxes(title_text="wall clock (UTC)")
    fig.update_yaxes(title_text="trials", rangemode="tozero")
    fig.update_layout(margin={"t": 84}, legend={"y": 1.0})
    return fig


def by_model_and_arm(trials: pl.DataFrame) -> pl.DataFrame:
    """(model, arm, repeats, ok, skipped, failed, last) of what is committed."""
    return (
        trials.group_by("model", "arm")
        .agg(
            pl.col("repeat").n_unique().alias("repeats"),
            *(pl.col("outcome").eq(outcome).sum().alias(outcome) for outcome in OUTCOMES),
            last=pl.from_epoch((pl.col("committed_unix_s").max() * 1000).cast(pl.Int64), "ms").dt.strftime(
                "%Y-%m-%d %H:%M:%S"
            ),
        )
        .sort("model", "arm")
    )
