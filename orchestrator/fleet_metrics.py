"""The sweep as Ray's metrics show it: what Prometheus reads from every node and Grafana draws.

    ray_mpscape_trials{sweep, backend, outcome}     trials: ok, failed, skipped, left
    ray_mpscape_blocks_running{sweep, backend}      blocks on a GPU now
    ray_mpscape_gpus_quarantined{sweep, backend}    GPUs that this run left out

All are gauges that the driver sets from what it knows of the store, so a resumed sweep goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

# Ray hands values on every ten seconds; counting a large sweep's trials after every one of them would take longer.
REFRESH_S = 1.0


class FleetMetrics:
    """Made by a driver that is connected to Ray."""

    def __init__(self, sweep: str, backend: str) -> None:
        from ray.util.metrics import Gauge

        tags = {"sweep": sweep, "backend": backend}

        def gauge(name: str, description: str, *more: str) -> Any:
            return Gauge(f"mpscape_{name}", description, (*tags, *more)).set_default_tags(tags)

        self._trials = gauge("trials", "Trials of the sweep by outcome; left: not settled yet.", "outcome")
        self._running = gauge("blocks_running", "Blocks that are on a GPU now.")
        self._quarantined = gauge("gpus_quarantined", "GPUs that this run left out because they were not clean.")
        self._blocks = 0
        self._shown_s = float("-inf")

    def running(self, blocks: int) -> None:
        self._blocks = blocks
        self._running.set(blocks)

    def show(self, counts: Callable[[], Mapping[str, int]], total: int, quarantined: int) -> None:
        """Say again how things stand; `counts` is asked, and anything said, only where the last time is long ago."""
        if time.monotonic() - self._shown_s < REFRESH_S:
            return
        self._shown_s = time.monotonic()
        seen = counts()
        for outcome in ("ok", "failed", "skipped"):
            self._trials.set(seen.get(outcome, 0), {"outcome": outcome})
        self._trials.set(total - sum(seen.values()), {"outcome": "left"})
        self._running.set(self._blocks)
        self._quarantined.set(quarantined)
