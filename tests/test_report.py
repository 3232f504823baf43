"""The report from a real store, as text; tests/test_browser.py opens it."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from dashboards import report, theme
from dashboards.page import Page
from dashboards.world import split
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge
from tests.synthetic_landscape import landscape, store_of, write

SMALL = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-3B")  # models, where it does not matter how many there are


class Tags(HTMLParser):
    """Collects every tag's attributes, and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    @property
    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.attributes if "id" in attributes]

    def count(self, kind: str) -> int:
        return sum(kind in (attributes.get("class") or "").split() for _, attributes in self.attributes)


@pytest.fixture
def store(synthetic: tuple[ResultStore, str]) -> ResultStore:
    return synthetic[0]


@pytest.fixture
def page(synthetic: tuple[ResultStore, str]) -> str:
    return synthetic[1]


def words(text: str) -> str:
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def test_opens_with_the_answer_that_the_verdicts_give(page: str) -> None:
    rows = judge(*landscape()).filter(metric="throughput", arm="mps2", baseline="single")
    wins, open_ = len(rows.filter(verdict="wins")), len(rows.filter(verdict="undecided"))
    visible = words(page)
    assert f"Of 16 cells, mps2 wins in {wins}, " in visible and f"; {open_} are undecided." in visible
    assert visible.index("Of 16 cells") < visible.index("Where it wins")


def test_every_part_of_a_prediction_says_so(page: str) -> None:
    assert f"<title>{theme.SIMULATED}" in page
    assert words(page).count("class='simulated-banner'") == 1
    tags = Tags(page)
    plots = [attributes for _, attributes in tags.attributes if attributes.get("class") == "plot"]
    assert len(plots) >= 9
    assert all(str(plot["aria-label"]).startswith(theme.SIMULATED) for plot in plots)
    assert words(page).count("<caption>") == words(page).count("simulated-inline") == 4


def test_a_measured_store_never_says_simulated(tmp_path: Path) -> None:
    text = report.report(store_of(tmp_path, *landscape(SMALL, backend="vllm", contexts=(128, 512))))
    assert "SIMULATED" not in text
    assert "synthetic on H100, backend vllm" not in words(text)  # one world needs no heading of its own


def test_measurement_and_prediction_stand_apart(tmp_path: Path) -> None:
    store = store_of(tmp_path, *landscape(SMALL, contexts=(128, 512)))
    trials, windows = landscape(SMALL, backend="vllm", contexts=(128, 512), seed=8)
    renamed = [pl.col(name) + "v" for name in ("repeat_id", "trial_id", "attempt_id")]
    write(store, trials.with_columns(renamed), windows.with_columns(renamed[1:]))
    text = words(report.report(store))
    assert text.index("synthetic on H100, backend vllm") < text.index("class='simulated-banner'")
    assert text.count("<p class='answer'>") == 2
    ids = Tags(text).ids
    assert len(ids) == len(set(ids)) and {"w1-map", "w2-map"} <= set(ids)


def test_needs_nothing_but_itself(page: str) -> None:
    for tag, attributes in Tags(page).attributes:
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), f"<{tag} {name}={target[:60]}>"
    assert len(page.encode()) < 8_000_000
    assert page.count("plotly.js (cartesian - minified) v") == 1
    assert "default-src 'none'" in page


def test_is_the_same_for_the_same_store(store: ResultStore, page: str) -> None:
    assert report.report(store) == page
    ids = Tags(page).ids
    assert len(ids) == len(set(ids))


def test_csv_holds_every_verdict(page: str) -> None:
    [link] = [attributes for tag, attributes in Tags(page).attributes if attributes.get("class") == "download"]
    data = base64.b64decode(str(link["href"]).split(",", 1)[1])
    rows = pl.read_csv(data)
    assert len(rows) == len(judge(*landscape()))
    assert {"model", "verdict", "reasons", "ci_low"} <= set(rows.columns)


def test_names_lost_trials_and_the_command_that_repeats_it(page: str) -> None:
    visible = words(page)
    assert "KV of 64 requests does not fit: 91 GiB of 80 GiB" in visible
    assert "MpsFault: the server is in FAULT" in visible and "CUDA error &lt;unspecified&gt;" in visible
    assert "in-flight: 61 of 64 clients &lt;asked&gt;" in visible
    assert "# &lt;b&gt;as it was run&lt;/b&gt;" in visible
    assert "specs/sweep=synthetic/0123456789abcdef.yaml --store NEW_STORE --backend simulated" in visible


def test_a_torn_file_is_told(tmp_path: Path) -> None:
    store = store_of(tmp_path, *landscape(models=("Qwen/Qwen2.5-0.5B",), contexts=(128,)))
    torn = sorted((tmp_path / "windows" / "sweep=synthetic").glob("*.parquet"))[0]
    torn.write_bytes(torn.read_bytes()[:100])
    text = words(report.report(store))
    assert "Left out of this report" in text and torn.name in text


def test_an_empty_store_gives_a_page_with_words(tmp_path: Path) -> None:
    text = report.report(ResultStore.open(str(tmp_path), create=True))
    assert "nothing to answer from" in text and Tags(text).count("plot") == 0


def test_a_store_where_all_failed_gives_a_sound_page(tmp_path: Path) -> None:
    trials, windows = landscape(contexts=(128,))
    failed = trials.with_columns(outcome=pl.lit("failed"), reason=pl.lit("BootError: <no memory>"), boot_id=None)
    text = words(report.report(store_of(tmp_path, failed, windows.clear())))
    assert "BootError: &lt;no memory&gt;" in text
    assert "Of 4 cells, mps2 wins in 0, loses in 0, ties in 0 against single; 4 are undecided." in text


def test_one_sweep_can_be_asked_for(store: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([store.uri, "-o", str(tmp_path / "r.html"), "--sweep", "other"]) == 2
    assert "it holds: synthetic" in capsys.readouterr().err
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert report.main([store.uri, "-o", str(tmp_path / "r.html"), "--sweep", "synthetic"]) == 0
    assert (tmp_path / "r.html").stat().st_size > 1_500_000


def test_two_figures_cannot_have_one_name() -> None:
    page = Page("t")
    fig = theme.nothing("a", "b")
    page.figure("map A", fig)
    with pytest.raises(ValueError, match="map-a"):
        page.figure("map a", fig)


def test_the_command_imports_neither_ray_nor_an_engine() -> None:
    code = (
        "import sys, dashboards.report, dashboards.picture, dashboards.figures;"
        "print([name for name in ('ray', 'vllm', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_measurements_come_first_and_of_those_the_sweep_with_the_most_cells() -> None:
    trials, windows = landscape(SMALL, backend="vllm")
    few = trials.filter(prompt_tokens=trials["prompt_tokens"].min()).with_columns(sweep=pl.lit("aaa"))
    many = trials.with_columns(sweep=pl.lit("zzz"))
    predicted = many.with_columns(backend=pl.lit("simulated"), sweep=pl.lit("a"))
    worlds = split(pl.concat([predicted, few, many]), windows)
    assert [(world.sweep, world.simulated) for world in worlds] == [("zzz", False), ("aaa", False), ("a", True)]
