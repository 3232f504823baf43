"""What the method claims of itself: the committed record, the page that shows it, and a small part of it made anew."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dashboards.coverage import main as write_page
from dashboards.coverage import plot, read, wilson
from dashboards.coverage_tables import TABLES, with_tables
from orchestrator import coverage
from orchestrator.core_speed import at_equal_speed
from orchestrator.noise import Noise, draw
from orchestrator.noise_fit import fit
from orchestrator.replay import WORDS, play, rounds_taken
from orchestrator.replay import at_equal_speed as replayed_equal_speed
from orchestrator.sequential import MAX_BOOTS, enough
from orchestrator.store import ResultStore
from orchestrator.student import Floats
from orchestrator.trial import Measurement
from orchestrator.verdicts import judge
from tests.planted import frames, noisy

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "reference" / "coverage"
NOISE_OF = ["smoke-gpu"]
SPEEDS = ROOT / "reference" / "core-speeds-h200.parquet"


@cache
def measured() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    store = ResultStore.open(str(ROOT / "reference" / "h200"), create=False)
    return store.read("trials", NOISE_OF), store.read("windows", NOISE_OF), pl.read_parquet(SPEEDS)


@cache
def fitted() -> Noise:
    return fit(*measured())


@cache
def record() -> dict[str, Any]:
    return read(RECORD)


def test_every_parameter_is_what_the_measured_windows_say() -> None:
    def close(made: Any, kept: Any) -> None:
        if isinstance(kept, dict):
            assert made.keys() == kept.keys()
            for key in kept:
                close(made[key], kept[key])
        elif isinstance(kept, list):
            assert len(made) == len(kept)
            for one, other in zip(made, kept, strict=True):
                close(one, other)
        else:
            assert made == (pytest.approx(kept, rel=1e-6, abs=1e-9) if isinstance(kept, float) else kept)

    close(json.loads(json.dumps(fitted().as_dict())), record()["noise"])


def test_the_page_and_the_plot_are_what_the_record_says() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert with_tables(page, record()) == page
    assert all(f"<!-- table: {name} -->" in page for name in TABLES)
    assert plot(record()["coverage"]) == (ROOT / "docs" / "coverage.svg").read_text(encoding="utf-8")


def test_the_record_meets_what_is_asked_of_the_method() -> None:
    held = record()["coverage"].filter("recorded")
    by_noise = held.group_by("noise").agg(pl.col("sweeps", "held").sum())
    assert by_noise["sweeps"].min() >= 2000  # type: ignore[operator]
    assert (by_noise["held"] / by_noise["sweeps"]).min() >= 0.94  # type: ignore[operator]
    assert held["gain_from"].min() == -0.3 and held["gain_to"].max() == 1.5
    equal = record()["equal_arms"].filter("recorded", pl.col("noise").str.ends_with("twice"))
    assert equal["sweeps"].sum() >= 2000
    assert (equal["winners"] / equal["sweeps"]).max() <= 0.05  # type: ignore[operator]
    spent = record()["cost"].filter(noise="all").row(0, named=True)
    assert spent["boots"] <= spent["fixed_boots"] / 2
    assert spent["windows"] <= spent["fixed_windows"] / 2
    speed = record()["equal_speed"]
    assert (speed["held"] / speed["sweeps"]).min() >= 0.94  # type: ignore[operator]
    assert ((speed["bias"] / speed["bias_se"]).abs() < 4).all()


def test_a_small_part_made_anew_agrees_with_the_record() -> None:
    few = pl.DataFrame(list(coverage.coverage(fitted(), 150, np.random.default_rng(9)))).filter("recorded")
    kept = record()["coverage"].filter("recorded")
    low, _ = wilson(few["held"].sum(), few["sweeps"].sum())
    assert low > 0.97
    assert few["boots"].sum() / few["sweeps"].sum() == pytest.approx(
        kept["boots"].sum() / kept["sweeps"].sum(), rel=0.1
    )
    equal = pl.DataFrame(list(coverage.equal_arms(fitted(), 200, np.random.default_rng(10))))
    twice = equal.filter(pl.col("noise").str.ends_with("twice"))
    assert wilson(twice["winners"].sum(), twice["sweeps"].sum())[0] < 0.05


def test_drawn_noise_has_the_spread_and_the_mean_it_was_fitted_to() -> None:
    noise = fitted()
    world = noise.worlds[0]
    rates, speeds = draw(noise, (world.baseline, *world.candidates), 600, 4, 6, np.random.default_rng(11))
    assert rates.shape == speeds.shape == (600, 4, 3, 6)
    for i, arm in enumerate((world.baseline, *world.candidates)):
        assert speeds[:, :, i].std() == pytest.approx(np.std(arm.speed), rel=0.15)
        slope = np.polyfit(speeds[:, :, i].ravel(), rates[:, :, i].ravel(), 1)[0]
        assert slope == pytest.approx(arm.slope, abs=0.1)
    error = (rates[:, :, 1] - rates[:, :, 0]).mean(axis=(1, 2))
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(600)
    level = speeds[:, :, 0].mean(axis=2)
    assert level.std() > speeds[:, :, 0].std() * math.sqrt(noise.speed.boot)
    assert np.corrcoef(speeds[:, :, 0].ravel(), speeds[:, :, 1].ravel())[0, 1] > noise.speed.boot * 0.8


def planted_contrasts(seed: int, boots: int, rounds: int, gains: Floats) -> tuple[Floats, Floats]:
    values = noisy(np.random.default_rng(seed), (len(gains), boots, 2, rounds), boot_sd=0.01, sd=0.03) + 7.0
    values[:, :, 1] += gains[:, None, None]
    return values, values[:, :, 1] - values[:, :, 0]


def test_the_replayed_rules_are_those_of_judge() -> None:
    gains = np.log(np.linspace(0.9, 1.2, 120))
    values, contrasts = planted_contrasts(12, 4, 6, gains)
    rows = judge(*frames(values)).filter(metric="throughput").sort("concurrency")
    ended = play(contrasts, gains, 0.03, 4, planned=True)
    looked = play(contrasts, gains, 0.03, 4)
    assert judge(*frames(values), planned_boots=4).filter(metric="throughput").sort("concurrency")[
        "ci_low"
    ].log().to_numpy() == pytest.approx(ended.low, abs=1e-3)
    last = looked.boots == 4
    assert last.sum() > 20
    assert rows["ci_low"].log().to_numpy()[last] == pytest.approx(looked.low[last], abs=1e-3)
    same = np.array(rows["verdict"].to_list())[last] == np.array(WORDS)[looked.verdict[last]]
    assert same.mean() > 0.97  # a drift of the ratio can forbid what the interval allows


def test_the_replayed_rounds_are_those_of_enough() -> None:
    look = Measurement(min_windows=4, max_windows=8, interval_target=0.04)
    _, contrasts = planted_contrasts(13, 2, 8, np.zeros(40))
    taken = rounds_taken(contrasts, look)
    for own, rounds in zip(contrasts.reshape(-1, 8), taken.ravel(), strict=True):
        stops = [k for k in range(4, 8) if enough({"a": own[:k].tolist()}, look)]
        assert rounds == (stops[0] if stops else 8)
    assert len(np.unique(taken)) > 2


def test_a_hopeless_cell_is_given_up_and_a_clear_one_stops_at_three() -> None:
    edge = math.log(1.03)
    contrasts = np.random.default_rng(14).normal(0, 0.05, (300, MAX_BOOTS, 4))
    lost = play(contrasts + edge, edge, 0.03, MAX_BOOTS)
    assert (lost.boots < MAX_BOOTS).mean() > 0.2
    clear = play(contrasts * 0.02 + 0.5, 0.5, 0.03, MAX_BOOTS)
    assert (clear.boots == 3).mean() > 0.95
    assert (clear.windows == clear.boots * 8).all()


def test_the_ratio_at_equal_core_speed_is_free_of_the_speed() -> None:
    rng = np.random.default_rng(15)
    boots, rounds = 4, 6
    speeds = rng.normal(3.4, 0.2, (1, boots, 2, rounds))
    speeds[:, :, 1] -= 0.2  # the candidate's core ran slower throughout
    values = 7.0 + speeds + rng.normal(0, 0.003, speeds.shape)
    values[:, :, 1] += math.log(1.25)
    trials, windows = frames(values)
    where = trials.sort("repeat", "arm", descending=[False, True])["trial_id"].to_list()
    core = dict(zip(where, speeds.reshape(-1, rounds), strict=True))
    known = windows.with_columns(
        engine_core_speed_mops=pl.struct("trial_id", "round_index").map_elements(
            lambda row: math.exp(core[row["trial_id"]][row["round_index"]]), return_dtype=pl.Float64
        )
    )
    row = judge(trials, known).filter(metric="throughput").row(0, named=True)
    assert row["ratio"] < 1.1
    assert row["equal_speed_ratio"] == pytest.approx(1.25, rel=0.02)
    assert row["equal_speed_low"] < 1.25 < row["equal_speed_high"]
    assert row["equal_speed_mops"] == pytest.approx(math.exp(3.3), rel=0.1)
    assert any("at equal core speed" in reason for reason in row["reasons"])
    centre, half, speed = replayed_equal_speed(values[:, :, 1] - values[:, :, 0], speeds[:, :, 1], speeds[:, :, 0])
    assert [row["equal_speed_ratio"], row["equal_speed_high"], row["equal_speed_mops"]] == pytest.approx(
        [math.exp(centre[0]), math.exp(centre[0] + half[0]), math.exp(speed[0])], rel=1e-3
    )
    plain = judge(trials, windows).filter(metric="throughput").row(0, named=True)
    assert plain["equal_speed_ratio"] is None and plain["ratio"] == row["ratio"]
    constant = judge(trials, windows.with_columns(engine_core_speed_mops=pl.lit(30.0)))
    assert constant["equal_speed_ratio"].null_count() == len(constant)


def test_no_slope_is_believed_on_few_windows() -> None:
    rounds = pl.DataFrame(
        {"pair_id": [0] * 4, "base_boot_id": ["a", "a", "b", "b"], "throughput": [0.1, 0.2, 0.1, 0.3],
         "core": [3.1, 3.2, 3.3, 3.5], "base_core": [3.1, 3.4, 3.2, 3.3]}
    )  # fmt: skip
    planned = pl.DataFrame({"pair_id": [0], "planned": [2]})
    assert at_equal_speed(rounds, planned).is_empty()


def test_real_comparisons_of_equal_arms_are_found_and_counted() -> None:
    values = noisy(np.random.default_rng(16), (3, 4, 3, 4)) + 7.0
    values[2, :, 1] += 0.5
    arms = (("single", "single", 1), ("single-again", "single", 1), ("mps2", "mps", 2))
    trials, windows = frames(values, arms, backend="vllm")
    both = [row for row in coverage.recorded_equal_arms(trials, windows) if row["metric"] == "throughput"]
    found = [row for row in both if row["arm"] == "single-again"]
    assert [(row["arm"], row["baseline"], row["boots"]) for row in found] == [("single-again", "single", 4)] * 3
    assert [row["called"] for row in found] == [False, False, True]
    halved = [row for row in both if row["arm"] == "other"]
    assert len(both) == len(found) + len(halved) and len(halved) == 9 and not any(row["called"] for row in halved)
    simulated = trials.with_columns(backend=pl.lit("simulated"))
    assert list(coverage.recorded_equal_arms(simulated, windows)) == []


def test_too_little_to_fit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials, windows, speeds = measured()
    with pytest.raises(ValueError, match="no cell has two boots"):
        fit(trials.filter(pl.col("repeat") == 0), windows, speeds)
    asked = [str(tmp_path / "nowhere"), "--core-speeds", str(SPEEDS), "-o", str(tmp_path)]
    assert coverage.main(asked) == 2
    assert write_page([str(tmp_path / "nowhere")]) == 2
    assert "python -m orchestrator.coverage" in capsys.readouterr().err


def test_the_command_writes_a_record_that_the_page_can_be_made_of(tmp_path: Path) -> None:
    out = tmp_path / "record"
    few = dataclasses.replace(fitted(), worlds=fitted().worlds[:1])
    out.mkdir()
    (out / "noise.json").write_text(json.dumps(few.as_dict()))
    for name in ("coverage", "equal_arms", "cost", "equal_speed"):
        rows = list(getattr(coverage, name)(few, 20, np.random.default_rng(17)))
        pl.DataFrame(rows).write_csv(out / f"{name}.csv")
    for name in ("power", "recorded_equal_arms"):
        record()[name].write_csv(out / f"{name}.csv")
    page, picture = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text("before\n<!-- table: cost -->\nold\n<!-- end -->\nafter\n")
    assert write_page([str(out), "--plot", str(picture), "--page", str(page)]) == 0
    text = page.read_text()
    assert "old" not in text and "| all |" in text and text.startswith("before\n") and text.endswith("after\n")
    assert picture.read_text().startswith("<svg")
