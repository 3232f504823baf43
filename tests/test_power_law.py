"""The power law from replayed steps whose power was made by a law that is known, and the simulator's constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dashboards.power_law import CELL, PowerLaw, power_law, power_law_table, replayed_power
from dashboards.step_cost import engine_steps, fit, fitted_to, pairs
from orchestrator.gpus import KINDS
from orchestrator.simulated.constants import CONSTANTS, value
from orchestrator.store import ResultStore

REFERENCE = Path(__file__).parent.parent / "reference"
TRUE = (70.0, 650.0, 600.0)


def steps(count: int = 12, scatter: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    flops, moved = rng.uniform(0.0, 0.7, count), rng.uniform(0.1, 0.7, count)
    idle = KINDS["H200"].idle_power_w
    drawn = (idle + TRUE[0] + TRUE[1] * flops + TRUE[2] * moved) * np.exp(rng.normal(0, scatter, count))
    cell: dict[str, Any] = dict.fromkeys(CELL, "x") | {"gpu_kind": "H200"}
    return pl.DataFrame(
        [
            cell | {"power_w": p, "flops": f, "bytes": b, "sm_clock_mhz": 1500.0 + index}
            for index, (p, f, b) in enumerate(zip(drawn.tolist(), flops.tolist(), moved.tolist(), strict=True))
        ]
    )


def test_the_watts_come_back() -> None:
    law = power_law(steps())
    assert law is not None and law.watts == pytest.approx(TRUE, rel=1e-6) and law.largest < 1e-6
    assert (law.steps, law.lowest_mhz, law.highest_mhz) == (12, 1500.0, 1511.0)
    noisy = power_law(steps(200, 0.02))
    assert noisy is not None and noisy.watts == pytest.approx(TRUE, rel=0.1)
    assert noisy.scatter == pytest.approx(0.02, rel=0.2) and noisy.largest > noisy.scatter
    assert "| arithmetic, at the peak FLOP rate | 650 |" in power_law_table(law)


def test_few_steps_steps_all_alike_and_two_kinds_of_gpu_give_no_law() -> None:
    assert power_law(steps(7)) is None
    assert power_law(steps().with_columns(flops=0.5, bytes=0.5)) is None
    two = steps().with_columns(gpu_kind=pl.Series(["H100", "H200"] * 6))
    assert power_law(two) is None


def recorded() -> tuple[PowerLaw, pl.DataFrame]:
    store = ResultStore.open(str(REFERENCE / "h200"), create=False)
    found = replayed_power(store.read("trials"), store.read("windows"), store.read("samples"))
    law = power_law(found)
    assert law is not None
    return law, found


def test_replayed_steps_of_the_record_have_sound_rates() -> None:
    law, found = recorded()
    assert found["flops"].is_between(0.0, 0.85).all() and found["bytes"].is_between(0.0, 0.95).all()
    decode = found.filter(pl.col("kind") == "decode-replay")
    prefill = found.filter(pl.col("kind") == "prefill-replay")
    assert decode["flops"].max() < prefill["flops"].min()  # type: ignore[operator]
    assert law.largest < 0.08


@pytest.mark.parametrize("name", ["active_power", "matmul_power", "memory_power"])
def test_the_simulated_gpu_draws_the_power_that_single_engines_drew(name: str) -> None:
    law, _ = recorded()
    assert value(name) == pytest.approx(law.constants[name], rel=0.05)


@pytest.fixture(scope="module")
def steps_of_the_record() -> pl.DataFrame:
    stores = [ResultStore.open(str(REFERENCE / name), create=False) for name in ("h200", "h200-pair", "h200-untuned")]
    return pl.concat([engine_steps(store.read("trials"), store.read("windows")) for store in stores])


def test_the_readme_s_law_of_a_step_stands_in_the_record(steps_of_the_record: pl.DataFrame) -> None:
    law, unseen = fit(fitted_to(steps_of_the_record)), pairs(steps_of_the_record)
    assert law is not None
    text = " ".join((REFERENCE.parent / "README.md").read_text().split())
    step, sequence, pieces, eager = (term.seconds for term in law.terms)
    assert f"{step * 1e3:.1f} ms a step, {sequence * 1e6:.0f} µs a sequence" in text
    assert f"{pieces * 1e3:.2f} or {eager * 1e3:.2f} ms a layer" in text
    assert f"the length of its steps with a scatter of {law.scatter:.0%}:".replace("%", " %") in text
    off = np.log(law.step_s(unseen) / unseen["step_s"].to_numpy())
    assert f"{np.exp(off.mean()):.2f} times the steps of pairs" in text
    assert f"with a scatter of {off.std():.0%}:".replace("%", " %") in text


def test_the_readme_says_of_the_predictions_what_their_table_says() -> None:
    text = " ".join((REFERENCE.parent / "README.md").read_text().split())
    page = (REFERENCE.parent / "docs" / "forecast-version-3.md").read_text()
    (row,) = (line.split(" | ") for line in page.splitlines() if line.startswith("| gain | mps2 / single |"))
    _, _, cells, mean, scatter, *_ = row
    assert f"its gain was {mean} times the measured one, with a scatter of {float(scatter[:-2]):.0f} %" in text
    simulated = " ".join((REFERENCE.parent / "docs" / "simulation.md").read_text().split())
    untuned, tuned = (line.split(" | ") for line in simulated.split("| gain | mps2 / single | ")[1:])
    assert tuned[0] == cells
    assert f"held against {tuned[0]} measured cells of four models and {untuned[0]} with other settings" in text


def test_the_simulated_host_takes_the_time_that_single_engines_took(steps_of_the_record: pl.DataFrame) -> None:
    """Constants that say `measured` lie in the intervals of the law that the record gives today."""
    law = fit(fitted_to(steps_of_the_record))
    assert law is not None
    step, sequence, pieces, eager = law.terms
    assert step.low < value("engine_core_step") < step.high
    assert sequence.low < value("engine_core_sequence") < sequence.high
    launches = 10.2  # a layer of Qwen2.5, two of them attention
    assert eager.low < launches * value("eager_launch") < eager.high
    assert pieces.low < value("graph_launch") + 2 * value("eager_launch") < pieces.high
    assert all("measured" in CONSTANTS[name].source for name in ("engine_core_step", "eager_launch", "graph_launch"))
