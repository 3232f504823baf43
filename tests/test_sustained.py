"""A minute beside seconds, from planted windows."""

from __future__ import annotations

from typing import Any

import polars as pl

from dashboards.sustained import sustained_table
from orchestrator.records import SAMPLES, TRIALS, WINDOWS

CELL = {"model": "Qwen/Qwen2.5-3B", "kind": "mixed", "prompt_tokens": 512, "output_tokens": 128, "concurrency": 64}


def filled(rows: list[dict[str, Any]], schema: Any) -> pl.DataFrame:
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in schema.items()
    )


def trial(name: str, sweep: str, arm: str = "single", **more: Any) -> dict[str, Any]:
    shown = {"trial_id": name, "attempt_id": "a", "sweep": sweep, "arm": arm, "outcome": "ok", "backend": "vllm"}
    return {**CELL, **shown, **more}


def window(name: str, tokens: int, seconds: float, certified: bool = True, **more: Any) -> dict[str, Any]:
    counts = {"output_tokens": tokens, "prompt_tokens": 4 * tokens, "duration_s": seconds, "window_index": 0}
    means = {"power_w": 600.0, "sm_clock_mhz": 1900.0, "power_capped_share": 0.25}
    return {"trial_id": name, "attempt_id": "a", "certified": certified, **counts, **means, **more}


def bins(name: str, tokens: list[float], engine: int = 0) -> list[dict[str, Any]]:
    place = {"trial_id": name, "attempt_id": "a", "window_index": 0, "source": f"engine{engine}"}
    return [place | {"metric": "output_tokens", "time_ns": at, "value": value} for at, value in enumerate(tokens)]


def row_of(text: str | None) -> list[str]:
    assert text is not None
    (line,) = text.splitlines()[2:]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_long_window_stands_beside_the_mean_of_the_short_ones() -> None:
    trials = [trial("long", "sustained"), trial("one", "scaling-landscape"), trial("two", "scaling-landscape")]
    windows = [
        window("long", 6000, 60.0, power_w=690.0, sm_clock_mhz=1500.0, power_capped_share=1.0),
        window("one", 440, 4.0), window("two", 520, 4.0), window("two", 9999, 4.0, certified=False),
    ]  # fmt: skip
    samples = bins("long", [50.0, 50.0, 40.0, 40.0, 30.0, 30.0]) + bins("long", [50.0, 50.0, 0.0, 0.0, 30.0, 30.0], 1)
    shown = row_of(sustained_table(filled(trials, TRIALS), filled(windows, WINDOWS), filled(samples, SAMPLES)))
    assert shown[2:] == ["single", "100", "60", "0.833", "0.600", "600 and 690", "1900 and 1500", "25 and 100 %"]


def test_without_short_windows_there_is_nothing_to_stand_beside() -> None:
    trials = [trial("long", "sustained"), trial("other", "scaling-landscape", concurrency=128)]
    windows = [window("long", 6000, 60.0), window("other", 400, 4.0)]
    shown = row_of(sustained_table(filled(trials, TRIALS), filled(windows, WINDOWS), filled(bins("x", [1.0]), SAMPLES)))
    assert shown[3:7] == ["100", "60", "-", "-"] and shown[7] == "- and 600"


def test_predictions_and_failures_are_not_measured() -> None:
    trials = [trial("a", "sustained", backend="simulated"), trial("b", "sustained", outcome="failed")]
    windows = [window("a", 6000, 60.0), window("b", 6000, 60.0)]
    assert sustained_table(filled(trials, TRIALS), filled(windows, WINDOWS), filled(bins("a", [1.0]), SAMPLES)) is None
