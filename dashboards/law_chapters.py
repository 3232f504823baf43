"""The parts of the findings page that explain: laws fitted to single engines, and how they do where they were not."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from dashboards.findings_prose import COST_NOTE, HELD_NOTE, PIPELINE_NOTE, POWER_LAW_NOTE
from dashboards.power_law import power_law, power_law_table, power_windows
from dashboards.step_cost import (
    Law,
    engine_steps,
    fit,
    fitted_to,
    foretold_words,
    held_table,
    law_table,
    pairs,
    unseen_words,
)
from dashboards.step_pipeline import from_parts, parts_in_words, parts_table
from orchestrator.store import ResultStore


def step_chapters(landscape: ResultStore, stores: Sequence[ResultStore]) -> list[str]:
    """What a step costs EngineCore, by the windows of all stores, and the speed of one engine in one's landscape.

    Empty where there are too few windows for the law.
    """
    steps = pl.concat([engine_steps(store.read("trials"), store.read("windows")) for store in stores])
    law, unseen = fit(own := fitted_to(steps)), pairs(steps)
    if law is None or unseen.is_empty():
        return []
    title = "\n## What a step costs EngineCore\n"
    return [title, COST_NOTE, law_table(law), "", foretold_words(own), HELD_NOTE, held_table(law, own), "",
            unseen_words(law, unseen), "", held_table(law, unseen), *_pipeline(landscape, law)]  # fmt: skip


def _pipeline(store: ResultStore, law: Law) -> list[str]:
    rows = from_parts(store.read("trials"), store.read("windows"), law)
    if rows.is_empty():
        return []
    title = "\n## One engine's speed from its host and its GPU\n"
    return [title, PIPELINE_NOTE, parts_in_words(rows), "", parts_table(rows)]


def power_law_part(stores: Sequence[ResultStore]) -> list[str]:
    """What the power of a GPU goes into, by the windows of all stores; empty where they give no law."""
    seen = pl.concat([power_windows(store.read("trials"), store.read("windows")) for store in stores])
    law = power_law(seen)
    return [] if law is None else [POWER_LAW_NOTE, power_law_table(law, seen)]
