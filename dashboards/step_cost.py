"""What a step costs EngineCore: a law fitted to single engines, and held against pairs that it has not seen.

    seconds of a step = (a + b sequences + layers (c P + d E)) * REFERENCE_MOPS / speed

P and E are the shares of steps that run as CUDA graphs of pieces, attention launched between them, and those without a
graph; speed is that of EngineCore's core, which its probe times at every step. Under asynchronous scheduling the host's
time is the step's wherever the GPU waits for it, so the law is fitted where the GPU was idle for 30 % of the window.

    rows = engine_steps(trials, windows)
    law = fit(fitted_to(rows))            # None where there is too little
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from dashboards import cells
from dashboards.findings_tables import table
from orchestrator.engine_probe import StepCounters
from orchestrator.student import quantile
from workloads.catalogue import load_model

Floats = npt.NDArray[np.float64]

# The faster of the two levels that cores of the H200 hosts were seen at.
REFERENCE_MOPS = 36.0
GPU_WAITS_BELOW = 0.7
# Boots left out one by one give the intervals: with fewer there is nothing to leave out.
FEWEST_BOOTS = 4
# A share of steps that moves no mean.
FEW_STEPS = 0.05
FEWEST_STEPS = 20
TERMS = {
    "a": "a step of any kind: schedule, inputs, messages",
    "b": "each sequence in it",
    "c": "each layer, where attention is launched between pieces of a graph",
    "d": "each layer, where every kernel is launched by itself",
}
CELL = ["model", "prompt_tokens", "concurrency", "arm", "sharing"]
KEPT = [*CELL, "engines", "engine_args", "pinned", "boot_id"]


@dataclass(frozen=True, slots=True)
class Term:
    """Seconds at REFERENCE_MOPS with the 95 % interval of a jackknife over boots."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Law:
    """terms: in the order of TERMS. scatter: of the windows' steps around the law, relative; before: around their mean
    at equal speed, which is what the terms explain."""

    terms: tuple[Term, ...]
    scatter: float
    before: float
    windows: int
    boots: int

    def step_s(self, rows: pl.DataFrame) -> Floats:
        """Seconds of a step by the law, shape (rows,)."""
        parts: Floats = self.parts_s(rows).sum(axis=1)
        return parts

    def parts_s(self, rows: pl.DataFrame) -> Floats:
        """Seconds of a step by term, shape (rows, terms)."""
        seconds = np.array([term.seconds for term in self.terms])
        slowness = REFERENCE_MOPS / rows["speed"].to_numpy()
        parts: Floats = _design(rows) * seconds * slowness[:, None]
        return parts


