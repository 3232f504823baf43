"""The store's frames as figures want them: windows joined to their trials, sweeps cut into scenes, models in order.

A scene is what one figure may show: one sweep, one backend, one GPU kind, one kind of load, and one concurrency, or
each cell's own where no cell has several. Predictions and measurements therefore never share an axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from dashboards import theme
from orchestrator import contrast

SCENE = ["sweep", "backend", "gpu_kind", "kind", "concurrency"]
CELL = [*SCENE[:3], "model", "kind", "prompt_tokens", "output_tokens", "concurrency", "residency"]
SHARING_ORDER = {"single": 0, "timesliced": 1, "mps": 2}


@dataclass(frozen=True, slots=True)
class Scene:
    """`output_tokens` and `residency` are None unless one model and context were run with several of them, and
    `concurrency` is where each cell has its own (`own_loads`)."""

    sweep: str
    backend: str
    gpu_kind: str
    kind: str
    concurrency: int | None
    output_tokens: int | None = None
    residency: str | None = None

    @property
    def simulated(self) -> bool:
        return self.backend == "simulated"

    @property
    def label(self) -> str:
        words = [self.gpu_kind, f"{self.kind} load", load_words(self.concurrency)]
        if self.output_tokens is not None:
            words.append(f"{self.output_tokens:,} output tokens")
        if self.residency is not None:
            words.append(f"engines {self.residency}")
        return " · ".join(words)

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of `frame` that belong to this scene."""
        given = {name: getattr(self, name) for name in [*SCENE, "output_tokens", "residency"]}
        return frame.filter(**{name: value for name, value in given.items() if value is not None})


def scenes(frame: pl.DataFrame) -> list[Scene]:
    """The scenes of a frame with the columns of a cell, in the order: sweep, backend, GPU, kind, concurrency."""
    cuts = []
    whole = frame.partition_by(SCENE[:-1], as_dict=True)
    by_load = {
        (*key, concurrency): part
        for key, rows in whole.items()
        for concurrency, part in (
            [(None, rows)] if own_loads(rows) else [(at[0], part) for at, part in rows.group_by("concurrency")]
        )
    }
    for key, rows in by_load.items():
        counts = rows.group_by("model", "prompt_tokens").agg(pl.col("output_tokens", "residency").n_unique())
        split = [name for name in ("output_tokens", "residency") if counts.select((pl.col(name) > 1).any()).item()]
        parts = rows.select(split).unique().to_dicts() if split else [{}]
        cuts += [Scene(*key, **part) for part in parts]
    return sorted(
        cuts,
        key=lambda s: (
            *(s.sweep, s.backend, s.gpu_kind, s.kind, s.concurrency or 0, s.output_tokens or 0, s.residency or ""),
        ),
    )


def own_loads(rows: pl.DataFrame) -> bool:
    """Whether there are several concurrencies and each cell of a map has one of them: a landscape in which long
    contexts take fewer clients is one map, a ladder of clients is not."""
    if rows["concurrency"].drop_nulls().n_unique() < 2:
        return False
    cell = ["model", "prompt_tokens", "output_tokens", "residency"]
    return int(rows.group_by(cell).agg(n=pl.col("concurrency").n_unique())["n"].max()) == 1  # type: ignore[arg-type]


def load_words(concurrency: int | None) -> str:
    return "requests in flight by cell" if concurrency is None else f"{concurrency:,} requests in flight"


def measured(trials: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """One row a window with its trial's columns, plus `rate` in tokens/s, see `contrast.rate`.

    The workload's lengths keep their names; the window's own counts become `tokens_out` and `tokens_in`.
    """
    asked = ["trial_id", "attempt_id", "repeat", "arm", "baseline", "sharing", "engines", "tie_margin", *CELL]
    counted = windows.rename({"output_tokens": "tokens_out", "prompt_tokens": "tokens_in"})
    return (
        counted.join(contrast.numbered(trials).select(asked), on=["trial_id", "attempt_id"], how="inner")
        .with_columns(rate=contrast.rate("tokens_in", "tokens_out"))
        .sort(*CELL, "repeat", "order_index", "arm")
    )


def arms(frame: pl.DataFrame) -> dict[str, str]:
    """Arm name to sharing mode, the baseline's family first: single, time-sliced, MPS; then by engines and name."""
    rows = frame.select("arm", "sharing", "engines").unique().rows()
    ordered = sorted(rows, key=lambda row: (SHARING_ORDER[row[1]], row[2], row[0]))
    return {arm: sharing for arm, sharing, _ in ordered}


def by_size(models: Iterable[str]) -> pl.Expr:
    """To sort rows by: the place of `model` in `model_order`."""
    places = {model: place for place, model in enumerate(model_order(models))}
    return pl.col("model").replace_strict(places, return_dtype=pl.Int64)


def model_order(models: Iterable[str], parameters: Mapping[str, int] | None = None) -> list[str]:
    """Smallest first. A model that `parameters` lacks is placed by the size in its name (`-0.5B`), else last."""
    known = parameters or {}

    def size(model: str) -> float:
        if model in known:
            return known[model]
        written = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", model.lower())
        return float(written[1]) * {"b": 1e9, "m": 1e6}[written[2]] if written else float("inf")

    return sorted(set(models), key=lambda model: (size(model), model))


def model_labels(models: Iterable[str]) -> dict[str, str]:
    """Names without their organisation, unless that would make two of them one."""
    names = list(models)
    short = {name: name.rsplit("/", 1)[-1] for name in names}
    return short if len(set(short.values())) == len(set(names)) else {name: name for name in names}


def cell_label(row: Mapping[str, object]) -> str:
    """`Qwen2.5-0.5B, 2k context`."""
    return f"{str(row['model']).rsplit('/', 1)[-1]}, {theme.tokens(int(str(row['prompt_tokens'])))} context"


def one_backend(frame: pl.DataFrame) -> bool:
    """Whether the frame's one backend is `simulated`.

    Raises ValueError where backends are mixed: a prediction and a measurement have no picture in common.
    """
    backends = frame["backend"].unique().to_list()
    if len(backends) > 1:
        raise ValueError(f"one backend a figure, not {sorted(backends)}: filter the frame by scene first")
    return backends == ["simulated"]
