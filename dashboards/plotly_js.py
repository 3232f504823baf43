"""The library that draws the figures in a browser: the cartesian bundle of plotly.js, a third of the whole's bytes.

It lies beside, as published, because the Python package brings the whole library alone: 4.8 MB, most of it for maps,
meshes and other figures that are not drawn here, and all of it read by the browser before the first one. To renew it:

    npm pack plotly.js-cartesian-dist-min@VERSION    # the version that plotly.offline.get_plotlyjs_version() says
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

VERSION = "4.1.1"
# What a figure may be made of; see the README of the bundle.
TRACES = ("bar", "box", "contour", "heatmap", "histogram", "histogram2d", "image", "pie", "scatter", "violin")
PLOTLY = f"plotly-{VERSION}.js"
FILE = Path(__file__).parent / "assets" / "vendor" / "plotly-cartesian.min.js"


@cache
def plotly_js() -> str:
    """The source, 1.5 MB; its first comment names version and licence."""
    return FILE.read_text(encoding="utf-8")