def engine_steps(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """One row an engine and certified window of `mixed` cells on a GPU: CELL, `boot_id`, `step_s`, `sequences` (mean of
    a step), `pieces` and `eager` (shares of steps), `layers`, `speed` (Mops), the window's `gpu_active` and `bound_by`.

    trials, windows: tables of `records`. Engines that did not tell their core's speed are left out.
    """
    own = trials.filter(outcome="ok", backend="vllm", kind="mixed").select("trial_id", "attempt_id", *KEPT)
    joined = windows.filter("certified").drop("prompt_tokens", "boot_id").join(own, on=["trial_id", "attempt_id"])
    rows = [row for window in joined.iter_rows(named=True) for row in _steps_of(window)]
    schema = {name: trials.schema[name] for name in [*CELL, "engines", "boot_id"]} | {
        **dict.fromkeys(("step_s", "sequences", "pieces", "eager", "speed", "gpu_active"), pl.Float64),
        "layers": pl.Int64, "asynchronous": pl.Boolean, "pinned": pl.Boolean, "bound_by": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _steps_of(window: dict[str, Any]) -> Iterator[dict[str, Any]]:
    counted = json.loads(window["certificate"]).get("notes", {}).get("engines", {})
    arguments = json.loads(window["engine_args"] or "{}")
    for steps in counted.values():
        if steps.get("steps", 0) < FEWEST_STEPS or not steps.get("speed_ns"):
            continue
        yield {name: window[name] for name in (*CELL, "engines", "boot_id", "pinned", "bound_by")} | {
            "step_s": window["duration_s"] / steps["steps"],
            "sequences": steps["sequences"] / steps["steps"],
            "pieces": steps["piecewise"] / steps["steps"],
            "eager": steps["eager"] / steps["steps"],
            "speed": StepCounters.speed_mops(steps),
            "gpu_active": window["gpu_active_share"],
            "layers": load_model(window["model"]).layers,
            "asynchronous": arguments.get("async_scheduling", True),
        }


def fitted_to(rows: pl.DataFrame) -> pl.DataFrame:
    """The windows that say what the host takes: one pinned engine with asynchronous scheduling, whose GPU waits."""
    return rows.filter("pinned", "asynchronous", pl.col("engines") == 1, pl.col("gpu_active") < GPU_WAITS_BELOW)


def pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Windows that the law has not seen and should hold in: several engines, each bound by its EngineCore."""
    return rows.filter("pinned", "asynchronous", pl.col("engines") > 1, bound_by="engine_core")


def whole() -> pl.Expr:
    """Whether all but a few steps were one CUDA graph each, so that the host launched next to nothing of a layer."""
    return pl.col("pieces") + pl.col("eager") < FEW_STEPS


def fit(rows: pl.DataFrame) -> Law | None:
    """Weighted least squares of relative errors; None for too few boots, or where the terms cannot be told apart."""
    boots = rows["boot_id"].unique().sort()
    if len(boots) < FEWEST_BOOTS:
        return None
    design, taken = _design(rows), rows["step_s"].to_numpy() * rows["speed"].to_numpy() / REFERENCE_MOPS
    found = _solve(design, taken)
    which = rows["boot_id"].to_numpy()
    parts = [_solve(design[which != boot], taken[which != boot]) for boot in boots]
    if found is None or any(part is None for part in parts):
        return None
    without = np.array(parts)
    # B. Efron and C. Stein, "The jackknife estimate of variance", Annals of Statistics 9 (1981) 586-596.
    error = np.sqrt((len(boots) - 1) / len(boots) * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    reach = quantile(0.975, len(boots) - 1) * error
    terms = tuple(Term(*map(float, numbers)) for numbers in zip(found, found - reach, found + reach, strict=True))
    relative = design @ found / taken - 1
    return Law(terms, float(relative.std()), float(np.log(taken).std()), rows.height, len(boots))


def _design(rows: pl.DataFrame) -> Floats:
    layers = rows["layers"].to_numpy()
    columns = (np.ones(rows.height), rows["sequences"].to_numpy(), layers * rows["pieces"], layers * rows["eager"])
    return np.column_stack(columns)


def _solve(design: Floats, taken: Floats) -> Floats | None:
    """Coefficients with the least squared relative error, shape (terms,)."""
    found, _, rank, _ = np.linalg.lstsq(design / taken[:, None], np.ones(len(taken)))
    return np.asarray(found, dtype=np.float64) if rank == design.shape[1] else None


def law_table(law: Law) -> str:
    head = ("what", f"microseconds at {REFERENCE_MOPS:.0f} Mops", "95 % interval")
    rows = [
        (words, f"{term.seconds * 1e6:,.0f}", f"{term.low * 1e6:,.0f} to {term.high * 1e6:,.0f}")
        for words, term in zip(TERMS.values(), law.terms, strict=True)
    ]
    said = (
        f"Fitted to {law.windows} windows of {law.boots} boots; steps at equal core speed scatter around it by "
        f"{law.scatter:.0%}, around one number for all by {law.before:.0%}."
    )
    return f"{table(head, rows)}\n\n{said}"


def unseen_words(law: Law, rows: pl.DataFrame) -> str:
    """How far the law is from windows that it was not fitted to."""
    ratio = np.log(law.step_s(rows) / rows["step_s"].to_numpy())
    return (
        f"In {rows.height} windows of engines that share the GPU, which had no part in the fit, the law gives "
        f"{np.exp(ratio.mean()):.2f} times the step that was measured, with a scatter of {ratio.std():.0%}."
    )


def foretold_words(rows: pl.DataFrame) -> str:
    """What the law of the windows whose steps were launched in pieces says of those with one graph for every step.

    rows: of `fitted_to`. Empty where either kind is missing.
    """
    law, unseen = fit(rows.filter(~whole())), rows.filter(whole())
    if law is None or unseen.is_empty():
        return ""
    ratio = np.log(law.step_s(unseen) / unseen["step_s"].to_numpy())
    return (
        f"Fitted without the {unseen.height} windows in which every step was one graph, it gives "
        f"{np.exp(ratio.mean()):.2f} times the steps of those, with a scatter of {ratio.std():.0%}."
    )


def held_table(law: Law, rows: pl.DataFrame) -> str:
    """One row a cell and arm of `rows`: where a step's time goes by the law, and how far the law is from the clock."""
    parts = law.parts_s(rows)
    names = list(TERMS)
    shares = pl.DataFrame(parts / parts.sum(axis=1, keepdims=True), schema=names)
    found = (
        pl.concat([rows, shares], how="horizontal")
        .with_columns(ratio=parts.sum(axis=1) / rows["step_s"].to_numpy())
        .group_by(CELL)
        .agg(
            pl.col("step_s", "speed", "sequences", "ratio", *names).mean(),
            scatter=pl.col("ratio").log().std(),
            n=pl.len(),
        )
        .sort(cells.by_size(rows["model"]), *CELL[1:])
    )
    head = ("model", "context", "clients", "arm", "engine windows", "sequences a step", "core, Mops", "ms a step")
    more = ("step", "sequences", "pieces", "no graph", "law / measured", "scatter")
    body = [
        (
            *(row["model"].split("/")[-1], str(row["prompt_tokens"]), str(row["concurrency"]), row["arm"]),
            *(str(row["n"]), f"{row['sequences']:.0f}", f"{row['speed']:.0f}", f"{row['step_s'] * 1e3:.2f}"),
            *(f"{row[name]:.0%}" for name in names),
            *(f"{row['ratio']:.2f}", "-" if row["scatter"] is None else f"{row['scatter']:.0%}"),
        )
        for row in found.iter_rows(named=True)
    ]
    return table((*head, *more), body)
