"""A world: one sweep on one backend and one kind of GPU, which is what one chapter of a report may speak of."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from dashboards import cells, theme
from orchestrator.errors import ModelError
from orchestrator.verdicts import judge
from workloads.catalogue import CATALOGUE, canonical_name, load_model


@dataclass(frozen=True, slots=True)
class World:
    """`measured` is of `cells.measured`, `verdicts` of `orchestrator.verdicts.judge`."""

    sweep: str
    backend: str
    gpu_kind: str
    trials: pl.DataFrame
    measured: pl.DataFrame
    verdicts: pl.DataFrame

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


def split(trials: pl.DataFrame, windows: pl.DataFrame) -> list[World]:
    """One world a sweep, backend and GPU kind, measurements before predictions."""
    key = ["sweep", "backend", "gpu_kind"]
    measured, verdicts = cells.measured(trials, windows), judge(trials, windows)
    found = sorted(trials.select(key).unique().rows(), key=lambda k: (k[1] == "simulated", k))
    return [
        World(*k, *(frame.filter(**dict(zip(key, k, strict=True))) for frame in (trials, measured, verdicts)))
        for k in found
    ]
