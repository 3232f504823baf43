"""The law of a step's host time, from windows whose steps were made by a law that is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from dashboards.step_cost import (
    REFERENCE_MOPS,
    engine_steps,
    fit,
    fitted_to,
    held_table,
    law_table,
    pairs,
    unseen_words,
)
from orchestrator.engine_probe import SPEED_TURNS

TRUE = np.array([1.5e-3, 1.6e-5, 2e-4, 5e-4])  # a step, a sequence, a layer in pieces, a layer without a graph
LAYERS = {"Qwen/Qwen2.5-0.5B": 24, "Qwen/Qwen2.5-1.5B": 28}


def step_s(model: str, sequences: float, pieces: float, eager: float, speed: float) -> float:
    layers = LAYERS[model]
    return float(TRUE @ [1, sequences, layers * pieces, layers * eager]) * REFERENCE_MOPS / speed


def world(boots: int = 8, scatter: float = 0.02, **every: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One engine and a pair in cells of unlike graphs, every boot at other core speeds. `every` overrides what all
    trials and windows have."""
    rng = np.random.default_rng(5)
    trials, windows = [], []
    for boot in range(boots):
        for model, context, clients, pieces, eager in (
            ("Qwen/Qwen2.5-0.5B", 128, 256, 0.7, 0.0),
            ("Qwen/Qwen2.5-0.5B", 1024, 128, 0.1, 0.6),
            ("Qwen/Qwen2.5-1.5B", 128, 64, 0.4, 0.1),
            ("Qwen/Qwen2.5-1.5B", 256, 256, 0.2, 0.3),
            ("Qwen/Qwen2.5-1.5B", 512, 32, 0.0, 0.0),
        ):
            for arm, engines in (("single", 1), ("mps2", 2)):
                name = f"{boot}-{model}-{context}-{arm}"
                trials.append(
                    {
                        "trial_id": name, "attempt_id": "a", "outcome": "ok", "backend": "vllm", "kind": "mixed",
                        "model": model, "prompt_tokens": context, "concurrency": clients, "arm": arm,
                        "sharing": "mps" if engines > 1 else "single", "engines": engines, "engine_args": "{}",
                        "pinned": True, "boot_id": f"{boot}-{arm}",
                    } | {key: value for key, value in every.items() if key != "gpu_active_share"}
                )  # fmt: skip
                counted = {}
                for engine in range(engines):
                    sequences, speed = clients / engines, float(rng.uniform(20, 40))
                    took = step_s(model, sequences, pieces, eager, speed) * np.exp(rng.normal(0, scatter))
                    steps = round(4e6 / took) * 1000  # so many that rounding tells nothing
                    counted[f"e{engine}"] = {
                        "steps": steps, "sequences": sequences * steps, "piecewise": pieces * steps,
                        "eager": eager * steps, "speed_ns": steps * SPEED_TURNS * 1e3 / speed,
                    }  # fmt: skip
                windows.append(
                    {
                        "trial_id": name, "attempt_id": "a", "certified": True, "duration_s": 4e9, "boot_id": "",
                        "prompt_tokens": 0, "gpu_active_share": every.get("gpu_active_share", 0.5),
                        "bound_by": "engine_core", "certificate": json.dumps({"notes": {"engines": counted}}),
                    }
                )  # fmt: skip
    return pl.DataFrame(trials), pl.DataFrame(windows)


def test_the_terms_come_back_inside_their_intervals() -> None:
    rows = engine_steps(*world())
    own = fitted_to(rows)
    law = fit(own)
    assert law is not None and (law.windows, law.boots) == (40, 8)
    for term, true in zip(law.terms, TRUE, strict=True):
        assert term.low < true < term.high
        assert term.seconds == pytest.approx(true, rel=0.3)
    assert law.scatter == pytest.approx(0.02, rel=0.5) and law.before > 0.2


def test_a_law_without_scatter_is_found_and_holds_for_pairs_exactly() -> None:
    rows = engine_steps(*world(scatter=0.0))
    law, unseen = fit(fitted_to(rows)), pairs(rows)
    assert law is not None and law.scatter < 1e-6
    assert [term.seconds for term in law.terms] == pytest.approx(TRUE, rel=1e-4)
    assert unseen.height == 2 * 40 and set(unseen["arm"]) == {"mps2"}
    assert law.step_s(unseen) == pytest.approx(unseen["step_s"].to_numpy(), rel=1e-6)
    assert "In 80 windows" in unseen_words(law, unseen) and "1.00 times" in unseen_words(law, unseen)
    assert "| Qwen2.5-0.5B | 1024 | 128 | mps2 | 16 | 64 |" in held_table(law, unseen)
    assert "| each sequence in it | 16 | 16 to 16 |" in law_table(law)


def test_a_pair_that_is_slower_than_the_law_is_seen_to_be() -> None:
    rows = engine_steps(*world(scatter=0.0))
    law, unseen = fit(fitted_to(rows)), pairs(rows).with_columns(pl.col("step_s") * 1.25)
    assert law is not None
    assert "0.80 times" in unseen_words(law, unseen)


@pytest.mark.parametrize(
    ("every", "left"),
    [
        ({"gpu_active_share": 0.7}, 0),  # a step may have waited for the GPU
        ({"pinned": False}, 0),
        ({"engine_args": json.dumps({"async_scheduling": False})}, 0),
        ({"kind": "prefill"}, 0),
        ({"backend": "simulated"}, 0),
        ({"outcome": "failed"}, 0),
        ({}, 40),
    ],
)
def test_only_windows_in_which_the_host_sets_the_pace_are_fitted(every: dict[str, Any], left: int) -> None:
    assert fitted_to(engine_steps(*world(**every))).height == left


def test_windows_without_certificate_or_core_speed_are_left_out() -> None:
    trials, windows = world()
    assert engine_steps(trials, windows.with_columns(certified=False)).is_empty()
    silent = windows.with_columns(pl.col("certificate").str.replace_all('"speed_ns": [0-9.]+', '"speed_ns": 0'))
    assert engine_steps(trials, silent).is_empty()


def test_few_boots_or_cells_that_are_all_alike_give_no_law() -> None:
    rows = fitted_to(engine_steps(*world(boots=3)))
    assert fit(rows) is None
    alike = fitted_to(engine_steps(*world())).filter(pl.col("prompt_tokens") == 1024)
    assert alike["boot_id"].n_unique() == 8 and fit(alike) is None
