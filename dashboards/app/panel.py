"""A figure with what stands behind it: its words, its table, and the table as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import polars as pl
from dash import html
from plotly.utils import PlotlyJSONEncoder

from dashboards import theme
from dashboards.app.selection import Selection


@dataclass(frozen=True, slots=True)
class Panel:
    """`rows` is what the figure was drawn from; `headings` names the columns that the page's table shows, all if empty.

    name: unique in its part of the page, and of the files. wide: the least width in pixels at which the figure reads;
    narrower screens scroll it. most: the greatest width. zoom: what a reader's zoom belongs to; it
    is kept while this stays the same.
    """

    name: str
    figure: go.Figure
    rows: pl.DataFrame
    caption: str = ""
    wide: int = 0
    headings: Mapping[str, str] = field(default_factory=dict)
    zoom: str = ""
    most: int = 1240


@dataclass(frozen=True, slots=True)
class Table:
    """A table that has no figure and is shown at once."""

    name: str
    title: str
    rows: pl.DataFrame
    headings: Mapping[str, str]
    simulated: bool


Block = Panel | Table | Any  # or a component as it is


@dataclass(frozen=True, slots=True)
class Drawn:
    """A block as the browser holds it: `shape` says whether what is there can be brought up to date in place.

    A figure that is replaced loses the reader's zoom, and a link that is replaced loses the focus; so a page is built
    once and then only told what changed. figure: of a panel, as JSON; words: all else that the block shows.
    """

    name: str
    shape: str
    figure: str | None
    words: Any

    def frame(self, slot: int) -> Any:
        """The component that holds the block."""
        words = html.Div(self.words, id={"type": "words", "slot": slot, "name": self.name})
        if self.figure is None:
            return words
        plot = html.Div(
            id={"type": "figure", "slot": slot, "name": self.name},
            className="plot",
            style=json.loads(self.shape),
            role="img",
            **{"data-figure": self.figure, "aria-label": f"figure {self.name}, said in words below"},
        )
        region = html.Div(plot, className="scroll", tabIndex=0, role="region", **{"aria-label": f"figure {self.name}"})
        return html.Figure([region, words], id=f"panel-{self.name}")

    def marks(self) -> tuple[str, str]:
        """What figure and words are, to know later whether they changed."""
        figure = "" if self.figure is None else _mark(self.figure)
        return figure, _mark(json.dumps(self.words, cls=PlotlyJSONEncoder))


def drawn(block: Block, place: int, part: str, selection: Selection, revision: int) -> Drawn:
    """`block` as the `place`th of its part. Figures carry no template: the page's script adds light or dark."""
    if isinstance(block, Panel):
        fig = block.figure.to_plotly_json()
        fig["layout"]["uirevision"] = block.zoom or block.name
        style = {"height": f"{fig['layout']['height']}px", "minWidth": f"{block.wide}px", "maxWidth": f"{block.most}px"}
        text = json.dumps(fig, cls=PlotlyJSONEncoder, separators=(",", ":"))
        return Drawn(block.name, json.dumps(style), text, _words(block, part, selection, revision))
    if isinstance(block, Table):
        return Drawn(block.name, "table", None, _table(block, part, selection, revision))
    return Drawn(f"{place}", type(block).__name__, None, block)


def _words(panel: Panel, part: str, selection: Selection, revision: int) -> Any:
    return html.Figcaption(
        [
            *([html.Span(panel.caption)] if panel.caption else []),
            html.Details([html.Summary("In words"), html.P(theme.said(panel.figure), className="said")]),
            html.Details(
                [
                    html.Summary(f"Table, {len(panel.rows):,} {'row' if len(panel.rows) == 1 else 'rows'}"),
                    *downloads(panel.name, part, selection),
                    html.Div(className="rows"),
                ],
                className="behind",
                **{"data-src": _address(panel.name, part, "html", selection) + f"&revision={revision}"},
            ),
        ]
    )


def _table(table: Table, part: str, selection: Selection, revision: int) -> Any:
    """Filled by the page's script, like the tables behind figures."""
    if table.rows.is_empty():
        return html.P(f"{table.title}: none.", className="none")
    return html.Section(
        [
            html.Div(className="rows"),
            *downloads(table.name, part, selection),
        ],
        id=f"panel-{table.name}",
        className="behind open",
        **{"data-src": _address(table.name, part, "html", selection) + f"&revision={revision}"},
    )


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def downloads(name: str, part: str, selection: Selection) -> Sequence[Any]:
    """Links to the table's rows as CSV and as Parquet."""
    return [
        html.P(
            [
                html.A(
                    kind.upper() if kind == "csv" else "Parquet",
                    href=_address(name, part, kind, selection),
                    download=f"{name}.{kind}",
                    className="download",
                    **{"aria-label": f"download {name} as {kind}"},
                )
                for kind in ("csv", "parquet")
            ],
            className="files",
        )
    ]


def _address(name: str, part: str, kind: str, selection: Selection) -> str:
    return f"/data/{part}/{name}.{kind}{selection.search or '?'}"
