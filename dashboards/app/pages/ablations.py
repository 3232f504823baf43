"""Ablations: pairs of arms that differ in one setting, and what it is worth; and models by halves of their layers."""

from __future__ import annotations

import polars as pl

from dashboards import cells, figures, half_chapter, settings
from dashboards.app import shell
from dashboards.app.chosen import Chosen
from dashboards.app.panel import Block, Panel
from dashboards.app.site import Place
from dashboards.columns import CELL_COLUMNS, PAIR_COLUMNS, RATIO_COLUMNS

PATH = "/ablations"
COLUMNS = {"difference": "setting (baseline)"} | CELL_COLUMNS | PAIR_COLUMNS | RATIO_COLUMNS


def blocks(chosen: Chosen) -> list[Block]:
    head = shell.heading(
        "What is one setting worth?",
        "Two arms that share the GPU in the same way and differ in one setting. What a tuned single engine gets from"
        " the setting is no merit of a second engine.",
    )
    shown: list[Block] = [head]
    compared: set[str] = set()
    for place in chosen.snapshot.places:
        world = place.world
        rows = settings.ablations(world.verdicts.filter(pl.col("metric") == "throughput"), world.trials)
        if rows.is_empty():
            continue
        labelled = rows.with_columns(
            label=pl.Series([_label(row) for row in rows.iter_rows(named=True)], dtype=pl.String),
            series=pl.format("{}: {} / {}", "difference", "arm", "baseline"),
        )
        compared |= {row.split(" ")[0] for row in rows["difference"]}
        name = f"ablation-{len(shown)}"
        shown += [
            shell.section(f"{world.sweep} on {world.gpu_kind}", f"backend {world.backend}"),
            shell.simulated_banner(world.simulated),
            Panel(
                name,
                figures.ratio_forest(labelled, "Throughput with the setting over without", "arm over baseline"),
                rows,
                "Bars are 95 % intervals; hollow marks are undecided; the grey band is a tie.",
                540,
                COLUMNS,
                f"{name} {place.name}",
            ),
        ]
    held = ", ".join(sorted({place.world.sweep for place in chosen.snapshot.places})) or "no sweep"
    if not compared:
        shown.append(
            shell.nothing_here(
                f"No two arms of what is loaded ({held}) differ in one setting alone. These sweeps have such arms:",
                settings.who_compares(None),
            )
        )
    else:
        others = [
            each for each in settings.who_compares(None)
            if each.path.removeprefix("sweeps/").removesuffix(".yaml")
            not in {place.world.sweep for place in chosen.snapshot.places}
        ]  # fmt: skip
        if others:
            shown.append(shell.nothing_here("Not measured in what is loaded; these sweeps would add:", others))
    for place in chosen.snapshot.places:
        shown += _halves(place, len(shown))
    return shown


def _halves(place: Place, first: int) -> list[Block]:
    """Of a sweep that has variants of a model, or profiles of a step. first: makes names unique in the page."""
    world = place.world
    drawn = [(half_chapter.GAIN_WORDS, *each) for each in half_chapter.gains_by_halves(world).items()]
    drawn += [(half_chapter.STEP_WORDS, *each) for each in half_chapter.steps_by_part(world, place.store).items()]
    if not drawn:
        return []
    return [
        shell.section(f"{half_chapter.HEADING}: {world.sweep} on {world.gpu_kind}", half_chapter.LEAD),
        shell.simulated_banner(world.simulated),
        *(
            Panel(f"halves-{first + at}", figure, rows, f"{label}. {words}", 520, {}, f"halves {label} {place.name}")
            for at, (words, label, (figure, rows)) in enumerate(drawn)
        ),
    ]


def _label(row: dict[str, object]) -> str:
    return f"{cells.cell_label(row)}, {row['kind']}, {row['concurrency']} in flight"
