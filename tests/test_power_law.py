"""The power law from windows whose power was made by a law that is known, and the simulator's constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dashboards.power_law import PowerLaw, power_law, power_law_table, power_windows
from dashboards.step_cost import engine_steps, fit, fitted_to, pairs
from orchestrator.gpus import KINDS
from orchestrator.simulated.constants import CONSTANTS, value
from orchestrator.store import ResultStore

REFERENCE = Path(__file__).parent.parent / "reference"
RECORDS = ("h200", "h200-pair", "h200-untuned", "h200-pieces")
TRUE = (70.0, 650.0, 600.0)


def windows(count: int = 40, scatter: float = 0.0, exponent: int = 2, **more: object) -> pl.DataFrame:
    """Windows whose power is by the law with TRUE, and clocks from 1,500 to 1,980 MHz."""
    rng = np.random.default_rng(2)
    active, tensor, dram = (rng.uniform(low, 0.8, count) for low in (0.4, 0.0, 0.1))
    clock = np.linspace(1500.0, 1980.0, count)
    a, f, m = TRUE
    drawn = KINDS["H200"].idle_power_w + a * active + f * tensor * (clock / 1980) ** (1 + exponent) + m * dram
    seen = {
        "gpu_active_share": active, "tensor_active_share": tensor, "dram_active_share": dram, "sm_clock_mhz": clock,
        "power_w": drawn * np.exp(rng.normal(0, scatter, count)),
    }  # fmt: skip
    labels = {"gpu_kind": "H200", "engines": 1, "sharing": "single"} | more
    return pl.DataFrame(seen).with_columns(**{name: pl.lit(value) for name, value in labels.items()})


def test_the_watts_come_back() -> None:
    law = power_law(windows())
    assert law is not None and law.watts == pytest.approx(TRUE, rel=1e-6) and law.scatter < 1e-6
    assert (law.windows, law.lowest_mhz, law.highest_mhz) == (40, 1500.0, 1980.0)
    noisy = power_law(windows(400, 0.02))
    assert noisy is not None and noisy.watts == pytest.approx(TRUE, rel=0.1)
    assert noisy.scatter == pytest.approx(0.02, rel=0.2)


def test_the_law_is_tried_on_pairs_that_had_no_part_in_the_fit() -> None:
    pairs = windows(12, engines=2, sharing="mps").with_columns(power_w=pl.col("power_w") * 0.8)
    seen = pl.concat([windows(), pairs])
    law = power_law(seen)
    assert law is not None and law.watts == pytest.approx(TRUE, rel=1e-6) and law.windows == 40
    assert law.off(pairs) == pytest.approx(np.full(12, np.log(1.25)))
    text = power_law_table(law, seen)
    assert "| arithmetic, at the peak FLOP rate and the boost clock | 650 |" in text
    assert "Of engines under MPS, 12 windows that had no part in the fit, the law gives 1.25 times the power" in text
    assert "time slices" not in text


def test_an_energy_that_is_the_same_at_every_clock_fits_what_was_made_so() -> None:
    even, falling = (power_law(windows(exponent=0), exponent) for exponent in (0, 2))
    assert even is not None and falling is not None
    assert even.watts == pytest.approx(TRUE, rel=1e-6) and even.scatter < 1e-6 < 0.005 < falling.scatter


def test_few_windows_windows_all_alike_and_two_kinds_of_gpu_give_no_law() -> None:
    assert power_law(windows(7)) is None
    assert power_law(windows().with_columns(gpu_active_share=0.5, tensor_active_share=0.0)) is None
    assert power_law(windows(engines=2)) is None
    two = windows().with_columns(gpu_kind=pl.Series(["H100", "H200"] * 20))
    assert power_law(two) is None


def recorded() -> tuple[PowerLaw, pl.DataFrame]:
    stores = [ResultStore.open(str(REFERENCE / name), create=False) for name in RECORDS]
    seen = pl.concat([power_windows(store.read("trials"), store.read("windows")) for store in stores])
    law = power_law(seen)
    assert law is not None
    return law, seen


def test_the_record_s_power_falls_with_the_square_of_the_clock() -> None:
    law, seen = recorded()
    others = {exponent: power_law(seen, exponent) for exponent in (0, 1, 2, 3)}
    assert min(others, key=lambda exponent: others[exponent].scatter) == 2  # type: ignore[union-attr]
    pairs = law.off(seen.filter(engines=2, sharing="mps"))
    assert abs(pairs.mean()) < 0.05 and pairs.std() < 0.1


def test_the_readme_s_law_of_power_stands_in_the_record() -> None:
    law, seen = recorded()
    text = " ".join((REFERENCE.parent / "README.md").read_text().split())
    active, flops, moved = law.watts
    assert f"{active:.0f} W for kernels at all, {flops:,.0f} W times the square of the clock" in text
    assert f"{moved:.0f} W for device memory at its peak" in text
    off = law.off(seen.filter(engines=2, sharing="mps"))
    told = f"it gives {np.exp(off.mean()):.2f} times the power of pairs under MPS, with a scatter of {off.std():.0%}"
    assert told.replace("%", " %") in text


@pytest.mark.parametrize("name", ["active_power", "matmul_power", "memory_power"])
def test_the_simulated_gpu_draws_the_power_that_single_engines_drew(name: str) -> None:
    law, _ = recorded()
    assert value(name) == pytest.approx(law.constants[name], rel=0.05)


@pytest.fixture(scope="module")
def steps_of_the_record() -> pl.DataFrame:
    stores = [ResultStore.open(str(REFERENCE / name), create=False) for name in RECORDS]
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
    page = (REFERENCE.parent / "docs" / "forecast-version-5.md").read_text()
    (row,) = (line.split(" | ") for line in page.splitlines() if line.startswith("| gain | mps2 / single |"))
    _, _, cells, mean, scatter, *_ = row
    assert f"its gain was {mean} times the measured one, with a scatter of {float(scatter[:-2]):.0f} %" in text
    simulated = " ".join((REFERENCE.parent / "docs" / "simulation.md").read_text().split())
    tables = [line.split(" | ") for line in simulated.split("| gain | mps2 / single | ")[1:]]
    untuned, pieces, tuned, _ = tables
    assert tuned[0] == cells
    scatters = sorted(float(table[2].split()[0]) for table in (tuned, pieces, untuned))
    told = (
        f"held against {tuned[0]} measured cells of three models, and against {pieces[0]} and {untuned[0]} with other "
        f"settings: its gain is {tuned[1]}, {pieces[1]} and {untuned[1]} times the measured one, with scatters of "
        f"{scatters[0]:.0f} to {scatters[-1]:.0f} %"
    )
    assert told in text


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
