"""Steps of one engine from the time of its host and of its GPU: by hand, and against the record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dashboards.step_cost import engine_steps, fit, fitted_to
from dashboards.step_pipeline import from_parts, mean_step_s, parts_in_words, parts_table
from orchestrator.store import ResultStore

REFERENCE = Path(__file__).parent.parent / "reference"
RECORDS = ("h200", "h200-pair", "h200-untuned", "h200-pieces")


@pytest.mark.parametrize(("host_s", "gpu_s", "mean_s"), [(3.0, 1.0, 3.0), (1.0, 3.0, 3.0), (2.0, 2.0, 2.0)])
def test_steps_that_are_all_alike_take_the_longer_of_their_parts(host_s: float, gpu_s: float, mean_s: float) -> None:
    assert mean_step_s(host_s, np.full(2000, gpu_s)) == pytest.approx(mean_s, rel=2e-3)


def test_long_steps_and_short_ones_take_longer_than_either_part_on_average() -> None:
    # Pairs of a long step and a short one: 4 s on the GPU, of which 2 s hide the short one's preparation; the short one
    # is over at once, and the next long one was not begun before the long one had left: 2 s more.
    gpu_s = np.tile([4.0, 0.0], 1000)
    assert mean_step_s(2.0, gpu_s) == pytest.approx((4.0 + 2.0) / 2, rel=2e-3)
    assert gpu_s.mean() == 2.0


def test_with_one_step_in_flight_the_parts_add_up() -> None:
    assert mean_step_s(2.0, np.tile([4.0, 1.0], 500), steps_in_flight=1) == pytest.approx(2.0 + 2.5, rel=2e-3)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    tables = {
        name: [ResultStore.open(str(REFERENCE / store), create=False).read(name) for store in RECORDS]
        for name in ("trials", "windows")
    }
    law = fit(fitted_to(pl.concat([engine_steps(*pair) for pair in zip(*tables.values(), strict=True)])))
    assert law is not None
    return from_parts(tables["trials"][0], tables["windows"][0], law)


def test_the_recorded_engine_is_as_fast_as_its_parts_say(rows: pl.DataFrame) -> None:
    """Also where neither is busy all the time, which the longer of the two mean parts does not explain."""
    off = np.log(rows["foretold_s"].to_numpy() / rows["step_s"].to_numpy())
    assert rows.height >= 38 and rows["model"].n_unique() >= 3
    assert abs(off.mean()) < 0.05 and off.std() < 0.1
    for name in ("active", "busy"):
        assert np.sqrt(np.mean((rows[f"foretold_{name}"].to_numpy() - rows[name].to_numpy()) ** 2)) < 0.08, name
    turns = rows.filter(pl.col("active") < 0.9, pl.col("busy") < 0.9)
    longer = np.maximum(turns["host_s"].to_numpy(), turns["gpu_s"].to_numpy())
    plain, pipelined = (np.log(part / turns["step_s"].to_numpy()) for part in (longer, turns["foretold_s"].to_numpy()))
    assert turns.height >= 10 and abs(pipelined.mean()) < abs(plain.mean()) / 2


def test_words_and_table_are_of_the_rows(rows: pl.DataFrame) -> None:
    cell = rows.filter(model="Qwen/Qwen2.5-1.5B", context=2048)
    (line,) = parts_table(cell).splitlines()[2:]
    shown = [part.strip() for part in line.strip("|").split("|")]
    assert shown[:3] == ["Qwen2.5-1.5B", "2048", "64"] and shown[6] == f"{1e3 * cell['step_s'].mean():.2f}"  # type: ignore[operator]
    perfect = rows.with_columns(foretold_s="step_s", foretold_active="active", foretold_busy="busy")
    assert "are 1.00 times those measured, with a scatter of 0%" in parts_in_words(perfect)
    assert "off by 0 and 0 points" in parts_in_words(perfect)


def test_the_readme_says_what_the_record_gives(rows: pl.DataFrame) -> None:
    text = " ".join((REFERENCE.parent / "README.md").read_text().split())
    off = np.log(rows["foretold_s"].to_numpy() / rows["step_s"].to_numpy())
    cells = rows.select("model", "context").n_unique()
    told = f"{np.exp(off.mean()):.2f} times those measured with a scatter of {100 * off.std():.0f} % over {rows.height}"
    assert f"{told} windows of {cells} cells" in text
