"""Figures say what the frames say: positions, signs, words, and which numbers are predictions."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from dashboards import answer, cells, explanation, figures, gain_curves, health, picture, theme
from orchestrator.records import TRIALS, WINDOWS
from orchestrator.verdicts import VERDICTS, judge
from tests.synthetic_landscape import CONTEXTS, SIZES, landscape

HOSTILE = 'evil/<img src=x onerror="alert(1)">-3B'
Frames = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


def frames(backend: str = "simulated", **options: object) -> Frames:
    """(trials, measured, verdicts)."""
    trials, windows = landscape(backend=backend, **options)  # type: ignore[arg-type]
    return trials, cells.measured(trials, windows), judge(trials, windows)


@pytest.fixture(scope="module")
def predicted() -> Frames:
    return frames()


def gain(verdicts: pl.DataFrame) -> pl.DataFrame:
    return verdicts.filter(arm="mps2", baseline="single")


def every_figure(trials: pl.DataFrame, measured: pl.DataFrame, verdicts: pl.DataFrame) -> list[go.Figure]:
    one_cell = measured.filter(model=measured["model"][0], prompt_tokens=measured["prompt_tokens"][0])
    return [
        figures.verdict_map(gain(verdicts), trials),
        figures.gain_over_context(gain(verdicts)),
        figures.throughput_over_latency(measured, "tpot_p50_s"),
        figures.latency_ratios(gain(verdicts)),
        figures.bound_by(measured),
        figures.activity(measured),
        figures.window_trace(one_cell),
        figures.certificates(measured),
        figures.outcomes(trials),
    ]


def test_every_figure_of_a_simulated_store_says_so(predicted: Frames) -> None:
    for fig in every_figure(*predicted):
        assert theme.SIMULATED in fig.layout.title.text
        assert theme.said(fig).startswith(theme.SIMULATED)


def test_no_figure_of_a_measured_store_says_simulated() -> None:
    for fig in every_figure(*frames("vllm")):
        assert "SIMULATED" not in fig.to_json()
        assert len(theme.said(fig)) > 20


def test_backends_never_share_a_figure(predicted: Frames) -> None:
    mixed = [pl.concat(pair) for pair in zip(predicted, frames("vllm"), strict=True)]
    trials, measured, verdicts = mixed
    for draw in (
        lambda: figures.verdict_map(gain(verdicts)),
        lambda: figures.gain_over_context(gain(verdicts)),
        lambda: figures.throughput_over_latency(measured),
        lambda: figures.bound_by(measured),
        lambda: figures.outcomes(trials),
    ):
        with pytest.raises(ValueError, match="one backend a figure"):
            draw()


def test_empty_frames_give_words_and_not_an_error() -> None:
    trials, windows = TRIALS.to_frame(), WINDOWS.to_frame()
    measured, verdicts = cells.measured(trials, windows), VERDICTS.to_frame()
    assert cells.scenes(verdicts) == []
    for fig in (
        figures.verdict_map(verdicts),
        figures.gain_over_context(verdicts),
        figures.throughput_over_latency(measured),
        figures.latency_ratios(verdicts),
        figures.bound_by(measured),
        figures.activity(measured),
        figures.window_trace(measured),
        figures.certificates(measured),
        figures.outcomes(trials),
    ):
        assert "nothing to draw" in theme.said(fig)
        assert len(fig.layout.annotations) == 1


def test_map_puts_each_log_ratio_in_its_cell(predicted: Frames) -> None:
    trials, _, verdicts = predicted
    fig = figures.verdict_map(gain(verdicts), trials)
    heat = fig.data[0]
    rows = gain(verdicts).filter(metric="throughput")
    assert list(fig.layout.xaxis.ticktext) == ["128", "512", "2k", "8k"]
    assert [label for label in fig.layout.yaxis.ticktext] == [model.rsplit("/")[-1] for model in SIZES]
    for i, model in enumerate(SIZES):
        for j, context in enumerate(CONTEXTS):
            ratio = rows.filter(model=model, prompt_tokens=context)["ratio"].item()
            if ratio is None:
                assert heat.z[i][j] is None
            else:
                assert heat.z[i][j] == pytest.approx(math.log(ratio))
                assert theme.percent(ratio) in heat.text[i][j]
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax


def test_map_hatches_what_is_undecided_and_names_what_was_skipped(predicted: Frames) -> None:
    trials, _, verdicts = predicted
    fig = figures.verdict_map(gain(verdicts), trials)
    open_ = gain(verdicts).filter(pl.col("ratio").is_not_null(), metric="throughput", verdict="undecided")
    hatched = {(x, round(base + 0.5)) for x, base in zip(fig.data[1].x, fig.data[1].base, strict=True)}
    models, contexts = list(SIZES), list(CONTEXTS)
    places = open_.select("prompt_tokens", "model").iter_rows()
    assert hatched == {(contexts.index(context), models.index(model)) for context, model in places}
    assert [note.text for note in fig.layout.annotations] == ["<i>skipped</i>"]
    assert (fig.layout.annotations[0].x, fig.layout.annotations[0].y) == (3, 3)


def test_slope_of_an_exactly_log_linear_gain_comes_back_without_error() -> None:
    _, _, verdicts = frames(models=("Qwen/Qwen2.5-0.5B",), contexts=(128, 256, 512, 1024))
    rows = gain(verdicts).filter(metric="throughput").with_columns(ratio=1.9 - 0.05 * pl.col("prompt_tokens").log(2))
    slope = gain_curves.slopes(rows).row(0, named=True)
    assert slope["contexts"] == 4
    assert (slope["slope"], slope["low"], slope["high"]) == pytest.approx((-0.05, -0.05, -0.05))


def test_slope_interval_covers_a_planted_slope_at_its_rate() -> None:
    _, _, verdicts = frames(models=("Qwen/Qwen2.5-0.5B",), contexts=(128, 256, 512, 1024, 2048))
    rows = gain(verdicts).filter(metric="throughput")
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        noise = pl.Series(rng.normal(0, 0.02, len(rows)))
        fit = gain_curves.slopes(rows.with_columns(ratio=2.0 - 0.08 * pl.col("prompt_tokens").log(2) + noise))
        covered += fit["low"][0] <= -0.08 <= fit["high"][0]
    assert 0.91 <= covered / 300 <= 0.985


def test_two_contexts_have_no_slope() -> None:
    _, _, verdicts = frames(contexts=(128, 512))
    assert gain_curves.slopes(gain(verdicts)).is_empty()


def test_rate_counts_prompt_tokens_for_prefill() -> None:
    trials, windows = landscape(kinds=("mixed", "prefill"))
    measured = cells.measured(trials, windows)
    for kind, counted in (("mixed", "tokens_out"), ("prefill", "tokens_in")):
        rows = measured.filter(kind=kind)
        assert rows["rate"].to_list() == pytest.approx((rows[counted] / rows["duration_s"]).to_list())
    assert len(measured) == len(windows)


def test_scenes_split_what_may_not_share_axes() -> None:
    trials, _, verdicts = frames(kinds=("mixed", "prefill"), concurrencies=(16, 64))
    found = cells.scenes(verdicts)
    assert [(scene.kind, scene.concurrency) for scene in found] == [
        ("mixed", 16), ("mixed", 64), ("prefill", 16), ("prefill", 64),
    ]  # fmt: skip
    assert sum(len(scene.of(verdicts)) for scene in found) == len(verdicts)
    assert sum(len(scene.of(trials)) for scene in found) == len(trials)


def test_a_landscape_in_which_each_cell_has_its_own_load_is_one_scene() -> None:
    trials, _, verdicts = frames()
    contexts = verdicts["prompt_tokens"].unique().sort()
    fewer = pl.when(pl.col("prompt_tokens") == contexts[-1]).then(4).otherwise(64).cast(pl.Int64)
    mixed, asked = (frame.with_columns(concurrency=fewer) for frame in (verdicts, trials))
    (scene,) = cells.scenes(mixed)
    assert scene.concurrency is None and "by cell" in scene.label
    assert len(scene.of(mixed)) == len(mixed) and len(scene.of(asked)) == len(asked)
    # A ladder in any one cell, and every map has a load of its own again.
    rung = mixed.filter(prompt_tokens=contexts[0]).with_columns(concurrency=pl.lit(32, pl.Int64))
    assert [scene.concurrency for scene in cells.scenes(pl.concat([mixed, rung]))] == [4, 32, 64]


def test_scenes_split_output_lengths_only_where_a_context_has_several() -> None:
    _, _, verdicts = frames()
    longer = verdicts.filter(prompt_tokens=128).with_columns(output_tokens=pl.lit(512, pl.Int64))
    assert [scene.output_tokens for scene in cells.scenes(verdicts)] == [None]
    assert [scene.output_tokens for scene in cells.scenes(pl.concat([verdicts, longer]))] == [128, 512]


def test_throughput_over_latency_follows_the_ladder() -> None:
    _, measured, _ = frames(models=("Qwen/Qwen2.5-1.5B",), contexts=(512,), concurrencies=(8, 32, 128))
    fig = figures.throughput_over_latency(measured)
    lines = [trace for trace in fig.data if trace.mode == "lines+markers"]
    assert {trace.name for trace in lines} == {"single", "timesliced2", "mps2"}
    for trace in lines:
        assert len(trace.x) == 3
        assert list(trace.x) == sorted(trace.x)


def test_bound_shares_fill_each_cell(predicted: Frames) -> None:
    _, measured, _ = predicted
    shares = explanation.bound_shares(measured)
    whole = shares.group_by("arm", "model", "prompt_tokens").agg(pl.col("share").sum())["share"]
    assert whole.to_list() == pytest.approx([1.0] * len(whole))
    assert shares["windows"].max() <= 12


def test_trace_shows_every_window_and_marks_the_uncertified(predicted: Frames) -> None:
    _, measured, _ = predicted
    cell = measured.filter(model="Qwen/Qwen2.5-0.5B", prompt_tokens=128)
    fig = figures.window_trace(cell)
    assert sum(len(trace.x) for trace in fig.data) == len(cell)
    crosses = [trace for trace in fig.data if trace.marker.symbol == "x-thin"]
    assert [len(trace.x) for trace in crosses] == [len(cell.filter(~pl.col("certified")))] == [1]
    assert "61 of 64 clients &lt;asked&gt;" in crosses[0].hovertext[0]


def test_health_counts_and_reasons(predicted: Frames) -> None:
    trials, measured, _ = predicted
    reasons = health.failure_reasons(measured)
    assert reasons.row(0, named=True)["check"] == "in-flight"
    assert reasons["windows"].sum() == len(measured.filter(~pl.col("certified")))
    lost = health.lost_trials(trials)
    assert lost["trials"].sum() == len(trials.filter(pl.col("outcome") != "ok"))
    assert set(lost["outcome"]) == {"skipped", "failed"}


def test_names_from_the_store_are_escaped() -> None:
    trials, windows = landscape(models=("Qwen/Qwen2.5-3B",), contexts=(128, 512, 2048))
    trials = trials.with_columns(model=pl.lit(HOSTILE), arm=pl.col("arm") + "<b>", baseline=pl.lit("single<b>"))
    measured, verdicts = cells.measured(trials, windows), judge(trials, windows)
    pair = verdicts.filter(arm="mps2<b>", baseline="single<b>")
    for fig in (
        figures.verdict_map(pair, trials),
        figures.gain_over_context(pair),
        figures.throughput_over_latency(measured),
        figures.latency_ratios(pair),
        figures.bound_by(measured),
        figures.activity(measured),
        figures.window_trace(measured.filter(prompt_tokens=512)),
        figures.outcomes(trials),
    ):
        fig.layout.meta = None  # the text alternative is plain text, escaped where a page uses it
        assert "<img" not in fig.to_json() and "mps2<b>" not in fig.to_json()


@pytest.mark.parametrize(
    ("names", "parameters", "ordered"),
    [
        (["a-7B", "b-0.5B", "c-270m", "d-13b"], None, ["c-270m", "b-0.5B", "a-7B", "d-13b"]),
        (["small", "a-7B"], None, ["a-7B", "small"]),
        (["small", "a-7B"], {"small": 10**6}, ["small", "a-7B"]),
        (["Qwen2.5-3B", "Qwen2.5-1.5B"], None, ["Qwen2.5-1.5B", "Qwen2.5-3B"]),
    ],
)
def test_model_order(names: list[str], parameters: dict[str, int] | None, ordered: list[str]) -> None:
    assert cells.model_order(names, parameters) == ordered


def test_labels_keep_the_organisation_where_names_would_collide() -> None:
    assert cells.model_labels(["a/x", "b/y"]) == {"a/x": "x", "b/y": "y"}
    assert cells.model_labels(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(1.42, "+42 %"), (0.9, "−10 %"), (1.0, "±0 %"), (1.0049, "±0 %"), (12.0, "×12"), (float("nan"), "n/a")],
)
def test_percent(ratio: float, words: str) -> None:
    assert theme.percent(ratio) == words.replace(" ", theme.NBSP)


def test_headline_counts_the_verdicts(predicted: Frames) -> None:
    _, _, verdicts = predicted
    rows = gain(verdicts).filter(metric="throughput")
    counts = {verdict: len(rows.filter(verdict=verdict)) for verdict in theme.VERDICT_MARKS}
    [sentence] = answer.headline(verdicts)
    assert sentence == (
        f"Of 16 cells, mps2 wins in {counts['wins']}, loses in {counts['loses']}, ties in {counts['tie']}"
        f" against single; {counts['undecided']} are undecided."
    )
    assert sum(counts.values()) == 16 and counts["wins"] > 0 and counts["undecided"] > 0


def test_headline_without_mps_speaks_of_the_arms_there_are() -> None:
    trials, windows = landscape()
    [sentence] = answer.headline(judge(trials.filter(pl.col("sharing") != "mps"), windows))
    assert sentence.startswith("Of 16 cells, timesliced2 wins in")


def test_picture_is_whole_deterministic_and_labelled(predicted: Frames) -> None:
    _, _, verdicts = predicted
    rows = picture.chosen(verdicts, None)
    drawn = picture.picture(rows)
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert theme.SIMULATED in texts
    known = rows.filter(pl.col("ratio").is_not_null())
    for row in known.iter_rows(named=True):
        assert f"{theme.VERDICT_MARKS[row['verdict']]} {theme.percent(row['ratio'])}" in texts
    assert drawn == picture.picture(picture.chosen(judge(*landscape()), None))
    _, _, real = frames("vllm")
    assert "SIMULATED" not in picture.picture(picture.chosen(real, "mps2"))
    # where both are there, what was measured is drawn
    assert picture.chosen(pl.concat([verdicts, real]), None)["backend"].unique().to_list() == ["vllm"]
