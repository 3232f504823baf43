"""Verdicts, their reasons, and cells on which nothing can be said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from orchestrator.multiplicity import benjamini_yekutieli
from orchestrator.records import TRIALS, WINDOWS
from orchestrator.store import ResultStore
from orchestrator.verdicts import VERDICTS, judge, main, show
from tests.planted import THREE_ARMS, Floats, frames, noisy


def rates(gain: float, boots: int = 4, sd: float = 0.004, rounds: int = 6, seed: int = 1) -> Floats:
    values = noisy(np.random.default_rng(seed), (1, boots, 2, rounds), boot_sd=sd, sd=sd) + 8.0
    values[:, :, 1] += math.log(gain)
    return values


def headline(trials: pl.DataFrame, windows: pl.DataFrame, **options: Any) -> dict[str, Any]:
    return judge(trials, windows, **options).filter(metric="throughput").row(0, named=True)


@pytest.mark.parametrize(("gain", "verdict"), [(1.3, "wins"), (0.8, "loses"), (1.0, "tie"), (1.03, "undecided")])
def test_the_four_words(gain: float, verdict: str) -> None:
    row = headline(*frames(rates(gain, sd=0.001 if verdict == "tie" else 0.004)))
    assert row["verdict"] == verdict
    assert row["ci_low"] < row["ratio"] < row["ci_high"]
    assert row["ratio"] == pytest.approx(gain, rel=0.02)
    assert (row["next_step"] is None) == (verdict != "undecided")


def test_a_shorter_latency_wins_with_a_ratio_below_one() -> None:
    verdicts = judge(*frames(rates(1.3)))
    latency = verdicts.filter(metric="ttft_p99").row(0, named=True)
    assert latency["ratio"] < 0.8
    assert (latency["better"], latency["verdict"]) == ("lower", "wins")
    assert judge(*frames(rates(0.8))).filter(metric="e2e_p50")["verdict"].item() == "loses"


def test_rows_have_the_schema_and_one_for_each_pair_and_metric() -> None:
    values = noisy(np.random.default_rng(2), (2, 3, 3, 4)) + 8.0
    verdicts = judge(*frames(values, THREE_ARMS))
    assert verdicts.schema == VERDICTS
    assert len(verdicts) == 2 * 3 * 7
    assert verdicts.filter(metric="throughput", concurrency=1).select("arm", "baseline").rows() == [
        ("mps2", "single"), ("mps2", "timesliced2"), ("timesliced2", "single"),
    ]  # fmt: skip


def test_prefill_has_no_time_per_output_token() -> None:
    metrics = judge(*frames(rates(1.2), kind="prefill"))["metric"].to_list()
    assert metrics == ["throughput", "ttft_p50", "ttft_p99", "e2e_p50", "e2e_p99"]


def test_the_margin_can_be_set_for_the_reading() -> None:
    frame = frames(rates(1.08))
    assert headline(*frame)["verdict"] == "wins"
    assert headline(*frame, margin=0.2)["verdict"] == "tie"
    assert headline(*frame, margin=0.2)["margin"] == 0.2


def test_an_interval_for_a_plan_is_narrower_than_one_that_allows_looks() -> None:
    frame = frames(rates(1.1, boots=3))
    looked, planned = headline(*frame), headline(*frame, planned_boots=3)
    assert planned["ci_high"] - planned["ci_low"] < looked["ci_high"] - looked["ci_low"]


def test_each_cell_has_the_boots_that_were_planned_for_it() -> None:
    """Two cells of three boots: for one three were planned, for the other six, of which three are a look beforehand."""
    values = np.concatenate([rates(1.1, boots=3)] * 2)
    trials, windows = frames(values)
    first, second = sorted(trials["concurrency"].unique())
    planned = pl.when(pl.col("concurrency") == first).then(3).otherwise(6)
    rows = judge(trials, windows, planned_boots=planned).filter(metric="throughput").sort("concurrency")
    for concurrency, boots in ((first, 3), (second, None)):
        alone = judge(trials, windows, planned_boots=boots).filter(metric="throughput", concurrency=concurrency)
        kept = ["ratio", "ci_low", "ci_high", "verdict", "p_value", "equal_speed_low"]
        assert rows.filter(concurrency=concurrency).select(kept).equals(alone.select(kept), null_equal=True)
    widths = (rows["ci_high"] - rows["ci_low"]).to_list()
    assert widths[0] < 0.6 * widths[1]


def test_a_plan_that_the_trials_carry_is_read_from_them() -> None:
    """`stopping: fixed`: at just that many boots the interval is a plan's; where repeats disagree, or more were added,
    it is that of one who looked."""
    trials, windows = frames(rates(1.1, boots=3))
    kept = ("ratio", "ci_low", "ci_high", "verdict", "p_value", "q_value", "equal_speed_high", "boots_wanted")

    def read(frame: pl.DataFrame, **options: Any) -> list[Any]:
        row = headline(frame, windows, **options)
        return [pytest.approx(row[name]) if isinstance(row[name], float) else row[name] for name in kept]

    planned, looked = read(trials, planned_boots=3), read(trials)
    assert planned != looked
    for said, like in ((3, planned), (4, looked), (None, looked)):
        assert read(trials.with_columns(planned_boots=pl.lit(said, pl.Int64))) == like
    grown = trials.with_columns(planned_boots=pl.when(pl.col("repeat") == 2).then(3).otherwise(2).cast(pl.Int64))
    assert read(grown) == looked
    # What is said for the reading goes before what the trials carry.
    assert read(trials.with_columns(planned_boots=pl.lit(9, pl.Int64)), planned_boots=3) == planned


@pytest.mark.parametrize("boots", [1, 2])
def test_fewer_than_three_boots_decide_nothing(boots: int) -> None:
    row = headline(*frames(rates(2.0, boots=boots)))
    assert row["verdict"] == "undecided"
    assert row["ratio"] == pytest.approx(2.0, rel=0.05)
    assert (row["ci_low"] is None) == (boots == 1)
    assert f"{boots} of at least 3 boots" in row["reasons"]
    assert row["boots_wanted"] == 3
    assert row["gpu_minutes"] == pytest.approx((3 - boots) * (60 + 2 * 30) / 60)
    assert row["next_step"].startswith(
        f"more boots: {3 - boots}; `python -m orchestrator.sweep sweeps/planted.yaml --store STORE --repeats 3` "
        f"measures them beside the {boots} there are: about"
    )


def undecided_because(trials: pl.DataFrame, windows: pl.DataFrame, *words: str) -> None:
    row = headline(trials, windows)
    assert row["verdict"] == "undecided"
    assert row["map_verdict"] == "undecided"
    said = "; ".join(row["reasons"])
    for word in words:
        assert word in said
    assert row["next_step"]


def changed(frame: pl.DataFrame, where: pl.Expr, **to: Any) -> pl.DataFrame:
    return frame.with_columns(
        **{name: pl.when(where).then(pl.lit(value)).otherwise(name) for name, value in to.items()}
    ).cast(dict(frame.schema))  # type: ignore[arg-type]


MPS, FIRST = pl.col("arm") == "mps2", pl.col("repeat") == 0


def test_all_failed() -> None:
    trials, windows = frames(rates(1.5), outcome="failed", reason="BootError: out of memory")
    undecided_because(trials, windows, "no repeat with both arms", "mps2 failed 4×: BootError: out of memory")


def test_one_arm_skipped() -> None:
    trials, windows = frames(rates(1.5))
    trials = changed(trials, MPS, outcome="skipped", reason="does not fit", boot_id=None, residency=None, gpu_name=None)
    undecided_because(trials, windows, "mps2 skipped 4×: does not fit")


def test_one_arm_missing_in_some_repeats_counts_the_others() -> None:
    trials, windows = frames(rates(1.5))
    row = headline(trials.filter(~(MPS & FIRST)), windows)
    assert (row["verdict"], row["boots"]) == ("wins", 3)
    assert "mps2 has no trial in 1 of 4 repeats" in "; ".join(row["reasons"])


def test_the_baseline_missing_altogether() -> None:
    trials, windows = frames(rates(1.5))
    undecided_because(trials.filter(MPS), windows, "single has no trial in 4 of 4 repeats")


def test_no_windows_at_all() -> None:
    trials, windows = frames(rates(1.5))
    undecided_because(trials, windows.clear(), "no paired window with a positive throughput")


def test_zero_tokens_and_nan() -> None:
    trials, windows = frames(rates(1.5))
    zero = windows.with_columns(output_tokens=pl.lit(0, pl.Int64))
    undecided_because(trials, zero, "no paired window with a positive throughput")
    broken = judge(trials, windows.with_columns(ttft_p50_s=pl.lit(math.nan), e2e_p50_s=pl.lit(math.inf)))
    assert broken.filter(pl.col("metric").is_in(["ttft_p50", "e2e_p50"]))["verdict"].to_list() == ["undecided"] * 2
    assert broken.filter(metric="throughput")["verdict"].item() == "wins"
    undecided_because(trials, windows.with_columns(duration_s=pl.lit(0.0)), "no paired window")


def test_one_window_a_boot_is_said() -> None:
    row = headline(*frames(rates(1.5, rounds=1)))
    assert row["verdict"] == "wins"
    assert any("one pair of windows a boot" in reason for reason in row["reasons"])


def test_a_third_of_the_windows_not_certified_is_the_limit() -> None:
    trials, windows = frames(rates(1.5))
    mps = pl.col("trial_id").is_in(trials.filter(arm="mps2")["trial_id"].to_list())
    torn = changed(windows, mps & (pl.col("round_index") < 3), certified=False)
    saw = pl.concat_list(pl.format("mps_attachment: {} of 2 attached", "round_index"))
    torn = torn.with_columns(certificate_failures=pl.when(~pl.col("certified")).then(saw))
    undecided_because(trials, torn, "12 of 24 windows of mps2 not certified (mps_attachment 12×)")
    few = headline(trials, changed(windows, mps & (pl.col("round_index") < 2), certified=None))
    assert (few["verdict"], few["windows"]) == ("wins", 16)
    assert "8 of 24 windows of mps2 not certified" in few["reasons"]


@pytest.mark.parametrize(
    ("where", "to", "words"),
    [
        (FIRST, {"gpu_name": "NVIDIA H200"}, "GPUs of different kinds: NVIDIA H100, NVIDIA H200"),
        (FIRST, {"software": json.dumps({"vllm": "0.26.0"})}, "software differs between repeats: vllm 0.25.1 | 0.26.0"),
        (FIRST, {"software": "torn"}, "software differs between repeats: unreadable record"),
        (FIRST & MPS, {"gpu_uuid": "GPU-other"}, "arms of one repeat on different GPUs in 1 repeats"),
        (FIRST & MPS, {"engine_args": '{"a": 1}'}, "mps2 was run with different engine_args"),
        (FIRST, {"cores_per_engine": 4, "pinned": False}, "single was run with different cores_per_engine, pinned"),
        (MPS & (pl.col("repeat") < 2), {"boot_id": "same"}, "repeats share a boot of the candidate"),
    ],
)
def test_mixed_worlds_are_refused(where: pl.Expr, to: dict[str, Any], words: str) -> None:
    trials, windows = frames(rates(1.5))
    undecided_because(changed(trials, where, **to), windows, words)


def test_different_gpus_of_a_kind_between_repeats_are_fine() -> None:
    trials, _ = frame = frames(rates(1.5))
    assert trials["gpu_uuid"].n_unique() == 4
    assert headline(*frame)["verdict"] == "wins"


def test_backends_and_residencies_are_judged_apart() -> None:
    trials, windows = frames(rates(1.5))
    mixed = changed(trials, FIRST, backend="vllm")
    assert judge(mixed, windows).filter(metric="throughput")["boots"].to_list() == [3, 1]
    mixed = changed(trials, FIRST, residency="alone")
    assert judge(mixed, windows).filter(metric="throughput").select("residency", "boots").rows() == [
        ("alone", 1), ("resident", 3),
    ]  # fmt: skip


def test_a_ratio_that_drifts_over_the_margin_is_not_decided() -> None:
    steady = rates(1.10, sd=0.002)
    drifting = steady.copy()
    drifting[:, :, 1] += np.linspace(0.09, -0.09, 6)
    assert headline(*frames(steady))["verdict"] == "wins"
    undecided_because(*frames(drifting), "the verdict would not hold over the whole drift", "the ratio drifts by -16")
    assert headline(*frames(drifting))["next_step"].startswith("a longer warm-up")
    large = drifting.copy()
    large[:, :, 1] += 0.5
    row = headline(*frames(large))
    assert row["verdict"] == "wins"
    assert any("the ratio drifts" in reason for reason in row["reasons"])


def test_a_bistable_arm_is_named() -> None:
    values = rates(1.5, rounds=8, sd=0.002)
    values[:, :, 0] += 0.3 * np.array([0, 1, 0, 0, 1, 1, 0, 1])
    assert any(reason.startswith("single is bistable, modes 3") for reason in headline(*frames(values))["reasons"])


def test_carry_over_is_named() -> None:
    trials, windows = frames(noisy(np.random.default_rng(3), (1, 4, 3, 6), sd=0.002) + 8.0, THREE_ARMS)
    hot = (pl.col("previous_arm") == "mps2") & pl.col("trial_id").is_in(
        trials.filter(arm="single")["trial_id"].to_list()
    )
    cooler = windows.with_columns(
        output_tokens=pl.when(hot).then(pl.col("output_tokens") * 0.95).otherwise("output_tokens")
    )
    verdicts = judge(trials, cooler.cast(dict(windows.schema))).filter(
        metric="throughput", arm="mps2", baseline="single"
    )  # type: ignore[arg-type]
    assert any("single differs by -5" in reason and "after mps2" in reason for reason in verdicts["reasons"].item())


def test_nothing_gives_nothing() -> None:
    empty = judge(TRIALS.to_frame(), WINDOWS.to_frame())
    assert empty.schema == VERDICTS
    assert empty.is_empty()
    only, windows = frames(rates(1.5))
    assert judge(only.filter(~MPS), windows).is_empty()


def test_series_without_any_scatter_are_sound() -> None:
    row = headline(*frames(np.zeros((1, 3, 2, 4)) + 8.0))
    assert (row["verdict"], row["ratio"]) == ("tie", 1.0)
    assert headline(*frames(np.zeros((1, 3, 2, 4)) + 8.0), margin=0.0)["verdict"] in ("tie", "undecided")


def test_equal_arms_have_a_winner_in_no_more_than_one_cell_of_twenty() -> None:
    verdicts = judge(*frames(noisy(np.random.default_rng(4), (2000, 3, 2, 4)) + 8.0), margin=0.0, planned_boots=3)
    decided = verdicts.filter(metric="throughput").select(pl.col("verdict").is_in(["wins", "loses"]).mean()).item()
    assert 0.01 < decided <= 0.06


def test_a_whole_map_of_equal_arms_names_hardly_any_and_a_map_of_gains_names_them() -> None:
    equal = noisy(np.random.default_rng(5), (1000, 4, 2, 4)) + 8.0
    assert judge(*frames(equal), margin=0.0)["map_verdict"].is_in(["wins", "loses"]).sum() == 0
    equal[:, :, 1] += 0.5
    assert judge(*frames(equal)).filter(metric="throughput")["map_verdict"].eq("wins").sum() > 0.9 * 1000


def test_q_values_by_hand() -> None:
    harmonic = 1 + 1 / 2 + 1 / 3
    found = benjamini_yekutieli(np.array([0.02, 0.001, 0.5]), 3, 3)
    assert found == pytest.approx([0.03 * harmonic, 0.003 * harmonic, 0.5 * harmonic])
    assert benjamini_yekutieli(np.array([0.04, 0.03]), 2, 2) == pytest.approx([0.06, 0.06])


def test_all_forms_of_output(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = judge(*frames(rates(1.5, boots=2)))
    show(verdicts, "json")
    assert json.loads(capsys.readouterr().out)[0]["reasons"][0] == "2 of at least 3 boots"
    show(verdicts, "csv")
    assert "2 of at least 3 boots" in capsys.readouterr().out.splitlines()[1]
    show(verdicts, "table")
    assert "predictions of a model" in " ".join(capsys.readouterr().out.split())
    show(verdicts.clear(), "table")
    assert "no verdicts" in capsys.readouterr().out


def write_store(root: Path, trials: pl.DataFrame, windows: pl.DataFrame) -> str:
    store = ResultStore.open(str(root), create=True)
    for (repeat_id,), arms in trials.partition_by("repeat_id", as_dict=True).items():
        attempt = pl.lit(f"attempt-of-{repeat_id}")
        rows = windows.filter(pl.col("trial_id").is_in(arms["trial_id"].to_list()))
        tables = {"trials": arms.with_columns(attempt_id=attempt), "windows": rows.with_columns(attempt_id=attempt)}
        assert store.write_repeat("planted", str(repeat_id), f"attempt-of-{repeat_id}", tables, 1)
    return str(root)


def test_the_command_reads_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", *frames(rates(1.5)))
    assert main([store, "--format", "json", "--sweep", "planted", "--backend", "simulated"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["metric"]: row["verdict"] for row in rows}["throughput"] == "wins"
    assert main([store, "--format", "json", "--backend", "vllm"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main([store]) == 0
    assert "wins" in capsys.readouterr().out


def test_the_command_says_what_is_wrong_with_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--margin", "1.5"])


HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Any], pl.Expr, str]] = {
    "all failed": ({"outcome": "failed", "reason": "BootError: gone"}, {}, pl.lit(True), "mps2 failed 4×: BootError"),
    "zero tokens": ({}, {"output_tokens": 0}, pl.lit(True), "no paired window with a positive throughput"),
    "NaN": ({}, {"duration_s": math.nan}, pl.lit(True), "no paired window with a positive throughput"),
    "mixed versions": ({"software": '{"vllm": "0.26.0"}'}, {}, FIRST, "software differs between repeats: vllm"),
    "mixed GPUs": ({"gpu_name": "NVIDIA H200"}, {}, FIRST, "GPUs of different kinds"),
}


@pytest.mark.parametrize("case", [*HOSTILE, "one arm missing", "one window"])
def test_the_command_refuses_a_verdict_on_hostile_data_and_says_why(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials, windows = frames(rates(1.5))
    if case == "one arm missing":
        trials, words = trials.filter(~MPS).vstack(trials.filter(MPS & FIRST)), "mps2 has no trial in 3 of 4 repeats"
    elif case == "one window":
        windows, words = windows.head(1), "no paired window with a positive throughput"
    else:
        of_trials, of_windows, where, words = HOSTILE[case]
        trials, windows = changed(trials, where, **of_trials), changed(windows, pl.lit(True), **of_windows)
    assert main([write_store(tmp_path / "store", trials, windows), "--format", "json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out) if row["metric"] == "throughput")
    assert (row["verdict"], row["map_verdict"]) == ("undecided", "undecided")
    assert words in "; ".join(row["reasons"])
    assert row["next_step"]
