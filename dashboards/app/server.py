"""The Dash application: an address comes in, parts of the page go out; nothing is kept between requests but a cache."""

from __future__ import annotations

import io
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate
from flask import Response, abort, request

from dashboards.app import shell
from dashboards.app.chosen import OF_A_CELL, Chosen
from dashboards.app.pages import OF_PAGE, PARTS
from dashboards.app.panel import Block, Drawn, Panel, Table, drawn
from dashboards.app.selection import Selection
from dashboards.app.site import Site
from dashboards.table import table

ASSETS = Path(__file__).parent.parent / "assets"
MOST_ROWS_SHOWN = 300
UNSEEN = {
    "landscape": OF_A_CELL,
    **dict.fromkeys(("cell", "cell-first", "cell-figures"), ("repeat",)),
}
# Everything comes from this server: it works without a network, and a name in a store can load nothing.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
    " blob:; connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'"
)
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def application(site: Site, every_s: float = 5.0, first_theme: str = "auto") -> Dash:
    """The application over a site that somebody else refreshes; `every_s`: how often a page asks for news."""
    app = Dash(
        "mpscape",
        assets_folder=str(ASSETS),
        assets_ignore=r"report\.js",
        title="mpscape",
        update_title="mpscape",
        index_string=INDEX,
        suppress_callback_exceptions=True,
        serve_locally=True,
        enable_mcp=False,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "light dark"},
        ],
    )
    # A function: each new page starts from what is known now, and asks for nothing that it was just given.
    app.layout = lambda: shell.layout(every_s, first_theme, site.snapshot)
    parts = Parts(site)
    parts.blocks("landscape", Selection())  # before the first reader comes, who sees just this
    _content(app, site, parts)
    _client(app)
    _files(app, parts)
    return app


