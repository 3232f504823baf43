"""The Dash application: an address comes in, parts of the page go out; nothing is kept between requests but a cache."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl
from dash import ALL, ClientsideFunction, Dash, Input, Output, State
from flask import Response, abort, request

from dashboards import theme
from dashboards.app import shell
from dashboards.app.content import Parts, at_once, follow, seen_by
from dashboards.app.pages import PARTS
from dashboards.app.panel import Panel, Table
from dashboards.app.selection import Selection
from dashboards.app.site import Site
from dashboards.plotly_js import PLOTLY, plotly_js
from dashboards.table import table

ASSETS = Path(__file__).parent.parent / "assets"
MOST_ROWS_SHOWN = 300
# Everything comes from this server: it works without a network, and a name in a store can load nothing.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
    " blob:; connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'"
)
TEMPLATES = json.dumps({"light": theme.LIGHT.to_plotly_json(), "dark": theme.DARK.to_plotly_json()})
# Scripts that Dash names in every page: what browsers before 2020 lack, long to read, and its table.
UNUSED = ("/deps/polyfill@", "/dash_table/")
# The library of the figures is fetched at once, and run when the first figure asks for it: the words are there before.
INDEX = f"""<!DOCTYPE html>
<html lang="en" data-first-theme="FIRST">
<head>{{%metas%}}<title>{{%title%}}</title><link rel="icon" href="data:,">{{%css%}}
<script type="application/json" id="templates">{TEMPLATES}</script>
<link rel="preload" as="script" href="/{PLOTLY}" id="plotly"></head>
<body>{{%app_entry%}}<footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer></body>
</html>"""


def application(site: Site, every_s: float = 5.0, first_theme: str = "auto") -> Dash:
    """The application over a site that somebody else refreshes; `every_s`: how often a page asks for news."""
    app = Dash(
        "mpscape",
        assets_folder=str(ASSETS),
        assets_ignore=r"report\.js|plotly",
        title="mpscape",
        update_title=None,
        index_string=INDEX.replace("FIRST", first_theme),
        suppress_callback_exceptions=True,
        serve_locally=True,
        enable_mcp=False,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "light dark"},
        ],
    )
    whole = app.interpolate_index
    app.interpolate_index = lambda **page: whole(**page | {"scripts": _needed(page["scripts"])})
    parts = Parts(site)
    parts.blocks("landscape", Selection())  # before the first reader comes, who sees just this

    def layout() -> Any:
        """Each new page starts from what is known now, and asks for nothing that it was just given."""
        here = urlsplit(request.referrer or "")
        return shell.layout(every_s, site.snapshot, at_once(site, parts, here.path or "/", here.query))

    app.layout = layout
    follow(app, site, parts)
    _client(app)
    _files(app, parts)
    return app


def _needed(scripts: str) -> str:
    return "\n".join(line for line in scripts.splitlines() if not any(name in line for name in UNUSED))


def _client(app: Dash) -> None:
    """What needs no server: the colour scheme, addresses out of clicks and lists; done in assets/shell.js."""
    app.clientside_callback(
        ClientsideFunction("mpscape", "ask"),
        *(Output(f"ask-{slot}", "data") for slot in range(shell.PARTS)),
        Input("url", "pathname"),
        Input("url", "search"),
        Input("near", "data"),
        *(State(f"ask-{slot}", "data") for slot in range(shell.PARTS)),
    )
    app.clientside_callback(ClientsideFunction("mpscape", "mark"), Input("url", "search"))
    app.clientside_callback(
        ClientsideFunction("mpscape", "amount"),
        Input({"type": "amount", "name": ALL}, "value"),
        State({"type": "amount", "name": ALL}, "id"),
    )


def _files(app: Dash, parts: Parts) -> None:
    def guard(answer: Response) -> Response:
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "same-origin"  # `layout` reads the page's own address there
        return answer

    def plotly() -> Response:
        return Response(
            plotly_js(), mimetype="text/javascript", headers={"Cache-Control": "max-age=31536000, immutable"}
        )

    def data(part: str, name: str, kind: str) -> Response:
        if part not in PARTS or kind not in ("csv", "parquet", "html"):
            abort(404)
        blocks = parts.blocks(part, seen_by(part, Selection.parse(request.query_string.decode())))
        found = [block for block in blocks if isinstance(block, Panel | Table) and block.name == name]
        if not found:
            abort(404)
        return _answer(found[0], kind)

    app.server.after_request(guard)
    app.server.get(f"/{PLOTLY}")(plotly)
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
