"""What settings of the single engine give, and which the landscapes take: by `sweeps/tune-*.yaml`, stage after stage.

A later stage starts from what the one before it chose. The rule of each: the arm with the largest geometric mean, over
the cells in which every arm was measured, of its ratio of throughput to the baseline, if it is ahead of that by more
than the margin of a tie, and otherwise the baseline. It chooses a setting and claims nothing of another one; the
intervals are in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, fsum, log
from typing import Any

import polars as pl

from dashboards import cells
from dashboards.claim_cells import KEY
from dashboards.findings_tables import cell_words, interval_words, table

STAGES = ("tune-baseline", "tune-graphs")
# What two settings must differ by to matter to anyone: the sweeps' default `tie_margin`.
MARGIN = 0.02
HEAD = (
    *("model", "cell, clients", "arm", "tokens/s", "over {baseline}", "95 % interval", "boots"),
    *("steps without a graph", "padding", "core speed, Mops"),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What one stage chose. means: by arm its geometric mean over `cells` cells, the baseline's own being 1."""

    stage: str
    baseline: str
    means: Mapping[str, float]
    cells: int

    @property
    def best(self) -> str:
        first = max(self.means, key=lambda arm: (self.means[arm], arm))
        return first if self.means[first] > 1 + MARGIN else self.baseline

    @property
    def words(self) -> str:
        told = ", ".join(f"`{arm}` {mean:.2f}" for arm, mean in sorted(self.means.items(), key=lambda item: -item[1]))
        cells_told = f"{self.cells} cell{'s' * (self.cells > 1)}"
        return f"Over {cells_told} of `{self.stage}` with every arm, geometric means: {told}. It chooses `{self.best}`."


def chosen(verdicts: pl.DataFrame) -> Choice | None:
    """The choice of the last stage that has made one: what the landscapes take."""
    return next((choice for stage in reversed(STAGES) if (choice := choose(verdicts, stage))), None)


def choose(verdicts: pl.DataFrame, stage: str) -> Choice | None:
    """verdicts: throughput rows of `verdicts.judge`. None where no cell of the stage has every arm."""
    own = verdicts.filter(sweep=stage, metric="throughput", backend="vllm").drop_nulls("ratio")
    if own.is_empty():
        return None
    (baseline,) = own["baseline"].unique()
    arms = set(own["arm"])
    whole = [rows for _, rows in own.group_by(KEY, maintain_order=True) if set(rows["arm"]) == arms]
    if not whole:
        return None
    logs = {arm: fsum(log(rows.filter(arm=arm)["ratio"].item()) for rows in whole) / len(whole) for arm in arms}
    return Choice(stage, baseline, {baseline: 1.0, **{arm: exp(mean) for arm, mean in logs.items()}}, len(whole))


def tuning_table(verdicts: pl.DataFrame, trials: pl.DataFrame, windows: pl.DataFrame, stage: str) -> str:
    """One row a cell and arm, the baseline first; means over certified windows.

    verdicts: throughput rows of `verdicts.judge`; trials, windows: tables of `records`.
    """
    own = verdicts.filter(sweep=stage, metric="throughput", backend="vllm")
    means = (
        cells.measured(trials.filter(sweep=stage, outcome="ok", backend="vllm"), windows)
        .filter("certified")
        .group_by(*KEY, "arm", "baseline")
        .agg(pl.col("rate", "steps_eager_share", "steps_padding_share", "engine_core_speed_mops").mean())
        .join(own.select(*KEY, "arm", "ratio", "ci_low", "ci_high", "boots"), on=[*KEY, "arm"], how="left")
    )
    ordered = means.sort(cells.by_size(means["model"]), *KEY[1:], pl.col("arm") != pl.col("baseline"), "arm")
    baseline = means["baseline"].first() or "the baseline"
    head = [title.format(baseline=baseline) for title in HEAD]
    return table(head, [_row(row) for row in ordered.iter_rows(named=True)])


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    known = row["ratio"] is not None
    return (
        *cell_words(row),
        row["arm"],
        f"{row['rate']:,.0f}",
        f"{row['ratio']:.3f}" if known else "1" if row["arm"] == row["baseline"] else "-",
        interval_words(row["ci_low"], row["ci_high"]),
        str(row["boots"]) if known else "-",
        f"{100 * row['steps_eager_share']:.0f} %",
        "-" if row["steps_padding_share"] is None else f"{100 * row['steps_padding_share']:.0f} %",
        f"{row['engine_core_speed_mops']:.0f}",
    )