class Parts:
    """Blocks of the parts of pages, the last ones remembered: a table is asked for after its figure."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._made = lru_cache(64)(self._make)
        self._maps = lru_cache(16)(self._map)
        self._one_at_a_time = threading.Lock()

    def blocks(self, part: str, selection: Selection) -> list[Block]:
        """`selection` as `seen_by` the part."""
        # Side by side all parts of a page would be late; one after the other, the first of them is early.
        with self._one_at_a_time:
            return self._made(part, selection, self._site.snapshot.revision)

    def _make(self, part: str, selection: Selection, revision: int) -> list[Block]:
        chosen = self._maps(selection.but(**dict.fromkeys(OF_A_CELL)), revision).at(selection)
        return [block for block in PARTS[part](chosen) if block is not None]

    def _map(self, selection: Selection, revision: int) -> Chosen:
        return Chosen(self._site.snapshot, selection)


def seen_by(part: str, selection: Selection) -> Selection:
    """The selection without what the part does not show, so that a click leaves alone what it does not change.

    The map does not show which cell is chosen: the page's script frames it, and carries it from link to link.
    """
    return selection.but(**dict.fromkeys(UNSEEN.get(part, ())))


def _content(app: Dash, site: Site, parts: Parts) -> None:
    def fill(slot: int) -> None:
        figures = {"type": "figure", "slot": slot, "name": ALL}
        words = {"type": "words", "slot": slot, "name": ALL}

        def show(asked: list[str] | None, mode: str | None, revision: int, held: Held | None) -> Any:
            if asked is None or mode is None:
                raise PreventUpdate
            pathname, search = asked
            names = OF_PAGE.get(pathname, ())
            part = names[slot] if slot < len(names) else ""
            selection = seen_by(part, Selection.parse(search))
            snapshot = site.snapshot
            key = f"{part} {selection.search} {snapshot.revision} {mode}"
            if held is not None and held["key"] == key:
                raise PreventUpdate
            made = parts.blocks(part, selection) if part else []
            blocks = [drawn(block, place, part, selection, snapshot.revision, mode) for place, block in enumerate(made)]
            return _news(slot, key, blocks, held, *ctx.outputs_list[1:3])

        app.callback(
            Output(f"part-{slot}", "children"),
            Output(figures, "figure"),
            Output(words, "children"),
            Output(f"held-{slot}", "data"),
            Input(f"ask-{slot}", "data"),
            Input("theme", "data"),
            Input("revision", "data"),
            State(f"held-{slot}", "data"),
            prevent_initial_call=True,
        )(show)

    for slot in range(shell.PARTS):
        fill(slot)

    def news(_: int | None, revision: int | None) -> Any:
        snapshot = site.snapshot
        return shell.status(snapshot), snapshot.revision if snapshot.revision != revision else no_update

    app.callback(
        Output("status", "children"),
        Output("revision", "data"),
        Input("clock", "n_intervals"),
        State("revision", "data"),
        prevent_initial_call=True,
    )(news)


Held = dict[str, Any]


def _news(
    slot: int, key: str, blocks: list[Drawn], held: Held | None, figures: list[Any], words: list[Any]
) -> tuple[Any, list[Any], list[Any], Held]:
    """What the browser lacks: the whole part where its shape is another, else the figures and words that changed.

    held: what was sent last: `key` of all of it, and by block its shape and marks. figures, words: the outputs that the
    page has now.
    """
    now: Held = {
        "key": key,
        "shape": [[block.name, block.shape] for block in blocks],
        "marks": {block.name: list(block.marks()) for block in blocks},
    }
    there = {output["id"]["name"] for output in words}
    if held is None or held["shape"] != now["shape"] or there != {block.name for block in blocks}:
        return [block.frame(slot) for block in blocks], [no_update] * len(figures), [no_update] * len(words), now
    by_name = {block.name: block for block in blocks}

    def changed(outputs: list[Any], which: int) -> list[Any]:
        found = []
        for output in outputs:
            name = output["id"]["name"]
            same = held["marks"][name][which] == now["marks"][name][which]
            found.append(no_update if same else (by_name[name].figure, by_name[name].words)[which])
        return found

    return no_update, changed(figures, 0), changed(words, 1), now


def _client(app: Dash) -> None:
    """What needs no server: the colour scheme, addresses out of clicks and lists; done in assets/shell.js."""
    app.clientside_callback(
        ClientsideFunction("mpscape", "theme"), Output("theme", "data"), Input("theme-button", "n_clicks")
    )
    app.clientside_callback(
        ClientsideFunction("mpscape", "ask"),
        *(Output(f"ask-{slot}", "data") for slot in range(shell.PARTS)),
        Input("url", "pathname"),
        Input("url", "search"),
        Input("near", "data"),
        *(State(f"ask-{slot}", "data") for slot in range(shell.PARTS)),
    )
    app.clientside_callback(
        ClientsideFunction("mpscape", "mark"),
        Input("url", "search"),
        Input({"type": "figure", "slot": 0, "name": ALL}, "figure"),
    )
    app.clientside_callback(
        ClientsideFunction("mpscape", "amount"),
        Input({"type": "amount", "name": ALL}, "value"),
        State({"type": "amount", "name": ALL}, "id"),
    )


def _files(app: Dash, parts: Parts) -> None:
    def guard(answer: Response) -> Response:
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer

    def data(part: str, name: str, kind: str) -> Response:
        if part not in PARTS or kind not in ("csv", "parquet", "html"):
            abort(404)
        blocks = parts.blocks(part, seen_by(part, Selection.parse(request.query_string.decode())))
        found = [block for block in blocks if isinstance(block, Panel | Table) and block.name == name]
        if not found:
            abort(404)
        return _answer(found[0], kind)

    app.server.after_request(guard)
    app.server.get("/data/<part>/<name>.<kind>")(data)


def _answer(block: Panel | Table, kind: str) -> Response:
    rows = block.rows
    if kind == "html":
        return Response(_shown(block), mimetype="text/html")
    if kind == "csv":
        flat = rows.with_columns(pl.selectors.list().list.join("; "))
        body, mime = flat.write_csv().encode(), "text/csv; charset=utf-8"
    else:
        buffer = io.BytesIO()
        rows.write_parquet(buffer)
        body, mime = buffer.getvalue(), "application/vnd.apache.parquet"
    predicted = "SIMULATED-" if _simulated(block) else ""
    disposition = f'attachment; filename="{predicted}{block.name}.{kind}"'
    return Response(body, mimetype=mime, headers={"Content-Disposition": disposition})


def _shown(block: Panel | Table) -> str:
    headings = dict(block.headings) or {name: name for name in block.rows.columns}
    rows = block.rows.head(MOST_ROWS_SHOWN)
    title = block.title if isinstance(block, Table) else f"Behind the figure, {len(block.rows):,} rows"
    more = len(block.rows) - len(rows)
    note = f"<p class='none'>{more:,} more rows are in the files.</p>" if more else ""
    return table(rows, headings, title, _simulated(block), sortable=True) + note


def _simulated(block: Panel | Table) -> bool:
    if isinstance(block, Table):
        return block.simulated
    return bool(block.figure.layout.meta["simulated"])
