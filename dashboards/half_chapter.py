"""Halves of a model in report and app: what each gains, and where the time of a step goes."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from dashboards import answer, cells, figures
from dashboards.page import Page
from dashboards.step_parts import step_parts
from dashboards.world import World
from orchestrator.store import ResultStore
from orchestrator.trial import replayed
from workloads.variants import split

# A figure and the rows that it was drawn from.
Drawing = tuple[go.Figure, pl.DataFrame]
HEADING = "Halves of a model"
LEAD = "Attention alone and the MLP alone, each with the norms, the KV and the schedule of the full model."
GAIN_WORDS = "Bars are 95 % intervals."
STEP_WORDS = "From a profile of the kernels of the single engine's replayed step; means over boots."


def half_chapter(page: Page, world: World, store: ResultStore, prefix: str) -> None:
    """Append it where the sweep has variants of a model, or profiles of a step. Raises StoreError."""
    gains = {name: fig for name, (fig, _) in gains_by_halves(world).items()}
    bars = {name: fig for name, (fig, _) in steps_by_part(world, store).items()}
    if not gains and not bars:
        return
    page.section(f"{prefix}halves", HEADING, LEAD)
    if gains:
        page.add(page.plot(f"{prefix}halves-gain", gains, GAIN_WORDS, 520))
    if bars:
        page.add(page.plot(f"{prefix}halves-step", bars, STEP_WORDS, 520))


def gains_by_halves(world: World) -> dict[str, Drawing]:
    """By load, model and pair of arms, for every model that was measured by halves, too."""
    rows = world.verdicts.with_columns(base=pl.col("model").map_elements(lambda name: split(name)[0], pl.String))
    main = answer.candidates(world.verdicts).select("arm", "baseline").unique(maintain_order=True).rows()
    found = {}
    for scene in cells.scenes(world.verdicts):
        for (base,), own in scene.of(rows).group_by("base", maintain_order=True):
            for arm, baseline in main if own["model"].n_unique() > 1 else ():
                pair = own.filter(arm=arm, baseline=baseline).drop("base")
                model, load = str(base).rsplit("/", 1)[-1], cells.load_words(scene.concurrency)
                name = f"{scene.kind}, {model}, {load}: {arm} / {baseline}"
                found[name] = figures.halves_gain(pair), pair
    return found


def steps_by_part(world: World, store: ResultStore) -> dict[str, Drawing]:
    """By load and model, where replayed steps were profiled. Raises StoreError."""
    if world.simulated or not any(replayed(kind) for kind in world.trials["kind"].unique()):
        return {}
    parts = step_parts(world.trials, world.windows, store.read("samples", world.sweep))
    return {
        f"{kind}, {str(model).rsplit('/', 1)[-1]}": (figures.step_bars(own), own)
        for (kind, model), own in parts.group_by("kind", "model", maintain_order=True)
    }
