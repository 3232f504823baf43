"""How long the dashboard's first view and a click on a cell take, in a real browser, as the store grows.

    python -m benchmarks.dashboard [--trials 1000 10000] [--requests 1000] [--clicks 5] [--folder DIR] [--s3]
    python -m benchmarks.dashboard --store DIR [--trials 10000]         a store of an earlier call, kept by --store

Makes a store of each size (`--requests` rows a trial) in a temporary folder, once, then times: the summary made and
loaded, the server's first view and clicks to the end of what they draw, in headless Chromium on the same processor.
`first_view_s`: from the request to the map on the page, in a browser that was just started; `click_verdict_s`: from
the click to the cell's verdicts on the page; `click_view_s`: until the last figure in the window is drawn;
`click_rest_s`: from scrolling to the figures below until the last of them is drawn. `..._cpu_s` and `..._server_cpu_s`
are processor seconds of the page's main thread and of the server meanwhile (after a click: for two seconds), which
other work on the machine changes less than the wall time; `load` is the load average when the browser began. `--s3`
keeps the store in an S3-compatible server on this machine, labelled so: it says what the requests cost, not what a
network adds.
The last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import psutil
from playwright.sync_api import CDPSession, Page, sync_playwright

from benchmarks.rate import machine
from orchestrator.records import REQUESTS, SAMPLES
from orchestrator.store import ResultStore
from tests.s3_server import s3_server
from tests.synthetic_landscape import SIZES, landscape

ARMS, MODELS = 3, len(SIZES)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
REPEATS = 3
GPU_READINGS = {
    "gpu_active_share": 0.8, "sm_active_share": 0.6, "tensor_active_share": 0.2, "dram_active_share": 0.4,
    "sm_clock_mhz": 1700.0, "power_w": 480.0, "temperature_c": 55.0, "memory_used_bytes": 6e10,
    "sm_occupancy_share": 0.3, "power_capped": 0.0, "thermal_capped": 0.0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--requests", type=int, default=1_000, help="rows a trial")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--store", type=Path, help="folder that keeps the store (of the first size) for another call")
    parser.add_argument("--s3", action="store_true", help="keep the store in a local S3-compatible server")
    parser.add_argument("--folder", help="where the temporary stores are made (default: the system's)")
    asked = parser.parse_args()
    print(machine())
    results = []
    for trials in asked.trials:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder, ExitStack() as stack:
            uri = str(asked.store or Path(folder) / "store")
            if asked.s3:
                server = stack.enter_context(s3_server(Path(folder)))
                os.environ.update(server.environment)
                uri = server.uri(f"{trials}-trials")
            results.append(measure(Path(folder), uri, trials, asked.requests, asked.clicks))
            print(", ".join(f"{name} {value}" for name, value in results[-1].items()), flush=True)
    print(json.dumps(results))


def measure(folder: Path, uri: str, trials: int, requests: int, clicks: int) -> dict[str, Any]:
    """Seconds by step for one store, filled unless it has something."""
    store = ResultStore.open(uri, create=True)
    made = len(store.read("trials")) if store.sweeps() else fill(store, trials, requests)
    environment = {**os.environ, "MPSCAPE_CACHE": str(folder / "cache")}
    where = "s3, local server" if store.objects.root is None else "folder"
    found: dict[str, Any] = {"store": where, "trials": made, "requests": made * requests}
    for name in ("start_without_summary_s", "start_with_summary_s"):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "dashboards.app", store.uri, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            said = re.match(r"(http://\S+) ", process.stdout.readline())
            assert said is not None
            found[name] = round(time.perf_counter() - begun, 2)
            try:
                if name == "start_with_summary_s":
                    found["load"] = round(os.getloadavg()[0], 1)
                    found |= browse(said[1], psutil.Process(process.pid), clicks)
            finally:
                process.terminate()
    return found


def fill(store: ResultStore, trials: int, requests: int) -> int:
    """A landscape over models, contexts and concurrencies; returns how many trials it has."""
    rungs = max(1, round(trials / (ARMS * MODELS * len(CONTEXTS) * REPEATS)))
    frames = landscape(contexts=CONTEXTS, concurrencies=tuple(8 * (i + 1) for i in range(rungs)), repeats=REPEATS)
    rng = np.random.default_rng(1)
    windows = frames[1].partition_by("trial_id", as_dict=True)
    for (sweep, repeat_id, attempt_id), rows in frames[0].group_by("sweep", "repeat_id", "attempt_id"):
        own = [windows[key] for key in rows.select("trial_id").iter_rows() if key in windows]
        tables = {
            "trials": rows,
            "requests": pl.concat([request_rows(rng, row, requests) for row in rows.rows(named=True)]),
        }
        if own:
            tables["windows"] = pl.concat(own)
            tables["samples"] = sample_rows(rng, tables["windows"], rows)
        store.write_repeat(str(sweep), str(repeat_id), str(attempt_id), tables, generation=1)
    return len(frames[0])


def request_rows(rng: np.random.Generator, trial: dict[str, Any], count: int) -> pl.DataFrame:
    """Requests of one trial, spread over its four windows."""
    sent = np.sort(rng.integers(0, 24_000_000_000, count))
    first = sent + rng.integers(10_000_000, 90_000_000, count)
    columns = {
        "trial_id": trial["trial_id"], "attempt_id": trial["attempt_id"], "window_index": np.arange(count) % 4,
        "engine": 0, "client": np.arange(count) % trial["concurrency"], "sequence": np.arange(count),
        "prompt_tokens": trial["prompt_tokens"], "output_tokens_asked": trial["output_tokens"],
        "output_tokens": trial["output_tokens"], "sent_ns": sent, "first_token_ns": first,
        "last_token_ns": first + rng.integers(500_000_000, 900_000_000, count), "status": "ok",
    }  # fmt: skip
    return pl.DataFrame(columns).select(pl.col(name).cast(dtype) for name, dtype in REQUESTS.items())


def sample_rows(rng: np.random.Generator, windows: pl.DataFrame, trials: pl.DataFrame) -> pl.DataFrame:
    """Readings of each window of a repeat: one of every metric a second, tokens of every engine."""
    engines = dict(trials.select("trial_id", "engines").iter_rows())
    columns = ["trial_id", "attempt_id", "window_index", "start_ns", "duration_s"]
    parts = []
    for row in windows.select(columns).iter_rows(named=True):
        own = range(engines[row["trial_id"]])
        sources = [("gpu", name, middle) for name, middle in GPU_READINGS.items()]
        sources += [(f"engine{i}", "output_tokens", 8000.0) for i in own]
        sources += [(f"engine{i}.core", "speed_mops", 160.0) for i in own]
        times = row["start_ns"] + np.arange(1, int(row["duration_s"]) + 1) * 1_000_000_000
        each, count = len(times), len(times) * len(sources)
        parts.append(
            {name: [row[name]] * count for name in columns[:3]}
            | {
                "source": np.repeat([source for source, _, _ in sources], each).tolist(),
                "metric": np.repeat([metric for _, metric, _ in sources], each).tolist(),
                "time_ns": np.tile(times, len(sources)).tolist(),
                "value": (
                    np.repeat([middle for _, _, middle in sources], each) * rng.uniform(0.9, 1.1, count)
                ).tolist(),
            }
        )
    merged = {name: [value for part in parts for value in part[name]] for name in SAMPLES}
    return pl.DataFrame(merged, schema=SAMPLES)


def browse(url: str, server: psutil.Process, clicks: int) -> dict[str, float]:
    """First view and clicks, in seconds; the clicks' medians."""
    with sync_playwright() as driver:
        chromium = shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        before, begun = cpu_s(devtools, server), time.perf_counter()
        page.goto(url)
        page.wait_for_selector("#panel-verdict-map .js-plotly-plot .main-svg")
        first_s, first_cpu_s = time.perf_counter() - begun, cpu_s(devtools, server) - before
        page.wait_for_selector("#panel-verdict-map [data-drawn]")
        page.wait_for_timeout(1000)
        seen = [click(page, devtools, server, index) for index in range(clicks + 1)][1:]  # the first builds the parts
        browser.close()
    return {
        "first_view_s": round(first_s, 2),
        "first_view_cpu_s": round(float(first_cpu_s[0]), 2),
        "first_view_server_cpu_s": round(float(first_cpu_s[1]), 2),
        **{
            f"click_{name}_s": round(median(times[place] for times in seen), 3)
            for place, name in enumerate(("verdict", "view", "rest", "cpu", "server_cpu"))
        },
    }


