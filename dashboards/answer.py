"""The answer in words, computed from the verdicts: where sharing the GPU wins, by how much, and through what."""

from __future__ import annotations

import polars as pl

from dashboards import cells, theme
from orchestrator.trial import REPLAYED, replayed

QUESTION = "When do several engines on one GPU beat one?"
STEPS = {
    "host_parallelism": "host parallelism",
    "kernel_overlap": "kernel overlap",
    "mps_cost": "MPS's own cost",
}
# Replayed steps have no host in the path: there the same pair of arms shows what is paid for smaller batches.
SPLIT = "splitting the batch"


def step_words(part: str | None, kind: str) -> str:
    """What a pair of arms isolates, in a load of this kind; empty for a pair that isolates nothing."""
    return SPLIT if part == "host_parallelism" and replayed(kind) else STEPS.get(part or "", "")


def headline(verdicts: pl.DataFrame) -> list[str]:
    """One sentence a candidate arm of one sweep, backend and GPU: in how many cells it wins, loses, ties.

    The candidates are the arms of the `gain` step (several engines under MPS against one engine); where there is none,
    every arm that is compared with its repeat's baseline.
    """
    rows = candidates(verdicts)
    sentences = []
    for (arm, baseline), pair in rows.group_by("arm", "baseline", maintain_order=True):
        counts = dict(pair["verdict"].value_counts().iter_rows())
        parts = [
            f"wins in {counts.get('wins', 0)}",
            f"loses in {counts.get('loses', 0)}",
            f"ties in {counts.get('tie', 0)}",
        ]
        open_ = counts.get("undecided", 0)
        tail = f"; {open_} {'is' if open_ == 1 else 'are'} undecided" if open_ else ""
        sentences.append(f"Of {_cells(len(pair))}, {arm} {', '.join(parts)} against {baseline}{tail}.")
    return sentences


def detail(verdicts: pl.DataFrame) -> list[str]:
    """The extremes among decided cells, what each step contributes, and what is left after allowing for many cells."""
    said = []
    for (arm, baseline), pair in candidates(verdicts).group_by("arm", "baseline", maintain_order=True):
        ends = []
        for verdict, words, descending in (("wins", "Largest gain", True), ("loses", "largest loss", False)):
            decided = pair.filter(verdict=verdict).sort("ratio", descending=descending)
            if len(decided):
                row = decided.row(0, named=True)
                bounds = theme.interval(row["ci_low"], row["ci_high"])
                ends.append(f"{words} of {arm} {theme.percent(row['ratio'])} [{bounds}] at {cells.cell_label(row)}")
        if ends:
            said.append("; ".join(ends) + ".")
        kept = len(pair.filter(pl.col("map_verdict").is_in(["wins", "loses", "tie"])))
        decided_count = len(pair.filter(pl.col("verdict") != "undecided"))
        if decided_count:
            said.append(
                f"Of the {decided_count} decided cells of {arm} against {baseline}, {kept} stay decided when the whole"
                " map is allowed for (false discovery rate 5 %)."
            )
    steps = (
        verdicts.filter(
            pl.col("metric") == "throughput", pl.col("part").is_in(list(STEPS)), pl.col("ratio").is_finite()
        )
        .group_by("part", "arm", "baseline", replayed=pl.col("kind").str.ends_with(REPLAYED))
        .agg(pl.col("ratio").median(), pl.col("kind").first())
        .sort("replayed", "part", "arm", "baseline")
    )
    parts = [
        f"{step_words(part, kind)} ({arm} / {baseline}) {theme.percent(ratio)}"
        for part, arm, baseline, _, ratio, kind in steps.iter_rows()
    ]
    if parts:
        said.append(f"By step, median over cells: {', '.join(parts)}.")
    return said


def candidates(verdicts: pl.DataFrame) -> pl.DataFrame:
    """The throughput rows that answer the question, see `headline`."""
    rows = verdicts.filter(pl.col("metric") == "throughput")
    gains = rows.filter(pl.col("part") == "gain")
    if len(gains):
        return gains
    return rows.filter(pl.col("part").is_null() | (pl.col("part") != "kernel_overlap"))


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"
