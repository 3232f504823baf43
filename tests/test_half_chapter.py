"""Halves of a model in the report and in the app: figures where a sweep has variants, and nothing where it has none."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest

from dashboards import report
from dashboards.app.pages import ablations
from dashboards.app.panel import Panel
from dashboards.app.site import Place
from dashboards.half_chapter import gains_by_halves, steps_by_part
from dashboards.world import World, split
from orchestrator.store import ResultStore
from tests.synthetic_landscape import landscape, store_of
from tests.test_report import Tags
from workloads.variants import VARIANTS

MODEL = "Qwen/Qwen2.5-3B"


def by_halves(kind: str = "decode-replay") -> tuple[pl.DataFrame, pl.DataFrame]:
    """One model whole, and each half of it under ids of its own with the same rates."""
    trials, windows = landscape(models=(MODEL,), kinds=(kind,))
    frames = [(trials, windows)]
    for variant in VARIANTS:
        own = {
            name: pl.concat_str(name, pl.lit(variant)) for name in ("trial_id", "repeat_id", "boot_id", "attempt_id")
        }
        there = {name: value for name, value in own.items() if name in windows.columns}
        model = {"model": pl.concat_str("model", pl.lit(f":{variant}"))}
        frames.append((trials.with_columns(**own, **model), windows.with_columns(**there)))
    both = zip(*frames, strict=True)
    return pl.concat(next(both)), pl.concat(next(both))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    return store_of(tmp_path_factory.mktemp("store"), *by_halves())


@pytest.fixture(scope="module")
def page(store: ResultStore) -> str:
    return report.report(store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on the same model without halves of it, as served."""
    return report.report(store_of(tmp_path_factory.mktemp("whole"), *landscape(models=(MODEL,))))


@pytest.fixture(scope="module")
def world(store: ResultStore) -> World:
    (world,) = split(store.read("trials"), store.read("windows"))
    return world


def test_one_figure_a_model_load_and_pair(world: World) -> None:
    found = gains_by_halves(world)
    assert list(found) == ["decode-replay, Qwen2.5-3B, 64 requests in flight: mps2 / single"]
    ((figure, rows),) = found.values()
    assert {trace.name for trace in figure.data} == {"full model", *VARIANTS}
    assert set(rows["model"]) == {MODEL, *(f"{MODEL}:{variant}" for variant in VARIANTS)}
    # One line for each, on top of one another: the halves have the whole model's rates here.
    assert len({tuple(trace.y) for trace in figure.data}) == 1


def test_a_sweep_without_variants_has_no_such_figure(whole: str) -> None:
    (plain,) = split(*landscape(models=(MODEL,)))
    assert gains_by_halves(plain) == {}
    assert "halves" not in Tags(whole).ids


def test_a_prediction_has_no_profile(world: World, store: ResultStore) -> None:
    assert world.simulated and steps_by_part(world, store) == {}


def test_the_report_has_a_section(page: str) -> None:
    assert {"halves", "halves-gain"} <= set(Tags(page).ids)
    assert "full model: " in page and all(f"{variant}: " in page for variant in VARIANTS)


def test_replayed_steps_have_no_latency_and_no_host_to_speak_of(page: str, whole: str) -> None:
    assert "latency" not in Tags(page).ids
    assert "splitting the batch (timesliced2 / single)" in page and "host parallelism" not in page
    assert "latency" in Tags(whole).ids
    assert "host parallelism (timesliced2 / single)" in whole and "splitting the batch" not in whole


def test_the_app_shows_them_with_the_ablations(world: World, store: ResultStore) -> None:
    chosen = SimpleNamespace(snapshot=SimpleNamespace(places=(Place(0, store, world),)))
    panels = [block for block in ablations.blocks(chosen) if isinstance(block, Panel)]  # type: ignore[arg-type]
    assert [panel.caption.split(".")[0] for panel in panels if panel.name.startswith("halves-")] == [
        "decode-replay, Qwen2"
    ]
    assert len({panel.name for panel in panels}) == len(panels)
