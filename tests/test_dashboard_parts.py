"""What the dashboard computes beside its figures, against planted truth: advice, recipes, pairs, summaries, buckets."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from plotly.offline import get_plotlyjs_version
from polars.testing import assert_frame_equal

from dashboards import cells, figures, plotly_js, settings, sweep_file
from dashboards.agreement import agreement
from dashboards.app import shell
from dashboards.app.chosen import Chosen
from dashboards.app.content import Parts, at_once
from dashboards.app.pages import PARTS
from dashboards.app.selection import Selection
from dashboards.app.site import Site
from dashboards.cell_records import records
from dashboards.latency_distribution import latencies, quantiles
from dashboards.recipe import flags, recipe
from dashboards.recommendation import advise
from dashboards.summary import commits, summary
from dashboards.telemetry import readings
from orchestrator import contrast
from orchestrator.records import REQUESTS, SAMPLES
from orchestrator.spec import SWEEPS
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge
from tests.s3_server import s3_server
from tests.synthetic_landscape import landscape, write

MODEL = "Qwen/Qwen2.5-0.5B"
Frames = tuple[pl.DataFrame, pl.DataFrame]


@pytest.fixture(scope="module")
def small() -> Frames:
    return landscape(models=(MODEL,), contexts=(512,))


def rows_of(schema: pl.Schema, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([dict.fromkeys(schema) | row for row in rows], schema=schema)


def test_a_rate_of_prefill_is_the_measured_one_and_counted_where_it_is_not_there(small: Frames) -> None:
    frame = pl.DataFrame(
        {
            "kind": ["prefill", "prefill", "mixed", "mixed"],
            "prompt_tokens": [100, 100, 100, 100],
            "output_tokens": [1, 1, 40, 40],
            "duration_s": [2.0, 2.0, 2.0, 2.0],
            "prefill_tokens_s": [60.0, None, None, None],
            "output_tokens_s": [None, None, None, 21.0],
        }
    )
    assert frame.select(rate=contrast.rate())["rate"].to_list() == [60.0, 50.0, 20.0, 21.0]


def test_advice_is_the_winner_and_without_one_the_baseline(small: Frames) -> None:
    trials, windows = small
    measured, verdicts = cells.measured(trials, windows), judge(trials, windows)
    advice = advise(measured, verdicts)
    assert (advice.arm, advice.concurrency) == ("mps2", 64) and "3 sets of boots" in advice.sure
    undecided = verdicts.with_columns(verdict=pl.lit("undecided"))
    assert advise(measured, undecided).arm == "single"
    impossible = advise(measured, verdicts, "tpot_p50_s", 1e-9)
    assert impossible.arm is None and "the lowest is" in impossible.sentence
    assert advise(measured.clear(), verdicts).options.is_empty()


def test_a_recipe_starts_each_engine_under_the_daemon_or_away_from_it(small: Frames) -> None:
    trials = small[0].with_columns(engine_args=pl.lit('{"load_format":"dummy","async_scheduling":false}'))
    mps = recipe(trials.filter(arm="mps2").with_columns(active_thread_percentage=pl.lit(60)).row(0, named=True))
    assert mps.count("vllm serve") == 2 and mps.count("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=60") == 2
    assert mps.index("nvidia-cuda-mps-control -d") < mps.index("vllm serve")
    assert "--no-async-scheduling" in mps and "load-format" not in mps
    alone = recipe(trials.filter(arm="single").row(0, named=True))
    assert alone.count("vllm serve") == 1 and "nvidia-cuda-mps-control" not in alone
    assert "CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)" in alone


def test_flags_survive_a_shell() -> None:
    words = flags({"max_num_seqs": 8, "enforce_eager": True, "hf_overrides": {"a b": "c'd"}, "seed": None})
    assert shlex.split(" ".join(words)) == [
        *("--max-num-seqs", "8", "--enforce-eager", "--hf-overrides", '{"a b": "c\'d"}')
    ]


def test_agreement_tells_overlap_from_apart_from_unknown(small: Frames) -> None:
    one = judge(*small).filter(metric="throughput")
    moved = one.with_columns(pl.col("ratio", "ci_low", "ci_high") * 2)
    words = {name: set(agreement(one, other)["word"]) for name, other in (("same", one), ("moved", moved))}
    assert words == {"same": {"overlap"}, "moved": {"apart"}}
    unknown = one.with_columns(ci_low=pl.lit(None, pl.Float64))
    assert set(agreement(one, unknown)["word"]) == {"open"}
    assert agreement(one, moved)["b_over_a"].to_list() == pytest.approx([2.0] * len(one))


def test_pairs_that_differ_in_one_setting_and_in_none(small: Frames) -> None:
    trials, windows = small
    verdicts = judge(trials, windows).filter(metric="throughput")
    assert settings.ablations(verdicts, trials).is_empty() and settings.same_against_same(verdicts, trials).is_empty()
    twin = pl.col("arm") == "mps2"
    alike = [pl.when(twin).then(pl.lit(value)).otherwise(name).alias(name) for name, value in (("engines", 1),)]
    alike += [pl.when(twin).then(pl.lit("single")).otherwise("sharing").alias("sharing")]
    alike += [pl.when(twin).then(None).otherwise("active_thread_percentage").alias("active_thread_percentage")]
    same = trials.with_columns(alike)
    found = settings.same_against_same(verdicts, same)
    assert set(found["arm"]) == {"mps2"}
    other = same.with_columns(engine_args=pl.when(twin).then(pl.lit("{}")).otherwise("engine_args"))
    assert set(settings.ablations(verdicts, other)["difference"]) == {"async_scheduling default (True)"}


def test_the_largest_graph_and_the_sizes_up_to_it_are_one_setting() -> None:
    dense, sparse = {"max_cudagraph_capture_size": 1024}, {"max_cudagraph_capture_size": 8192}
    sizes = {"cudagraph_capture_sizes": [1, 8192]}
    assert settings.differences(sparse | sizes, dense) == {"max_cudagraph_capture_size": (8192, 1024)}
    assert settings.differences(dense | sizes, dense) == {"cudagraph_capture_sizes": ([1, 8192], None)}


def test_readings_are_rates_of_all_engines_and_the_slowest_core(small: Frames) -> None:
    measured = cells.measured(*small).filter(pl.col("repeat") == 0, arm="mps2").head(1)
    row = measured.row(0, named=True)
    key = {name: row[name] for name in ("trial_id", "attempt_id", "window_index")}
    start = row["start_ns"]
    told = [("engine0", "output_tokens", 300.0), ("engine1", "output_tokens", 100.0)]
    told += [("engine0.core", "speed_mops", 150.0), ("engine1.core", "speed_mops", 90.0)]
    samples = rows_of(
        SAMPLES,
        [
            key | {"time_ns": start + 2_000_000_000, "source": source, "metric": metric, "value": value}
            for source, metric, value in told
        ],
    )
    found = dict(readings(samples, measured).select("metric", "value").iter_rows())
    assert found == {"output_tokens_per_s": 200.0, "speed_mops": 90.0}


def test_latencies_leave_out_first_requests_and_failed_ones(small: Frames) -> None:
    measured = cells.measured(*small).filter(pl.col("certified"), arm="mps2").head(1)
    row = measured.row(0, named=True)
    key = {name: row[name] for name in ("trial_id", "attempt_id", "window_index")}
    asked = row["output_tokens"]
    whole = key | {
        "status": "ok", "output_tokens_asked": asked, "output_tokens": asked,
        "sent_ns": 0, "first_token_ns": 10**9, "last_token_ns": 10**9 + (asked - 1) * 10**7,
    }  # fmt: skip
    residual = whole | {"output_tokens_asked": asked - 1, "output_tokens": asked - 1}
    failed = whole | {"status": "error", "first_token_ns": None}
    seen = latencies(rows_of(REQUESTS, [whole, residual, failed]), measured)
    assert len(seen) == 1
    assert seen.row(0, named=True)["ttft_s"] == 1.0 and seen["tpot_s"][0] == pytest.approx(0.01)
    assert set(quantiles(seen)["arm"]) == {"mps2"}


def test_a_summary_is_made_again_after_deletion_and_after_a_torn_file(small: Frames, tmp_path: Path) -> None:
    store = ResultStore.open(str(tmp_path / "store"), create=True)
    write(store, *small)
    folder = tmp_path / "cache"
    entries = commits(store)["synthetic"]
    first = summary(store, "synthetic", entries, folder)
    files = sorted(folder.iterdir())
    assert len(files) == 4
    torn = next(file for file in files if file.name.endswith("windows.parquet"))
    whole = torn.read_bytes()
    torn.write_bytes(whole[:100])
    assert summary(store, "synthetic", entries, folder).windows.equals(first.windows)
    assert torn.read_bytes() == whole
    for file in files:
        file.unlink()
    again = summary(store, "synthetic", entries, folder)
    assert_frame_equal(again.verdicts, first.verdicts)  # sums in parallel differ in the last digit
    assert sorted(folder.iterdir()) == files


def test_a_summary_is_read_and_not_judged_again(small: Frames, tmp_path: Path) -> None:
    store = ResultStore.open(str(tmp_path / "store"), create=True)
    write(store, *small)
    entries = commits(store)["synthetic"]
    first = summary(store, "synthetic", entries, tmp_path / "cache")
    for data in (tmp_path / "store" / "windows").rglob("*.parquet"):
        data.unlink()
    assert summary(store, "synthetic", entries, tmp_path / "cache").windows.equals(first.windows)


def test_a_sweep_of_one_cell_keeps_the_identity_of_its_repeats() -> None:
    text = (SWEEPS / "quickstart.yaml").read_text()
    whole = sweep_file.planned(text, "simulated", "H100")
    workload = whole[0].cell.workload
    cell = {
        "model": whole[0].cell.model, "kind": workload.kind, "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens, "concurrency": whole[0].cell.concurrency,
    }  # fmt: skip
    least = yaml.safe_load(text).get("repeats", 3)
    alone = sweep_file.planned(sweep_file.only_this_cell(text, cell, least + 2), "simulated", "H100")
    before, after = {repeat.repeat_id for repeat in whole}, {repeat.repeat_id for repeat in alone}
    assert len(after) == least + 2
    assert len(after & before) == least


@pytest.mark.long
def test_reads_a_bucket_as_it_reads_a_folder(small: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = ResultStore.open(server.uri("results"), create=True)
        write(store, small[0].filter(pl.col("repeat") < 2), small[1])
        site = Site([store], cached=False)
        assert site.refresh() and not site.snapshot.trouble
        chosen = Chosen(site.snapshot, Selection(model=MODEL, context=512))
        names = {getattr(block, "name", None) for part in ("cell-first", "records") for block in PARTS[part](chosen)}
        assert {"cell-windows", "cell-latencies", "cell-certificate"} <= names
        assert not site.refresh()
        write(store, small[0].filter(pl.col("repeat") == 2), small[1])
        assert site.refresh()
        trials = site.snapshot.places[0].world.trials
        assert trials["repeat"].n_unique() == 3
        windows = records(store, "windows", trials.filter(outcome="ok"))
        assert windows.sort("trial_id", "window_index")["output_tokens"].to_list() == (
            small[1].sort("trial_id", "window_index")["output_tokens"].to_list()
        )
    site.refresh()
    assert site.snapshot.trouble and site.snapshot.places


def test_the_bundle_draws_every_kind_of_trace_and_is_of_the_release_of_the_figures(
    small: Frames,
) -> None:
    """The bundle lies beside: a newer plotly, or a figure of another kind, needs another one."""
    assert plotly_js.plotly_js().splitlines()[1] == f"* plotly.js (cartesian - minified) v{plotly_js.VERSION}"
    assert get_plotlyjs_version().split(".")[0] == plotly_js.VERSION.split(".")[0]
    trials, windows = small
    measured, verdicts = cells.measured(trials, windows), judge(trials, windows)
    headline = verdicts.filter(metric="throughput", arm="mps2", baseline="single")
    drawn = [
        figures.verdict_map(headline), figures.gain_over_context(headline), figures.window_trace(measured),
        figures.busy_bars(measured), figures.certificates(measured), figures.outcomes(trials),
        figures.graph_modes(measured), figures.bound_by(measured), figures.throughput_over_latency(measured),
    ]  # fmt: skip
    kinds = {trace.type for fig in drawn for trace in fig.data}
    assert {"heatmap", "bar", "scatter"} <= kinds <= set(plotly_js.TRACES)


def test_what_most_is_decided_in_opens_first(tmp_path: Path, small: Frames) -> None:
    """Of two sweeps the one with answers, though the other has as many questions and a name before it."""
    trials, windows = small
    store = ResultStore.open(str(tmp_path), create=True)
    write(store, trials, windows)
    early = trials.filter(pl.col("repeat") == 0).with_columns(sweep=pl.lit("an-early-one"))
    write(store, early, windows)
    site = Site([store], cached=False)
    site.refresh()
    place = Chosen(site.snapshot, Selection()).place
    assert len(site.snapshot.places) == 2 and place is not None and place.world.sweep == "synthetic"


def test_a_new_page_holds_what_its_address_shows_and_waits_for_what_is_far_down(tmp_path: Path, small: Frames) -> None:
    store = ResultStore.open(str(tmp_path), create=True)
    write(store, *small)
    site = Site([store], cached=False)
    site.refresh()
    parts = Parts(site)
    plain = at_once(site, parts, "/", "")
    assert [slot.asked for slot in plain] == [["/", ""]] * 5 and plain[0].children and not plain[3].children
    chosen = at_once(site, parts, "/", f"model={MODEL}&context=512")
    assert [slot.asked is None for slot in chosen] == [False, False, False, True, True]
    assert chosen[0].asked == ["/", ""] and chosen[2].held is not None
    assert {name for name, _ in chosen[2].held["shape"]} == {"cell-ratios", "cell-windows"}
    assert at_once(site, parts, "/nowhere", "")[0].children == []


def test_commands_in_a_sentence_are_set_as_code() -> None:
    parts = shell.prose("more boots: 3; `python -m x --repeats 6` measures them")
    assert [getattr(part, "children", part) for part in parts] == [
        *("more boots: 3; ", "python -m x --repeats 6", " measures them")
    ]
