"""The app in a real browser: one server over a growing store and the measured record, one page for all tests."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from orchestrator.store import ResultStore
from orchestrator.verdicts import judge
from tests.synthetic_landscape import landscape, write

CHROMIUM = shutil.which("chromium")
RECORD = Path(__file__).parent.parent / "reference" / "h200"
MODELS, CONTEXTS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B"), (128, 512, 2048)
SYNTHETIC = "?store=0&sweep=synthetic"
MEASURED = "?store=1&sweep=smoke-gpu"
WAIT_MS = 30_000  # a machine that is busy with other tests draws late

expect.set_options(timeout=WAIT_MS)
pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")]


@dataclass
class Served:
    """A running app: `store` is the first of its two."""

    url: str
    store: ResultStore
    trials: pl.DataFrame
    windows: pl.DataFrame
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            body: bytes = answer.read()
            return body


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The command itself over two repeats of a sweep; the third is for the test that lets the store grow."""
    folder = tmp_path_factory.mktemp("app")
    store = ResultStore.open(str(folder / "store"), create=True)
    trials, windows = landscape(models=MODELS, contexts=CONTEXTS, kinds=("mixed", "prefill"))
    write(store, trials.filter(pl.col("repeat") < 2), windows)
    store.write_spec("synthetic", "0123456789abcdef", "name: synthetic\n")
    command = [sys.executable, "-m", "dashboards.app", store.uri, str(RECORD), "--port", "0", "--every", "0.5"]
    with subprocess.Popen([*command, "--no-cache"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = re.match(r"(http://127\.0\.0\.1:\d+) ", process.stdout.readline())
            assert said is not None
            yield Served(said[1], store, trials, windows)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def page(served: Served) -> Iterator[Page]:
    """One tab. What it complains of and whom it asks is kept, see `test_nothing_was_fetched_or_complained_of`."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
        tab.set_default_timeout(WAIT_MS)
        tab.on("console", lambda said: served.complaints.append(said.text) if said.type == "error" else None)
        tab.on("pageerror", lambda error: served.complaints.append(str(error)))
        tab.on("request", lambda asked: served.hosts.add(urlsplit(asked.url).netloc))
        yield tab
        browser.close()


def drawn(page: Page, panel: str) -> None:
    page.wait_for_selector(f"#panel-{panel} .js-plotly-plot .main-svg")


def drawn_when_near(page: Page, part: int, *panels: str) -> None:
    """Scroll to a part that waits for it."""
    page.evaluate(f"document.querySelector('#part-{part}').scrollIntoView()")
    for panel in panels:
        drawn(page, panel)


def axis_range(page: Page, panel: str) -> list[float]:
    found: list[float] = page.evaluate(
        f"document.querySelector('#panel-{panel} .js-plotly-plot').layout.yaxis.range.map(Number)"
    )
    return found


def zoomed(page: Page, panel: str) -> list[float]:
    """Drag a box over the middle of a figure, as a reader does; the range of the y axis that this leaves."""
    before = axis_range(page, panel)
    surface = page.locator(f"#panel-{panel} .nsewdrag")
    surface.scroll_into_view_if_needed()
    box = surface.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_function(
        f"() => document.querySelector('#panel-{panel} .js-plotly-plot').layout.yaxis.range[0] != {before[0]}"
    )
    return axis_range(page, panel)


def test_opens_on_the_measured_verdict_map(served: Served, page: Page) -> None:
    """With a prediction in the first store and a measurement in the second, the first store comes first."""
    page.goto(served.url + "/" + MEASURED)
    drawn(page, "verdict-map")
    expect(page.locator("h1")).to_have_text("When do several engines on one GPU beat one?")
    expect(page.locator("#part-0")).not_to_contain_text("SIMULATED — a prediction")
    expect(page.locator("#part-0 .answer")).to_contain_text("mps2")


def test_a_click_on_a_cell_opens_it(served: Served, page: Page) -> None:
    page.goto(served.url + "/" + MEASURED)
    drawn(page, "verdict-map")
    page.wait_for_selector("#panel-verdict-map [data-drawn]")
    box = page.locator("#panel-verdict-map .nsewdrag").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + 0.25 * box["height"])
    expect(page.locator("#cell h2")).to_contain_text("Qwen2.5-0.5B, 128 context: mixed load")
    assert "model=Qwen%2FQwen2.5-0.5B" in page.url and "context=128" in page.url
    drawn(page, "cell-ratios")
    drawn(page, "cell-windows")
    drawn_when_near(page, 3, "cell-tradeoff", "cell-busy")
    drawn_when_near(page, 4, "cell-latencies", "cell-telemetry")
    expect(page.locator(".cards")).to_contain_text("kernel overlap")
    expect(page.locator("#panel-cell-certificate td", has_text="attachment").first).to_be_visible()
    expect(page.locator("#cell-command")).to_contain_text("python -m orchestrator.sweep cell.yaml")
    # the frame on the map
    page.wait_for_function(
        "() => (document.querySelector('#panel-verdict-map .js-plotly-plot').layout.shapes || []).length === 1"
    )


def test_choices_are_addresses(served: Served, page: Page) -> None:
    page.goto(served.url + "/" + SYNTHETIC)
    drawn(page, "verdict-map")
    expect(page.locator("#part-0 .simulated-banner")).to_be_visible()
    title = page.locator("#panel-verdict-map .gtitle")
    expect(title).to_contain_text("mps2 against single")
    page.get_by_role("link", name="timesliced2 / single: host parallelism").click()
    expect(title).to_contain_text("timesliced2 against single")
    assert "pair=timesliced2" in page.url
    page.get_by_role("link", name="prefill").click()
    expect(page.locator("#part-0 figcaption").first).to_contain_text("prefill load")
    page.go_back()
    expect(page.locator("#part-0 figcaption").first).to_contain_text("mixed load")
    expect(page.locator(".absent").first).to_contain_text("own peak not measured")


def test_follows_a_growing_store_and_keeps_zoom_and_cell(served: Served, page: Page) -> None:
    page.goto(served.url + "/" + SYNTHETIC + "&model=Qwen%2FQwen2.5-0.5B&context=512")
    drawn(page, "cell-windows")
    drawn(page, "gain-over-context")
    expect(page.locator(".card").first).to_contain_text("2 boots")
    chosen = {panel: zoomed(page, panel) for panel in ("cell-windows", "gain-over-context")}
    write(served.store, served.trials.filter(pl.col("repeat") == 2), served.windows)
    expect(page.locator(".card").first).to_contain_text("3 boots")
    expect(page.locator("#cell h2")).to_contain_text("Qwen2.5-0.5B, 512 context")
    page.wait_for_function(
        "() => document.querySelector('#panel-cell-windows .js-plotly-plot').layout.xaxis.ticktext.includes('repeat 2')"
    )
    assert {panel: axis_range(page, panel) for panel in chosen} == chosen


def test_works_by_keyboard(served: Served, page: Page) -> None:
    page.goto(served.url + "/" + MEASURED)
    drawn(page, "verdict-map")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.locator(".cells a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cell")).to_be_focused()
    expect(page.locator("#cell h2")).to_contain_text("Qwen2.5-0.5B")
    page.get_by_role("link", name="larger model").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cell h2")).to_contain_text("Qwen2.5-1.5B")
    expect(page.locator("#cell a", has_text="↑")).to_be_visible()
    page.locator("#theme-button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/ablations", "max_cudagraph_capture_size 1024 (default)"),
        ("/host", "The core under EngineCore"),
        ("/health", "One arm against itself"),
        ("/live", "trials committed"),
        ("/compare", "comparisons of arms are in both"),
        ("/recommend", "vllm serve"),
    ],
)
def test_every_page_fits_a_phone(served: Served, page: Page, path: str, words: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(served.url + path + MEASURED)
    expect(page.locator("main")).to_contain_text(words)
    page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1200, "height": 900})


def test_files_hold_what_the_figure_shows(served: Served) -> None:
    address = "/data/landscape/verdict-map.{}?store=1&sweep=smoke-gpu&pair=mps2~single"
    parquet = pl.read_parquet(io.BytesIO(served.get(address.format("parquet"))))
    csv = pl.read_csv(served.get(address.format("csv")))
    record = ResultStore.open(str(RECORD), create=False)
    wanted = judge(record.read("trials", "smoke-gpu"), record.read("windows", "smoke-gpu")).filter(
        metric="throughput", arm="mps2", baseline="single", kind="mixed"
    )
    assert parquet.select("model", "ratio", "verdict").equals(wanted.select("model", "ratio", "verdict"))
    assert csv["ratio"].to_list() == pytest.approx(wanted["ratio"].to_list())
    with urllib.request.urlopen(served.url + f"/data/landscape/verdict-map.csv{SYNTHETIC}", timeout=30) as answer:
        assert 'filename="SIMULATED-verdict-map.csv"' in answer.headers["Content-Disposition"]
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_nothing_was_fetched_or_complained_of(served: Served, page: Page) -> None:
    """Last: what all the tests above left behind."""
    assert served.complaints == []
    assert served.hosts == {urlsplit(served.url).netloc}
