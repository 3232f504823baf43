"""Host overhead: idle GPU time, the engines' threads, CUDA graphs, and the speed of the core under EngineCore."""

from __future__ import annotations

import polars as pl

from dashboards import figures, settings
from dashboards.app import choice, shell
from dashboards.app.chosen import Chosen
from dashboards.app.panel import Block, Panel
from dashboards.columns import CELL_COLUMNS
from dashboards.host_overhead import GRAPH_MODES, HOST_COUNTERS, speed_slopes, with_host_columns

PATH = "/host"
# What moves work off the host's critical path or makes it faster: the other ways to the same idle GPU time.
HOST_SETTINGS = ("async_scheduling", "pinned", "cores_per_engine", "max_cudagraph_capture_size")
RUN_COLUMNS = CELL_COLUMNS | {"arm": "arm", "repeat": "repeat", "rate": "tokens/s"}
COUNTERS = {
    "gpu_idle_share": "GPU not active, share",
    "step_s": "engine step, s",
    "engine_core_cpu_max": "busiest EngineCore, cores",
    "frontend_cpu_max": "busiest frontend, cores",
    "loop_lag_p99_s": "clients' loop lag p99, s",
}
MODES = {name: f"{words}, share of steps" for name, (words, _) in GRAPH_MODES.items()}


def blocks(chosen: Chosen) -> list[Block]:
    head = shell.heading(
        "What does the host cost?",
        "While EngineCore prepares the next step, the GPU may wait. A second engine fills that time; so may a faster"
        " core, a captured graph, or scheduling ahead.",
    )
    if chosen.place is None:
        return [head, shell.nothing_here("The store holds no committed trial yet.", [])]
    world = chosen.place.world
    rows = with_host_columns(world.measured.filter(pl.col("kind") == chosen.kind))
    shown: list[Block] = [
        head,
        shell.simulated_banner(world.simulated),
        choice.choices([choice.place_choice(chosen, PATH), choice.kind_choice(chosen, PATH)]),
        Panel(
            "host-counters",
            figures.host_counters(rows, world.parameters),
            rows.select(*RUN_COLUMNS, *HOST_COUNTERS),
            "Medians over certified windows, all concurrencies together.",
            220 + 150 * rows["model"].n_unique(),
            RUN_COLUMNS | COUNTERS,
            zoom=f"host {chosen.place.name} {chosen.kind}",
        ),
        Panel(
            "graph-modes",
            figures.graph_modes(rows),
            rows.select(*RUN_COLUMNS, *GRAPH_MODES),
            "A step that fits no captured graph is launched kernel by kernel.",
            480,
            RUN_COLUMNS | MODES,
            zoom=f"graphs {chosen.place.name} {chosen.kind}",
        ),
        shell.section(
            "The core under EngineCore",
            "Slope 1: the rate follows the speed of one core, the host bounds it. Slope 0: the core does not matter.",
        ),
    ]
    by_model = rows.partition_by("model", maintain_order=True)
    for number, part in enumerate(by_model):
        known = part.filter(pl.col("engine_core_speed_mops").is_not_null())
        if len(known) or number == len(by_model) - 1:
            shown.append(
                Panel(
                    f"core-speed-{number}",
                    figures.rate_over_core_speed(part),
                    speed_slopes(part),
                    "" if len(known) else "This backend does not time its core.",
                    460,
                    zoom=f"speed {chosen.place.name} {chosen.kind} {number}",
                )
            )
    return [*shown, *_other_ways(chosen)]


def _other_ways(chosen: Chosen) -> list[Block]:
    """Which host settings were compared, and who would compare the rest."""
    assert chosen.place is not None
    compared = {
        row.split(" ")[0]
        for place in chosen.snapshot.places
        for row in settings.ablations(place.world.verdicts, place.world.trials)["difference"]
    }
    shown: list[Block] = [shell.section("Other ways to the same idle time")]
    for setting in HOST_SETTINGS:
        if setting in compared:
            shown.append(shell.line([f"{setting}: compared, see ", ("Ablations", "/ablations")]))
            continue
        answers = settings.who_compares(setting)
        words = f"{setting}: no two arms of what is loaded differ in it alone."
        shown.append(
            shell.nothing_here(words + ("" if answers else " No shipped sweep has such arms yet either."), answers)
        )
    return shown
