"""What Prometheus would read of a running sweep, scraped from the node's own endpoint."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ray_head import LIMIT_S, Head, ray_head
from tests.small_sweep import TRIALS, await_trials, started, write_spec

SAMPLE = re.compile(r"^ray_mpscape_(?P<name>\w+)\{(?P<tags>.*)\} (?P<value>\S+)$", re.MULTILINE)
SOON = {"RAY_metrics_report_interval_ms": "300"}

pytestmark = pytest.mark.long


def scraped(head: Head) -> dict[tuple[str, str | None], float]:
    """Values by name and outcome, of the sweep `small` on a simulated GPU."""
    with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for match in SAMPLE.finditer(text):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', match["tags"]))
        assert (tags["sweep"], tags["backend"]) == ("small", "simulated")
        found[match["name"], tags.get("outcome")] = float(match["value"])
    return found


def test_a_running_sweep_shows_its_trials_its_blocks_and_its_quarantine(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, simulation={"wall_s_per_window": 0.4})
    with (
        ray_head(tmp_path, cpus=1, environment=SOON) as head,
        started(spec, tmp_path / "store", head.environment(**SOON)) as process,
    ):
        await_trials(process, 4)
        seen: dict[tuple[str, str | None], float] = {}
        deadline = time.monotonic() + LIMIT_S
        while not seen.get(("trials", "ok")):
            assert time.monotonic() < deadline and process.poll() is None, seen
            time.sleep(0.2)
            seen = scraped(head)
        assert {"ok", "failed", "skipped", "left"} == {outcome for name, outcome in seen if name == "trials"}
        assert sum(value for (name, _), value in seen.items() if name == "trials") == TRIALS
        assert seen["trials", "failed"] == seen["trials", "skipped"] == 0
        assert seen["blocks_running", None] == 1 and seen["gpus_quarantined", None] == 0
