"""What is ranked, turned over and chosen, from planted ratios."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from dashboards.options import options_table
from dashboards.regions import regions, regions_table
from dashboards.tuning import choose, chosen, tuning_table
from orchestrator.records import TRIALS, WINDOWS

STAGE = "tune-baseline"
BIG, SMALL = "Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-0.5B"


def row(arm: str, baseline: str, ratio: float, model: str = SMALL, sweep: str = "tune-baseline", **more: Any) -> dict:
    cell = {"model": model, "kind": "mixed", "prompt_tokens": 128, "output_tokens": 128, "concurrency": 64}
    found = {"ratio": ratio, "ci_low": ratio / 1.25, "ci_high": ratio * 1.25, "verdict": "undecided", "boots": 3}
    shown = {"sweep": sweep, "arm": arm, "baseline": baseline, "metric": "throughput", "backend": "vllm"}
    return {**cell, **found, **shown, **more}


def frame(*rows: dict) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides={"ci_low": pl.Float64, "ci_high": pl.Float64})


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_options_are_ranked_within_cells_and_small_models_come_first() -> None:
    shown = lines(
        options_table(
            frame(
                row("mps2", "single", 0.9, BIG, "controls", verdict="loses"),
                row("single-unpinned", "single", 0.8, BIG, "controls"),
                row("mps2", "single", 1.2, sweep="smoke-gpu"),
                row("graphs-8192", "capture-1024", 1.5),
                row("mps2", "single", 9.9, sweep="scaling-landscape"),
                row("mps2", "single", 9.9, sweep="smoke-gpu", backend="simulated"),
                row("mps2", "single", 1.1, sweep="smoke-gpu", prompt_tokens=4096),
            ),
            ["tune-baseline", "smoke-gpu", "controls"],
        )
    )
    assert [(line[0], line[2], line[3]) for line in shown] == [
        ("Qwen2.5-0.5B", "graphs up to the largest step", "1.500"),
        ("Qwen2.5-0.5B", "a second engine under MPS", "1.200"),
        ("Qwen2.5-3B", "pinning", "1.250"),
        ("Qwen2.5-3B", "a second engine under MPS", "0.900"),
    ]


def test_an_option_that_was_taken_away_is_turned_over_with_its_interval_and_verdict() -> None:
    taken = row("synchronous", "capture-1024", 0.5, ci_low=0.4, ci_high=0.8, verdict="loses")
    once = row("untuned", "capture-1024", 0.25, ci_low=None, ci_high=None, boots=1)
    asynchronous, steps = reversed(lines(options_table(frame(taken, once), ["tune-baseline"])))
    assert asynchronous[2:6] == ["async scheduling", "2.000", "1.250 to 2.500", "wins"]
    assert steps[3:7] == ["4.000", "-", "undecided", "1"]


def test_the_setting_with_the_largest_mean_is_chosen_of_cells_with_every_arm() -> None:
    found = choose(
        frame(
            row("graphs-8192", "capture-1024", 0.9),
            row("steps-2048", "capture-1024", 1.1),
            row("graphs-8192", "capture-1024", 1.6, BIG),
            row("steps-2048", "capture-1024", 1.0, BIG),
            row("steps-2048", "capture-1024", 9.0, BIG, prompt_tokens=512),
        ),
        STAGE,
    )
    assert found is not None and (found.best, found.cells) == ("graphs-8192", 2)
    assert round(found.means["graphs-8192"], 9) == 1.2 and "`graphs-8192` 1.20, `steps-2048` 1.05" in found.words


def test_nothing_is_better_than_the_baseline() -> None:
    found = choose(frame(row("graphs-8192", "capture-1024", 0.9), row("steps-2048", "capture-1024", 0.8)), STAGE)
    assert found is not None and found.best == "capture-1024"


def test_without_a_whole_cell_nothing_is_chosen() -> None:
    part = frame(row("graphs-8192", "capture-1024", 1.5), row("steps-2048", "capture-1024", 1.5, BIG))
    assert choose(part, STAGE) is None and choose(part.clear(), STAGE) is None and chosen(part) is None


def test_a_later_stage_decides_once_it_has_a_whole_cell() -> None:
    first = frame(row("graphs-8192", "capture-1024", 1.5))
    later = [row(arm, "graphs-8192", ratio, sweep="tune-graphs") for arm, ratio in (("dense", 1.1), ("full", 0.9))]
    assert (found := chosen(first)) is not None and (found.stage, found.best) == ("tune-baseline", "graphs-8192")
    assert (found := chosen(pl.concat([first, frame(*later)]))) is not None
    assert (found.stage, found.best) == ("tune-graphs", "dense") and found.words.startswith("Over 1 cell of `tune-gr")
    apart = frame(later[0], {**later[1], "model": BIG})
    assert (found := chosen(pl.concat([first, apart]))) is not None and found.stage == "tune-baseline"


def test_settings_of_an_empty_store_have_no_rows() -> None:
    nothing = [pl.DataFrame(schema=dict(table)) for table in (TRIALS, WINDOWS)]
    empty = frame(row("graphs-8192", "capture-1024", 1.5)).clear()
    assert lines(tuning_table(empty, *nothing, STAGE)) == []


def test_options_are_grouped_by_what_bounds_the_engine_that_lacks_them() -> None:
    cells = {128: "engine_core", 256: "engine_core", 1024: "power"}
    trials = [
        {"trial_id": f"{arm}{context}", "attempt_id": "a", "sweep": STAGE, "model": SMALL, "kind": "mixed",
         "prompt_tokens": context, "output_tokens": 128, "concurrency": 64, "arm": arm, "outcome": "ok",
         "backend": "vllm"}
        for context in cells for arm in ("single", "mps2", "capture-1024", "synchronous")
    ]  # fmt: skip
    slow = {"synchronous": "gpu_compute", "mps2": "gpu_memory"}  # of these only `synchronous` lacks an option
    windows = [
        {"trial_id": trial["trial_id"], "attempt_id": "a", "certified": certified,
         "bound_by": slow.get(trial["arm"], cells[trial["prompt_tokens"]]) if certified else "kv"}
        for trial in trials for certified in (True, False)
    ]  # fmt: skip
    found = regions(
        frame(
            row("mps2", "single", 1.6, boots=1),
            row("mps2", "single", 0.9, prompt_tokens=256),
            row("mps2", "single", 0.8, prompt_tokens=1024),
            row("synchronous", "capture-1024", 0.5, prompt_tokens=1024),
            row("mps2", "single", 9.9, sweep="another"),
        ),
        pl.DataFrame(trials),
        pl.DataFrame(windows),
        [STAGE],
    )
    under_mps = {"option": "a second engine under MPS"}
    assert found.drop("mean").to_dicts() == [
        {"region": "engine_core", **under_mps, "low": 0.9, "high": 1.6, "cells": 2, "fewest": 1, "most": 3},
        {
            "region": "gpu_compute",
            "option": "async scheduling",
            "low": 2.0,
            "high": 2.0,
            "cells": 1,
            "fewest": 3,
            "most": 3,
        },
        {"region": "power", **under_mps, "low": 0.8, "high": 0.8, "cells": 1, "fewest": 3, "most": 3},
    ]
    assert found["mean"].to_list() == pytest.approx([1.2, 2.0, 0.8])
    first = lines(regions_table(found))[0]
    assert first == ["EngineCore bounds it", "a second engine under MPS", "1.20", "0.90 to 1.60", "2", "1 to 3"]
