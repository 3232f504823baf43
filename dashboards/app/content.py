"""What the parts of a page hold, and what of it a browser lacks: callbacks from an address to figures and words."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate

from dashboards.app import shell
from dashboards.app.chosen import OF_A_CELL, Chosen
from dashboards.app.pages import OF_PAGE, PARTS
from dashboards.app.panel import Block, Drawn, drawn
from dashboards.app.selection import Selection
from dashboards.app.site import Site

UNSEEN = {
    "landscape": OF_A_CELL,
    **dict.fromkeys(("cell", "cell-first", "cell-figures"), ("repeat",)),
}
# Parts from here on wait until the reader comes near them, where a cell is chosen.
FIRST_LAZY = 3
Held = dict[str, Any]


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


def at_once(site: Site, parts: Parts, pathname: str, search: str) -> list[shell.Slot]:
    """The parts that a new page at this address shows before anything is scrolled or clicked."""
    selection = Selection.parse(search)
    chosen = pathname == "/" and selection.model is not None
    slots = []
    for slot in range(shell.PARTS):
        if chosen and slot >= FIRST_LAZY:
            slots.append(shell.Slot(None, [], None))
            continue
        own = (selection if chosen or slot == 0 else Selection()).search
        asked = [pathname, seen_by("landscape", Selection.parse(own)).search if (pathname, slot) == ("/", 0) else own]
        key, blocks = _made(site, parts, slot, *asked)
        slots.append(shell.Slot(asked, [block.frame(slot) for block in blocks], _held(key, blocks)))
    return slots


def follow(app: Dash, site: Site, parts: Parts) -> None:
    """Fill each part when its address changes or the store has news."""

    def fill(slot: int) -> None:
        figures = {"type": "figure", "slot": slot, "name": ALL}
        words = {"type": "words", "slot": slot, "name": ALL}

        def show(asked: list[str] | None, revision: int, held: Held | None) -> Any:
            if asked is None:
                raise PreventUpdate
            pathname, search = asked
            key, blocks = _made(site, parts, slot, pathname, search, None if held is None else held["key"])
            return _news(slot, key, blocks, held, *ctx.outputs_list[1:3])

        app.callback(
            Output(f"part-{slot}", "children"),
            Output(figures, "data-figure"),
            Output(words, "children"),
            Output(f"held-{slot}", "data"),
            Input(f"ask-{slot}", "data"),
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


def _made(
    site: Site, parts: Parts, slot: int, pathname: str, search: str, known: str | None = None
) -> tuple[str, list[Drawn]]:
    """The blocks of a part and the key of all of it. Raises PreventUpdate where the key is `known`."""
    names = OF_PAGE.get(pathname, ())
    part = names[slot] if slot < len(names) else ""
    selection = seen_by(part, Selection.parse(search))
    revision = site.snapshot.revision
    key = f"{part} {selection.search} {revision}"
    if key == known:
        raise PreventUpdate
    made = parts.blocks(part, selection) if part else []
    return key, [drawn(block, place, part, selection, revision) for place, block in enumerate(made)]


def _held(key: str, blocks: list[Drawn]) -> Held:
    return {
        "key": key,
        "shape": [[block.name, block.shape] for block in blocks],
        "marks": {block.name: list(block.marks()) for block in blocks},
    }


def _news(
    slot: int, key: str, blocks: list[Drawn], held: Held | None, figures: list[Any], words: list[Any]
) -> tuple[Any, list[Any], list[Any], Held]:
    """What the browser lacks: the whole part where its shape is another, else the figures and words that changed.

    held: what was sent last: `key` of all of it, and by block its shape and marks. figures, words: the outputs that the
    page has now.
    """
    now = _held(key, blocks)
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
