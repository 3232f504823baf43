"""Choices as links that carry the whole selection, so that all of it is an address."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dash import html

from dashboards import answer
from dashboards.app.chosen import VIEW_WORDS, VIEWS, Chosen

# As many choices as stand side by side; more go into a list.
MOST_LINKS = 6
LONGER_WORDS = {"gain": "the whole gain", "kernel_overlap": "kernel overlap: the difference"}


def step_words(part: str | None, kind: str) -> str:
    """What a pair of arms shows in a load of this kind, as a link says it; empty where it isolates nothing."""
    return LONGER_WORDS.get(part or "") or answer.step_words(part, kind)


def choice(label: str, options: Sequence[tuple[str, str, bool]], name: str) -> Any:
    """One question with (words, address, chosen) answers: links side by side, or a list where they are many."""
    if len(options) <= 1:
        return None
    if len(options) <= MOST_LINKS:
        links = [
            html.A(words, href=href, **{"data-go": "stay"} | ({"aria-current": "true"} if chosen else {}))
            for words, href, chosen in options
        ]
        return html.Div(
            [html.Span(label, className="question"), html.Div(links, className="links")],
            className="choice",
            role="group",
            **{"aria-label": label},
        )
    return html.Label(
        [
            html.Span(label, className="question"),
            html.Select(
                [
                    html.Option(words, value=href, **({"selected": True} if chosen else {}))
                    for words, href, chosen in options
                ],
                id=f"pick-{name}",
                **{"data-pick": ""},
            ),
        ],
        className="choice list",
    )


def choices(found: Iterable[Any]) -> Any:
    return html.Div([each for each in found if each is not None], className="choices")


def place_choice(chosen: Chosen, path: str) -> Any:
    """Which sweep."""
    several = len({place.number for place in chosen.snapshot.places}) > 1
    options = [
        (
            (f"store {place.number + 1}: " if several else "")
            + f"{place.world.sweep} · {place.world.gpu_kind}"
            + (" · SIMULATED" if place.world.simulated else f" · {place.world.backend}"),
            path
            + chosen.selection.elsewhere(
                store=place.number, sweep=place.world.sweep, backend=place.world.backend, gpu=place.world.gpu_kind
            ).search,
            place is chosen.place,
        )
        for place in chosen.snapshot.places
    ]
    return choice("sweep", options, "place")


def kind_choice(chosen: Chosen, path: str) -> Any:
    drop = dict.fromkeys(("concurrency", "output_tokens", "setting", "model", "context", "repeat"))
    options = [
        (kind, path + chosen.selection.but(**(drop | {"kind": kind})).search, kind == chosen.kind)
        for kind in chosen.kinds
    ]
    return choice("load", options, "kind")


def pair_choice(chosen: Chosen, path: str) -> Any:
    """Between mps, timesliced and their difference."""
    options = [
        (
            ": ".join(filter(None, [f"{arm} / {baseline}", step_words(part, chosen.kind)])),
            path + chosen.selection.but(pair=f"{arm}~{baseline}").search,
            (arm, baseline, part) == chosen.pair,
        )
        for arm, baseline, part in chosen.pairs
    ]
    return choice("arms", options, "pair")


def view_choice(chosen: Chosen, path: str) -> Any:
    """All four views, those that were not measured greyed out, with the reason."""
    links = []
    for view, there in chosen.views.items():
        if there:
            current = {"aria-current": "true"} if view == chosen.view else {}
            href = path + chosen.selection.but(view=view, setting=None, concurrency=None).search
            links.append(html.A(VIEWS[view], href=href, title=VIEW_WORDS[view], **{"data-go": "stay"} | current))
        else:
            links.append(
                html.Span(
                    [VIEWS[view], html.Small(" not measured")], className="absent", title=f"{VIEW_WORDS[view]}: this"
                    " sweep has no such rows; it takes a ladder of concurrencies",
                )
            )  # fmt: skip
    return html.Div(
        [html.Span("compared at", className="question"), html.Div(links, className="links")],
        className="choice",
        role="group",
        **{"aria-label": "compared at"},
    )


def plain_choice(chosen: Chosen, path: str, name: str, label: str, options: Sequence[Any], current: Any) -> Any:
    """A choice whose options are values of one field of the selection."""
    said = [
        (
            f"{option:,}" if isinstance(option, int) else str(option),
            path + chosen.selection.but(**{name: option}).search,
            option == current,
        )
        for option in options
    ]
    return choice(label, said, name)
