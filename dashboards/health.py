"""How sound the measuring was: windows certified or not, trials ok or lost, and why."""

from __future__ import annotations

import html

import plotly.graph_objects as go
import polars as pl

from dashboards import cells, theme

OUTCOMES = {"ok": "#2c8f45", "skipped": "#9aa0a8", "failed": "#d1495b"}


def certificates(measured: pl.DataFrame) -> go.Figure:
    """Windows by arm, certified or not, for one backend."""
    if measured.is_empty():
        return theme.nothing("Certificates", "No window was measured.")
    counts = measured.group_by("arm", pl.col("certified").fill_null(False)).len()
    arms = [arm for arm in cells.arms(measured)]
    series = [
        (words, colour, [sum(counts.filter(arm=arm, certified=passed)["len"]) for arm in arms])
        for words, colour, passed in (("certified", OUTCOMES["ok"], True), ("not certified", OUTCOMES["failed"], False))
    ]
    return _bars("Windows", arms, series, cells.one_backend(measured))


def outcomes(trials: pl.DataFrame) -> go.Figure:
    """Trials by arm and outcome, for one backend."""
    if trials.is_empty():
        return theme.nothing("Outcomes", "No trial was run.")
    counts = trials.group_by("arm", "outcome").len()
    arms = list(cells.arms(trials))
    series = [
        (outcome, colour, [sum(counts.filter(arm=arm, outcome=outcome)["len"]) for arm in arms])
        for outcome, colour in OUTCOMES.items()
    ]
    return _bars("Trials", arms, series, cells.one_backend(trials))


def failure_reasons(measured: pl.DataFrame) -> pl.DataFrame:
    """(check, windows, arms, example) of failed certificates, the most frequent first."""
    return (
        measured.filter(~pl.col("certified").fill_null(False))
        .select("arm", pl.col("certificate_failures").fill_null([]))
        .explode("certificate_failures", empty_as_null=True, keep_nulls=True)
        .with_columns(
            check=pl.col("certificate_failures").str.split(": ").list.first().fill_null("no certificate"),
            example=pl.col("certificate_failures"),
        )
        .group_by("check")
        .agg(windows=pl.len(), arms=pl.col("arm").unique().sort().str.join(", "), example=pl.col("example").min())
        .sort("windows", "check", descending=[True, False])
    )


def lost_trials(trials: pl.DataFrame) -> pl.DataFrame:
    """(outcome, model, arm, contexts, trials, reason, log_tail) of trials that were skipped or failed."""
    return (
        trials.filter(pl.col("outcome") != "ok")
        .group_by("outcome", "model", "arm", "reason")
        .agg(
            contexts=pl.col("prompt_tokens").unique().sort().cast(pl.String).str.join(", "),
            trials=pl.len(),
            log_tail=pl.col("log_tail").min(),
        )
        .sort("outcome", "model", "arm", "reason", nulls_last=True)
        .select("outcome", "model", "arm", "contexts", "trials", "reason", "log_tail")
    )


def _bars(what: str, arms: list[str], series: list[tuple[str, str, list[int]]], simulated: bool) -> go.Figure:
    said = "; ".join(f"{sum(counts)} {words}" for words, _, counts in series)
    fig = theme.figure(f"{what} by arm", 130 + 34 * len(arms), f"{what} by arm: {said}.", simulated)
    longest = max(sum(counts) for counts in zip(*(counts for _, _, counts in series), strict=True))
    for words, colour, counts in series:
        if not any(counts):
            continue
        fig.add_bar(
            orientation="h",
            y=[html.escape(arm) for arm in arms],
            x=counts,
            name=words,
            marker={"color": colour, "line": {"width": 0}},
            text=[f"{count} {words}" if count > 0.2 * longest else "" for count in counts],
            textposition="inside",
            insidetextanchor="start",
            textfont={"color": "#ffffff", "size": 12},
            hovertemplate=f"%{{y}}: %{{x}} {words}<extra></extra>",
        )
    fig.update_layout(barmode="stack", showlegend=False, margin={"t": 64, "b": 30})
    fig.update_yaxes(autorange="reversed", ticks="", type="category")
    fig.update_xaxes(showgrid=False, zeroline=False, showticklabels=False, ticks="")
    return fig
