"""Four matching rules on ladders whose truth is planted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from orchestrator.latency_match import at, common_levels
from orchestrator.verdicts import VERDICTS, judge, main
from orchestrator.views import VIEW_VERDICTS, VIEWS, judge_views
from tests.planted import THREE_ARMS, Floats, frames, noisy
from tests.test_verdicts import write_store

CLIENTS = np.array([1, 2, 3, 4])
SINGLE = np.log([10.0, 15.0, 18.0, 17.0])  # peaks at 3 clients
SLICED = np.log([9.0, 16.0, 20.0, 22.0])
MPS = np.log([9.0, 17.0, 24.0, 26.0])
TOKENS = 64


def ladder(
    boots: int = 4, noise: float = 0.002, seed: int = 1, curves: tuple[Floats, ...] = (SINGLE, SLICED, MPS)
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Four numbers of clients, boots, arms, rounds; end-to-end latency by Little's law, so it follows from the rate."""
    rng = np.random.default_rng(seed)
    values = noisy(rng, (4, boots, len(curves), 4), boot_sd=noise, sd=noise)
    values += np.array(curves).T[:, None, :, None]
    trials, windows = frames(values, THREE_ARMS[: len(curves)])
    clients = trials.select("trial_id", "concurrency")
    rate = pl.col("output_tokens") / pl.col("duration_s")
    slow = windows.join(clients, on="trial_id").with_columns(e2e_p50_s=pl.col("concurrency") * TOKENS / rate)
    return trials, slow.drop("concurrency")


def rows(view: str, *frame: pl.DataFrame, **options: Any) -> pl.DataFrame:
    return judge_views(*frame, views=[view], **options).filter(metric="throughput")


def one(found: pl.DataFrame, arm: str = "mps2", baseline: str = "single", **where: Any) -> dict[str, Any]:
    return found.filter(arm=arm, baseline=baseline, **where).row(0, named=True)


def test_the_headline_is_judge_itself() -> None:
    frame = ladder()
    views = judge_views(*frame)
    assert views.schema == VIEW_VERDICTS
    assert views["view"].unique(maintain_order=True).to_list() == list(VIEWS)
    assert_frame_equal(views.filter(view="equal_total").select(VERDICTS.names()), judge(*frame))
    assert views.filter(view="equal_total")["setting"].null_count() == judge(*frame).height


def test_boots_are_planned_by_the_cells_as_they_were_measured() -> None:
    """Views lay ladders out anew; an expression over the sweep's own cells means what a plain number means."""
    frame = ladder(boots=3)
    by_cell = pl.when(pl.col("concurrency") >= 1).then(3)
    for view in VIEWS:
        planned = rows(view, *frame, planned_boots=by_cell)
        assert_frame_equal(planned, rows(view, *frame, planned_boots=3))
        assert (planned["ci_high"] < rows(view, *frame)["ci_high"]).any()


def test_per_engine_holds_two_engines_with_twice_the_clients_against_one() -> None:
    found = rows("per_engine", *ladder())
    gains = found.filter(arm="mps2", baseline="single").sort("concurrency")
    assert gains["setting"].to_list() == ["1 clients per engine", "2 clients per engine"]
    truth = [math.exp(MPS[1] - SINGLE[0]), math.exp(MPS[3] - SINGLE[1])]
    assert gains["ratio"].to_list() == pytest.approx(truth, rel=0.05)
    assert gains["verdict"].to_list() == ["wins", "wins"]
    assert gains["boots"].to_list() == [4, 4]
    assert set(gains["residency"]) == {"resident"}
    overlap = found.filter(arm="mps2", baseline="timesliced2")
    assert len(overlap) == 4  # as many engines: every cell is equal per engine, half a client included
    assert "0.5 clients per engine" in overlap["setting"].to_list()
    assert one(found, arm="mps2", baseline="timesliced2", concurrency=4)["ratio"] == pytest.approx(26 / 22, rel=0.05)


