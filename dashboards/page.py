"""One HTML page that needs nothing but itself: style, script, plotly.js and the figures' data are all inside."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

from dashboards import theme
from dashboards.plotly_js import plotly_js

ASSETS = Path(__file__).parent / "assets"
# Nothing may be fetched: the page is meant to be mailed and kept, and what it shows comes from a store of other people.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; worker-src blob:"
)


@dataclass(slots=True)
class Page:
    """A page being put together. Figures are numbered by the caller's names, so that two reports can be compared."""

    title: str
    parts: list[str] = field(default_factory=list)
    contents: list[tuple[str, str]] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def add(self, markup: str) -> None:
        """Append trusted markup: whatever came from a store has been escaped by whoever made it."""
        self.parts.append(markup)

    def section(self, name: str, heading: str, words: str = "") -> None:
        """A heading that the contents list; `words` say what to look for."""
        self.contents.append((name, heading))
        self.add(f"<h2 id='{name}'>{html.escape(heading)}</h2>")
        if words:
            self.add(f"<p class='lead'>{html.escape(words)}</p>")

    def figure(self, name: str, fig: go.Figure, caption: str = "", wide: int = 0) -> None:
        """Draw `fig`. `wide`: the least width in pixels at which it reads; narrower screens scroll it sideways."""
        self.add(self.plot(name, {"": fig}, caption, wide))

    def plot(self, name: str, choices: dict[str, go.Figure], caption: str = "", wide: int = 0) -> str:
        """Markup of a figure, or of several under one selector."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        if slug in self._names:
            raise ValueError(f"two figures are called {slug!r}")
        self._names.add(slug)
        first = next(iter(choices.values()))
        data = json.dumps([_data(fig) for fig in choices.values()], separators=(",", ":")).replace("<", "\\u003c")
        options = "".join(f"<option value='{i}'>{html.escape(words)}</option>" for i, words in enumerate(choices))
        selector = (
            f"<label class='choice'>Show <select data-plot='{slug}'>{options}</select></label>"
            if len(choices) > 1
            else ""
        )
        said = html.escape(theme.said(first))
        style = f"min-height:{first.layout.height}px" + (f";min-width:{wide}px" if wide else "")
        return (
            f"<figure>{selector}<div class='scroll' tabindex='0' role='region' aria-label='figure'>"
            f"<div class='plot' id='{slug}' role='img' style='{style}' aria-label='{said}'></div>"
            f"</div><figcaption>{html.escape(caption)}<details><summary>In words</summary>"
            f"<p class='said' data-for='{slug}'>{said}</p></details></figcaption>"
            f"<script type='application/json' id='{slug}-data'>{data}</script></figure>"
        )

    def render(self) -> str:
        """The whole document."""
        links = "".join(f"<li><a href='#{name}'>{html.escape(words)}</a></li>" for name, words in self.contents)
        body = "\n".join(self.parts).replace("<!--contents-->", f"<nav aria-label='contents'><ul>{links}</ul></nav>", 1)
        themes = json.dumps({"light": theme.LIGHT.to_plotly_json(), "dark": theme.DARK.to_plotly_json()})
        style = (ASSETS / "report.css").read_text()
        return (
            "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
            "<meta name='color-scheme' content='light dark'>\n<link rel='icon' href='data:,'>\n"
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n"
            f"<body>\n<main>\n{body}\n</main>\n"
            f"<script type='application/json' id='themes'>{themes}</script>\n"
            f"<script>{plotly_js()}</script>\n<script>\n{(ASSETS / 'report.js').read_text()}</script>\n"
            "</body>\n</html>\n"
        )


def _shown(number: str) -> float:
    """Six digits: more cannot be seen, and the last ones of a parallel sum differ from run to run."""
    return float(f"{float(number):.6g}")


def _data(fig: go.Figure) -> dict[str, object]:
    """The figure without its template, which the page holds once for light and once for dark."""
    bare = go.Figure(fig)
    bare.layout.template = None
    content: dict[str, object] = json.loads(plotly.io.to_json(bare, validate=False), parse_float=_shown)
    return content
