"""The parts of pages: functions from what is chosen to blocks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dashboards.app.chosen import Chosen
from dashboards.app.pages import (
    ablations,
    cell,
    cell_verdicts,
    comparison,
    health_page,
    host,
    landscape,
    live,
    recommend,
)
from dashboards.app.panel import Block

PARTS: Mapping[str, Callable[[Chosen], list[Block]]] = {
    "landscape": landscape.blocks,
    "cell": cell_verdicts.blocks,
    "cell-first": cell.first_blocks,
    "cell-figures": cell.figure_blocks,
    "records": cell.raw_blocks,
    "ablations": ablations.blocks,
    "host": host.blocks,
    "health": health_page.blocks,
    "live": live.blocks,
    "compare": comparison.blocks,
    "recommend": recommend.blocks,
}
OF_PAGE: Mapping[str, tuple[str, ...]] = {
    "/": ("landscape", "cell", "cell-first", "cell-figures", "records"),
    "/ablations": ("ablations",),
    "/host": ("host",),
    "/health": ("health",),
    "/live": ("live",),
    "/compare": ("compare",),
    "/recommend": ("recommend",),
}