def test_own_peaks_are_found_and_named() -> None:
    row = one(rows("own_peak", *ladder()))
    assert row["ratio"] == pytest.approx(26 / 18, rel=0.05)
    assert (row["verdict"], row["setting"], row["concurrency"]) == ("wins", "peak over 1, 2, 3, 4", None)
    said = "; ".join(row["reasons"])
    assert "single peaks at 3 clients" in said
    assert "mps2 peaks at 4 clients, the end of its ladder" in said


def test_the_search_for_a_peak_does_not_favour_the_arm_that_scatters_more() -> None:
    """Flat ladders of equal arms, one far noisier: the largest of four noisy means would give it 6 % for nothing."""
    rng = np.random.default_rng(5)
    parts = []
    for model in range(60):
        values = noisy(rng, (4, 3, 2, 2), boot_sd=0.001, sd=0.001)
        values[:, :, 1] += rng.normal(0, 0.1, (4, 3, 1))
        trials, windows = frames(values, THREE_ARMS[:2], model=f"m{model}")
        own = [pl.format("{}-{}", pl.lit(model), name).alias(name) for name in ("trial_id", "attempt_id", "boot_id")]
        parts.append((trials.with_columns(*own, pl.format("{}-{}", pl.lit(model), "repeat_id").alias("repeat_id")),
                      windows.with_columns(own)))  # fmt: skip
    frame = [pl.concat(tables) for tables in zip(*parts, strict=True)]
    found = rows("own_peak", *frame)["ratio"].log().to_numpy()
    best_cell = rows("equal_total", *frame).group_by("model").agg(pl.col("ratio").max())["ratio"].log().to_numpy()
    assert len(found) == len(best_cell) == 60
    assert abs(found.mean()) < 3 * found.std() / math.sqrt(60)
    assert best_cell.mean() > 6 * best_cell.std() / math.sqrt(60)


def test_one_boot_has_no_other_boot_to_find_a_peak_in() -> None:
    assert rows("own_peak", *ladder(boots=1)).is_empty()
    trials, windows = ladder()
    failed = trials.with_columns(
        outcome=pl.when(pl.col("arm") == "mps2").then(pl.lit("failed")).otherwise("outcome"),
        reason=pl.when(pl.col("arm") == "mps2").then(pl.lit("BootError: out of memory")),
    )
    row = one(rows("own_peak", failed, windows))
    assert row["verdict"] == "undecided"
    assert "mps2 failed 4×: BootError: out of memory" in "; ".join(row["reasons"])


def along(curve: Floats, level: float) -> float:
    latency = np.log(CLIENTS * TOKENS / np.exp(curve))
    return float(np.interp(math.log(level), latency, curve))


def test_equal_latency_reads_each_ladder_between_its_points() -> None:
    frame = ladder()
    asked = {"e2e_p50": [9.0]}
    row = one(rows("equal_latency", *frame, latencies=asked))
    truth = math.exp(along(MPS, 9.0) - along(SINGLE, 9.0))
    assert row["ratio"] == pytest.approx(truth, rel=0.05)
    assert (row["setting"], row["verdict"], row["boots"]) == ("e2e_p50 <= 9 s", "wins", 4)
    chosen = rows("equal_latency", *frame).filter(pl.col("setting").str.starts_with("e2e"))
    assert one(chosen)["setting"] == "e2e_p50 <= 8 s"
    assert set(chosen["metric"]) == {"throughput"}


def test_nothing_is_extrapolated() -> None:
    frame = ladder()
    row = one(rows("equal_latency", *frame, latencies={"e2e_p50": [100.0]}))
    assert (row["verdict"], row["ratio"], row["boots"]) == ("undecided", None, 0)
    assert any("outside an arm's ladder in 4 of 4 boots" in reason for reason in row["reasons"])
    trials, windows = frame
    short = trials.filter((pl.col("repeat") > 0) | (pl.col("concurrency") < 3))
    row = one(rows("equal_latency", short, windows, latencies={"e2e_p50": [9.0]}))
    assert (row["verdict"], row["boots"]) == ("undecided", 3)
    assert any("in 1 of 4 boots" in reason for reason in row["reasons"])
    rung = trials.filter(pl.col("concurrency") == 2)
    assert set(rows("equal_latency", rung, windows)["verdict"]) == {"undecided"}


