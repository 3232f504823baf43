"""What a second engine adds before and after tuning, from stores whose engines got faster by known factors."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import polars as pl
import pytest

from dashboards.gains_by_settings import (
    SWEEP,
    gains_by_settings,
    graphs_in_words,
    means_in_words,
    settings_means,
    settings_table,
)
from dashboards.settings_picture import main, settings_picture
from orchestrator.errors import StoreError
from orchestrator.store import ResultStore
from tests.synthetic_landscape import landscape, planted_ratio, write

MODELS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B")
CONTEXTS = (128, 512)
PIECES, WHOLE = ("FULL_AND_PIECEWISE", 1024), ("FULL", 8192)
SINGLE, PAIR = 1.5, 1.25  # how much faster the later store's engines are, by themselves and two of them


def store_with(
    folder: Path, graphs: tuple[str, int], single: float = 1.0, pair: float = 1.0, models: tuple[str, ...] = MODELS
) -> ResultStore:
    """The landscape, measured with `graphs`: rates of arms with one engine and with two times the factors."""
    trials, windows = landscape(models, CONTEXTS, repeats=2, backend="vllm", noise=0.0)
    facts = json.dumps({"cudagraph_mode": graphs[0], "max_capture_tokens": graphs[1]})
    trials = trials.with_columns(sweep=pl.lit(SWEEP), engine=pl.lit(facts))
    engines = trials.select("trial_id", "engines")
    factor = pl.when(pl.col("engines") == 1).then(single).otherwise(pair)
    longer = windows.join(engines, on="trial_id").with_columns(duration_s=pl.col("duration_s") / factor)
    store = ResultStore.open(str(folder), create=True)
    write(store, trials, longer.select(windows.columns))
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[ResultStore]:
    folder = tmp_path_factory.mktemp("stores")
    return [store_with(folder / "before", PIECES), store_with(folder / "after", WHOLE, SINGLE, PAIR)]


def test_the_planted_factors_come_back_cell_by_cell_and_as_means(stores: list[ResultStore]) -> None:
    rows = gains_by_settings(stores)
    assert rows.height == len(MODELS) * len(CONTEXTS) * 2
    for row in rows.iter_rows(named=True):  # windows hold whole tokens, thousands of them
        first = planted_ratio(row["model"], row["prompt_tokens"], "mps2")
        host = planted_ratio(row["model"], row["prompt_tokens"], "timesliced2")
        after = PAIR / SINGLE if row["order"] else 1.0
        assert row["ratio"] == pytest.approx(first * after, rel=1e-3) and row["host"] == pytest.approx(
            host * after, rel=1e-3
        )
        assert row["overlap"] == pytest.approx(first / host, rel=1e-3)
        assert row["settings"] == ("to 8,192, whole" if row["order"] else "to 1,024, in pieces")
    before, after = settings_means(rows).iter_rows(named=True)
    assert (before["single"], before["mps2"]) == (1.0, 1.0)
    assert after["single"] == pytest.approx(SINGLE) and after["mps2"] == pytest.approx(PAIR)
    assert after["gain"] == pytest.approx(before["gain"] * PAIR / SINGLE) and after["cells"] == 4
    assert "over the 4 cells of Qwen2.5-0.5B and Qwen2.5-1.5B" in means_in_words(rows)
    assert f"to 8,192, whole: one engine {SINGLE:.2f}, two {PAIR:.2f}, the gain {after['gain']:.2f}" in means_in_words(
        rows
    )
    shown = settings_table(rows).splitlines()[2:]
    assert [line.split(" | ")[2] for line in shown] == ["to 1,024, in pieces", "to 8,192, whole"] * 4


def test_a_cell_of_one_store_alone_says_nothing(tmp_path: Path, stores: list[ResultStore]) -> None:
    more = store_with(tmp_path / "more", WHOLE, models=(*MODELS, "Qwen/Qwen2.5-3B"))
    rows = gains_by_settings([stores[0], more])
    assert set(rows["model"]) == set(MODELS)
    alone = store_with(tmp_path / "alone", WHOLE, models=("Qwen/Qwen2.5-3B",))
    nothing = gains_by_settings([stores[0], alone])
    assert nothing.is_empty() and means_in_words(nothing) == ""
    assert set(gains_by_settings([stores[0], more, alone])["order"]) == {0, 1, 2}
    assert means_in_words(gains_by_settings([stores[0], more, alone])) == ""


def test_a_store_with_two_settings_is_refused() -> None:
    facts = [json.dumps({"cudagraph_mode": mode, "max_capture_tokens": largest}) for mode, largest in (PIECES, WHOLE)]
    with pytest.raises(StoreError, match="several settings of CUDA graphs"):
        graphs_in_words(pl.DataFrame({"engine": facts, "sweep": [SWEEP, SWEEP]}))


def test_the_picture_has_a_panel_a_model_and_heights_that_follow_the_rates(stores: list[ResultStore]) -> None:
    rows = gains_by_settings(stores)
    drawn = settings_picture(rows)
    assert drawn == settings_picture(rows)
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(drawn)
    words = [node.text or "" for node in root.iter(f"{space}text")]
    assert {"Qwen2.5-0.5B", "Qwen2.5-1.5B", "one engine, graphs to 1,024, in pieces"} <= set(words)
    dots = [(node.get("fill"), float(node.get("cy") or "nan")) for node in root.iter(f"{space}circle")]
    assert len(dots) == 4 * len(MODELS) * len(CONTEXTS)
    zero, half = (float(root.findall(f"{space}text")[words.index(tick)].get("y") or "nan") for tick in ("×0", "×0.5"))
    after = [(zero - 4 - y) / (zero - half) * 0.5 for fill, y in dots if fill == "#d9822b"]
    assert after == pytest.approx([SINGLE] * 4, abs=0.01)


def test_the_command_line_writes_the_picture_or_says_why_not(
    tmp_path: Path, stores: list[ResultStore], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "settings.svg"
    assert main([*(store.uri for store in stores), "-o", str(output)]) == 0
    assert output.read_text() == settings_picture(gains_by_settings(stores))
    assert main([stores[0].uri, str(tmp_path / "nowhere"), "-o", str(output)]) == 2
    assert "no store" in capsys.readouterr().err
    assert main([stores[0].uri, "-o", str(output)]) == 2
    assert "no cell of the landscape in common" in capsys.readouterr().err
