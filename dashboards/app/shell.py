"""The frame of every page: head, navigation, notes, commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dash import dcc, html

from dashboards import theme
from dashboards.app.site import Snapshot

PAGES = {
    "/": "Landscape",
    "/ablations": "Ablations",
    "/host": "Host overhead",
    "/health": "Health",
    "/live": "Live",
    "/compare": "Compare",
    "/recommend": "Recommend",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """What a part holds when the page is new. asked: the path and query that it shows, None: it waits.

    held: what was sent, see `content`.
    """

    asked: list[str] | None
    children: list[Any]
    held: dict[str, Any] | None


def layout(every_s: float, snapshot: Snapshot, slots: Sequence[Slot]) -> Any:
    """The page as it first is; callbacks bring what changes. Stores: `ask-`: the address that a part is to show,
    `held-`: what it shows, `near`: the numbers of the parts that are in the window or close to it."""
    return html.Div(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Store(id="revision", data=snapshot.revision),
            dcc.Store(id="near", data=[]),
            *(dcc.Store(id=f"ask-{number}", data=slot.asked) for number, slot in enumerate(slots)),
            *(dcc.Store(id=f"held-{number}", data=slot.held) for number, slot in enumerate(slots)),
            dcc.Interval(id="clock", interval=round(1000 * every_s)),
            html.A("Skip to content", href="#part-0", className="skip"),
            html.Header(
                [
                    html.Div(
                        [
                            html.A("mpscape", href="/", className="brand", **{"data-go": "page"}),
                            html.Span(status(snapshot), id="status", role="status"),
                            html.Button(
                                "◐", id="theme-button", type="button", title="light or dark",
                                **{"aria-label": "switch between light and dark"},
                            ),
                        ],
                        className="bar",
                    ),
                    html.Nav(pages(), id="pages", **{"aria-label": "pages"}),
                ],
                className="top",
            ),
            html.Main(
                [html.Div(slot.children, id=f"part-{number}", className="part") for number, slot in enumerate(slots)]
            ),
        ]
    )  # fmt: skip


PARTS = 5


def pages() -> list[Any]:
    """Links to the pages; the page's script adds the selection and marks the one that is shown."""
    return [html.A(words, href=path, **{"data-go": "page", "data-path": path}) for path, words in PAGES.items()]


def status(snapshot: Snapshot) -> list[Any]:
    """Where the data come from, how fresh they are, and whether something is wrong."""
    at = datetime.fromtimestamp(snapshot.read_unix_s, UTC).strftime("%H:%M:%S UTC")
    places = f"{len(snapshot.places)} {'sweep' if len(snapshot.places) == 1 else 'sweeps'}"
    parts: list[Any] = [html.Span("●", className="bad" if snapshot.trouble else "good"), f" {places}, read {at}"]
    if snapshot.trouble:
        parts.append(html.Span(f" · not reachable now: {'; '.join(snapshot.trouble)}", className="trouble"))
    return parts


def simulated_banner(simulated: bool) -> Any:
    if not simulated:
        return None
    return html.Div(
        [
            html.Strong(theme.SIMULATED),
            "Every number here comes from a model of the GPU in virtual time. Nothing was observed on hardware.",
        ],
        className="simulated-banner",
        role="note",
    )


def heading(title: str, words: str = "") -> Any:
    return html.Div([html.H1(title), html.P(words, className="lead")] if words else [html.H1(title)], className="head")


def section(title: str, words: str = "", name: str | None = None) -> Any:
    inner = [html.H2(title), *([html.P(words, className="lead")] if words else [])]
    return html.Div(inner, className="head", **({"id": name} if name else {}))


def prose(text: str) -> list[Any]:
    """A sentence whose commands stand between backticks, with those set as code."""
    return [html.Code(part) if odd % 2 else part for odd, part in enumerate(text.split("`"))]


def code(lines: str, name: str) -> Any:
    """Commands with a button that copies them."""
    return html.Div(
        [html.Button("copy", type="button", className="copy", **{"data-copy": name}), html.Pre(lines, id=name)],
        className="code",
    )


def nothing_here(what: str, answers: Sequence[Any]) -> Any:
    """Why a page is empty, and the sweeps that would fill it."""
    items = [
        html.Li([html.Code(f"python -m orchestrator.sweep {each.path}"), html.Br(), html.Span(each.question)])
        for each in answers
    ]
    return html.Div([html.P(what), *([html.Ul(items)] if items else [])], className="absent-note", role="note")


def figures_line(pairs: Sequence[tuple[str, str]]) -> Any:
    """Large numbers with their words."""
    return html.Dl(
        [html.Div([html.Dt(words), html.Dd(number)]) for number, words in pairs],
        className="numbers",
    )


def line(parts: Sequence[str | tuple[str, str]]) -> Any:
    """A sentence with links, given as (words, address)."""
    inner = [
        html.A(part[0], href=part[1], **{"data-go": "page"}) if isinstance(part, tuple) else part for part in parts
    ]
    return html.P(inner)