def test_a_curve_is_passed_last_where_the_load_is_highest() -> None:
    curve = [(0.0, 1.0), (2.0, 3.0), (1.0, 4.0), (3.0, 5.0)]
    assert at(curve, 1.5) == pytest.approx(4.25)
    assert at(curve, 0.5) == pytest.approx(1.5)
    assert at(curve, 3.5) is None
    assert at(curve[:1], 0.0) is None
    assert at([], 0.0) is None


def test_common_levels_are_round_and_within_every_curve() -> None:
    log = math.log
    assert common_levels([([(log(1.2), 0), (log(9), 0)], [(log(2.5), 0), (log(40), 0)])]) == [2.5, 4.0, 8.0]
    assert common_levels([([(log(1.22), 0), (log(1.25), 0)],)]) == []
    assert common_levels([([(log(1), 0)],)]) == []
    assert common_levels([]) == []


@pytest.mark.parametrize("view", VIEWS)
def test_fewer_than_three_boots_decide_nothing_in_any_view(view: str) -> None:
    found = rows(view, *ladder(boots=2), latencies={"e2e_p50": [9.0]})
    assert set(found["verdict"]) == {"undecided"}
    assert all(any("2 of at least 3 boots" in reason for reason in reasons) for reasons in found["reasons"])


@pytest.mark.parametrize("view", VIEWS)
def test_mixed_worlds_are_refused_in_every_view(view: str) -> None:
    trials, windows = ladder()
    first = pl.col("repeat") == 0
    mixed = trials.with_columns(
        gpu_name=pl.when(first).then(pl.lit("NVIDIA H200")).otherwise("gpu_name"),
        software=pl.when(first).then(pl.lit(json.dumps({"vllm": "0.26.0"}))).otherwise("software"),
    )
    found = rows(view, mixed, windows)
    assert not found.is_empty()
    assert set(found["verdict"]) == {"undecided"}
    for reasons in found["reasons"]:
        assert any("GPUs of different kinds" in reason for reason in reasons)
        assert any("software differs" in reason for reason in reasons)


@pytest.mark.parametrize("view", VIEWS)
def test_odd_data_raises_nothing_in_any_view(view: str) -> None:
    trials, windows = ladder(boots=3)
    for odd in (windows.clear(), windows.head(1), windows.with_columns(output_tokens=pl.lit(0, pl.Int64)),
                windows.with_columns(e2e_p50_s=pl.lit(math.nan), duration_s=pl.lit(math.nan))):  # fmt: skip
        assert set(rows(view, trials, odd)["verdict"]) <= {"undecided"}
    assert rows(view, trials.clear(), windows).is_empty()
    failed = trials.with_columns(outcome=pl.lit("failed"))
    assert set(rows(view, failed, windows)["verdict"]) <= {"undecided"}


def test_what_does_not_exist_is_named() -> None:
    frame = ladder(boots=1)
    with pytest.raises(ValueError, match="no view 'upside_down'"):
        judge_views(*frame, views=["upside_down"])
    with pytest.raises(ValueError, match="no latency 'p50'"):
        judge_views(*frame, latencies={"p50": [1.0]})


def test_the_command_shows_a_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", *ladder())
    assert main([store, "--view", "own_peak"]) == 0
    assert "own_peak: predictions of a model" in " ".join(capsys.readouterr().out.split())
    assert main([store, "--view", "equal_latency", "--latency", "e2e_p50=8", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["setting"] for row in found} == {"e2e_p50 <= 8 s"}
    assert main([store, "--view", "all", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("view,setting,sweep")
    with pytest.raises(SystemExit):
        main([store, "--view", "equal_latency", "--latency", "speed=8"])
    assert "speed" in capsys.readouterr().err
