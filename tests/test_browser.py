"""The report in a real browser."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import polars as pl
import pytest

from dashboards import report
from orchestrator.store import ResultStore
from tests.synthetic_landscape import landscape, store_of
from tests.test_report import Tags, words

CHROMIUM = shutil.which("chromium")
HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">-3B'


@pytest.fixture
def page(synthetic: tuple[ResultStore, str]) -> str:
    return synthetic[1]


def browse(file: Path, *flags: str, dark: bool = False) -> tuple[str, list[str]]:
    """The page's final DOM, or nothing where a screenshot is asked for, and what was written to the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=20000",
         f"--user-data-dir={file.parent / 'profile'}", *flags, file.as_uri()],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_every_figure_without_complaint(page: str, tmp_path: Path, dark: bool) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    dom, console = browse(file, "--window-size=1400,2400", "--dump-dom", dark=dark)
    assert console == []
    plots = Tags(page).count("plot")
    assert f'data-drawn="{plots}"' in dom
    drawn = Tags(dom)
    assert drawn.count("main-svg") >= plots
    assert "48 of 48 rows" in dom  # the script has reached the end: tables are filtered after the figures begin


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_screenshot_of_a_narrow_page_has_its_size(page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    shot = tmp_path / "narrow.png"
    _, console = browse(file, "--window-size=500,1600", f"--screenshot={shot}")
    assert console == []
    assert struct.unpack(">II", shot.read_bytes()[16:24]) == (500, 1600)
    assert shot.stat().st_size > 50_000  # a blank page of this size has a few thousand bytes


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_names_from_the_store_run_nothing_in_a_browser(tmp_path: Path) -> None:
    trials, windows = landscape(models=("Qwen/Qwen2.5-3B",), contexts=(128, 512))
    hostile = trials.with_columns(model=pl.lit(HOSTILE), reason=pl.lit(HOSTILE), gpu_name=pl.lit(HOSTILE))
    text = report.report(store_of(tmp_path / "store", hostile, windows))
    assert "<img" not in words(text)
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    dom, console = browse(file, "--dump-dom")
    assert console == []
    assert "<title>SIMULATED" in dom and "<img" not in dom