def cpu_s(devtools: CDPSession, server: psutil.Process) -> np.ndarray:
    """Processor seconds so far of the page's main thread and of the server."""
    counted = {metric["name"]: metric["value"] for metric in devtools.send("Performance.getMetrics")["metrics"]}
    return np.array([counted["TaskDuration"], sum(server.cpu_times()[:2])])


def click(page: Page, devtools: CDPSession, server: psutil.Process, index: int) -> tuple[float, ...]:
    """Click the cell in column `index` of the map, then scroll on; seconds by the page's own clock, then processor
    seconds of page and server until the scroll."""
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    box = page.locator("#panel-verdict-map .nsewdrag").bounding_box()
    assert box is not None
    column = (index % len(CONTEXTS) + 0.5) / len(CONTEXTS)
    page.evaluate(WATCH)
    before = cpu_s(devtools, server)
    page.mouse.click(box["x"] + column * box["width"], box["y"] + 0.3 * box["height"])
    page.wait_for_timeout(2000)
    used = cpu_s(devtools, server) - before
    verdict, view = page.evaluate("() => [__verdict - __begun, __view() - __begun]")
    page.evaluate("() => { __drawn.clear(); __begun = performance.now(); scrollTo(0, document.body.scrollHeight); }")
    page.wait_for_timeout(3000)
    rest = page.evaluate("() => Math.max(...__drawn.values()) - __begun")
    return verdict / 1000, view / 1000, rest / 1000, *used.tolist()


WATCH = """() => {
  window.__begun = null; window.__verdict = null; window.__drawn = new Map();
  document.addEventListener("mousedown", () => { window.__begun = performance.now(); }, { once: true, capture: true });
  const before = document.querySelector("#cell").textContent;
  window.__watch && window.__watch.disconnect();
  window.__watch = new MutationObserver((changes) => {
    const now = performance.now();
    const cell = document.querySelector("#cell");
    if (__verdict === null && cell && cell.textContent !== before) window.__verdict = now;
    changes.forEach((change) => {
      const panel = change.target.closest && change.target.closest("[id^=panel-cell]");
      if (panel && change.target.closest(".js-plotly-plot")) __drawn.set(panel.id, now);
    });
  });
  window.__watch.observe(document.querySelector("main"), { childList: true, subtree: true });
  window.__view = () => Math.max(...[...__drawn].filter(([id]) => {
    const place = document.getElementById(id).getBoundingClientRect();
    return place.top < innerHeight && place.bottom > 0;
  }).map(([, at]) => at));
}"""


if __name__ == "__main__":
    main()
