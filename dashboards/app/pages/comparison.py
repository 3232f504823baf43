"""Two sweeps or two stores side by side: the same cells, what each says of them."""

from __future__ import annotations

from dash import html

from dashboards import figures, theme
from dashboards.agreement import agreement
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen, place_of
from dashboards.app.panel import Block, Panel
from dashboards.app.site import Place
from dashboards.columns import CELL_COLUMNS, PAIR_COLUMNS

PATH = "/compare"
COLUMNS = (
    CELL_COLUMNS
    | PAIR_COLUMNS
    | {
        "ratio_a": "first",
        "verdict_a": "says",
        "ratio_b": "second",
        "verdict_b": "says",
        "b_over_a": "second / first",
        "word": "intervals",
    }
)


def blocks(chosen: Chosen) -> list[Block]:
    head = shell.heading("Do two sweeps agree?", "The same cells and arms in two sweeps, or in two stores.")
    one = chosen.place
    others = [place for place in chosen.snapshot.places if place is not one]
    if one is None or not others:
        return [
            head,
            shell.nothing_here(
                "There is one sweep only. Give a second store on the command line to compare with it:"
                " python -m dashboards.app STORE OTHER_STORE",
                [],
            ),
        ]
    said = place_of(chosen.snapshot, chosen.selection.against_store, chosen.selection.against)
    other = said if said is not None and said is not one else _most_alike(one, others)
    rows = agreement(one.world.verdicts, other.world.verdicts)
    options = [
        (
            _words(place),
            PATH + chosen.selection.but(against_store=place.number, against=place.name).search,
            place is other,
        )
        for place in others
    ]
    apart = rows.filter(word="apart").height
    known = rows.filter(word="apart").height + rows.filter(word="overlap").height
    return [
        head,
        choice.choices([choice.place_choice(chosen, PATH), choice.choice("with", options, "against")]),
        shell.simulated_banner(one.world.simulated and other.world.simulated),
        html.P(theme.SIMULATED + ": one of the two axes.", className="simulated-banner")
        if one.world.simulated != other.world.simulated
        else None,
        html.P(
            f"{len(rows)} {'comparison of arms is' if len(rows) == 1 else 'comparisons of arms are'} in both;"
            f" of {known} with two intervals, {apart} {'lies' if apart == 1 else 'lie'} apart."
            if len(rows)
            else "The two have no cell and pair of arms in common.",
            className="answer",
        ),
        Panel(
            "agreement",
            figures.agreement_figure(rows, (_words(one), _words(other)), (one.world.simulated, other.world.simulated)),
            rows,
            "Ratios of throughput, arm over baseline, at equal total concurrency. On the dotted line both say the same;"
            " filled marks: the intervals lie apart.",
            480,
            COLUMNS,
            f"agreement {one.name} {other.name}",
        ),
    ]


def _most_alike(one: Place, others: list[Place]) -> Place:
    return max(others, key=lambda place: (len(agreement(one.world.verdicts, place.world.verdicts)), place.name))


def _words(place: Place) -> str:
    return f"{place.world.sweep}, {place.world.gpu_kind}, {place.world.backend}"
