"""A world: one sweep on one backend and one kind of GPU, which is what one chapter of a report may speak of."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from dashboards import cells, theme
from orchestrator.errors import ModelError
from orchestrator.views import judge_views
from workloads.catalogue import CATALOGUE, canonical_name, load_model

HEADLINE = "equal_total"


@dataclass(frozen=True, slots=True)
class World:
    """`measured` is of `cells.measured`, `views` of `orchestrator.views.judge_views`, `windows` as the store has them,
    with those of other worlds of the sweep."""

    sweep: str
    backend: str
    gpu_kind: str
    trials: pl.DataFrame
    measured: pl.DataFrame
    views: pl.DataFrame
    windows: pl.DataFrame

    @property
    def verdicts(self) -> pl.DataFrame:
        """The headline: arms compared at equal total concurrency."""
        return self.views.filter(pl.col("view") == HEADLINE)

    @property
    def simulated(self) -> bool:
        return self.backend == "simulated"

    @property
    def label(self) -> str:
        return f"{self.sweep} on {self.gpu_kind}, " + (theme.SIMULATED if self.simulated else f"backend {self.backend}")

    @property
    def parameters(self) -> dict[str, int]:
        """Parameter counts of the models that the catalogue knows."""
        counts = {}
        for model in self.trials["model"].unique().sort():
            try:
                known = canonical_name(model) in CATALOGUE
            except ModelError:
                known = False
            if known:
                counts[model] = load_model(model).parameters()
        return counts


def split(trials: pl.DataFrame, windows: pl.DataFrame, views: pl.DataFrame | None = None) -> list[World]:
    """One world a sweep, backend and GPU kind: measurements before predictions, then those with the most cells first.

    views: where judged already.
    """
    key = ["sweep", "backend", "gpu_kind"]
    measured = cells.measured(trials, windows)
    judged = judge_views(trials, windows) if views is None else views
    sizes = trials.group_by(key).agg(pl.struct("model", "kind", "prompt_tokens", "concurrency").n_unique()).rows()
    found = sorted(sizes, key=lambda world: (world[1] == "simulated", -world[3], world))
    worlds = []
    for sweep, backend, gpu_kind, _ in found:
        mine = dict(zip(key, (sweep, backend, gpu_kind), strict=True))
        frames = [frame.filter(**mine) for frame in (trials, measured, judged)]
        worlds.append(World(sweep, backend, gpu_kind, frames[0], frames[1], frames[2], windows))
    return worlds
