"""A selection held against what there is: each unsaid or impossible value replaced by the first that exists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, get_args

import polars as pl

from dashboards import answer, cells
from dashboards.app.selection import Selection
from dashboards.app.site import Place, Snapshot
from dashboards.world import HEADLINE
from orchestrator.trial import Kind

KINDS: tuple[str, ...] = get_args(Kind)
VIEWS = {
    "equal_total": "equal total",
    "per_engine": "per engine",
    "own_peak": "own peak",
    "equal_latency": "equal latency",
}
VIEW_WORDS = {
    "equal_total": "as many requests in flight on the GPU in every arm: the headline",
    "per_engine": "as many requests in flight per engine: n engines get n times the load",
    "own_peak": "every arm at its own best concurrency",
    "equal_latency": "throughput at one latency, along each arm's ladder of concurrencies",
}
# Views in which concurrency is what differs between the arms.
OVER_LADDER = ("own_peak", "equal_latency")
# What does not depend on the chosen cell.
OF_THE_MAP = (
    "place", "kinds", "views", "_view_rows", "residencies", "pairs", "_pair_rows", "concurrencies", "output_lengths",
    "settings", "rows",
)  # fmt: skip
OF_A_CELL = ("model", "context", "repeat")
T = TypeVar("T")


@dataclass(frozen=True)  # without slots: what is derived is kept beside the fields
class Chosen:
    """One reader's choice in one snapshot. `place` is None in an empty store."""

    snapshot: Snapshot
    selection: Selection

    def at(self, selection: Selection) -> Chosen:
        """The same map with another cell chosen in it: what is derived of the map is shared, not made again."""
        other = replace(self, selection=selection)
        if self.place is not None:
            for name in OF_THE_MAP:
                other.__dict__[name] = getattr(self, name)
        return other

    @cached_property
    def place(self) -> Place | None:
        said = self.selection
        asked = (said.store, said.sweep, said.backend, said.gpu)
        best, score = None, -1
        for place in self._by_weight:
            own = (place.number, place.world.sweep, place.world.backend, place.world.gpu_kind)
            hits = sum(one is not None and one == other for one, other in zip(asked, own, strict=True))
            if hits > score:
                best, score = place, hits
        return best

    @cached_property
    def _by_weight(self) -> list[Place]:
        """Measured before simulated, then where most of what the question asks is decided: what a reader wants."""

        def weight(place: Place) -> tuple[int, bool, int, int, str]:
            asked = answer.candidates(place.world.verdicts)
            open_ = asked.filter(verdict="undecided").height
            return place.number, place.world.simulated, open_ - len(asked), -len(asked), place.name

        return sorted(self.snapshot.places, key=weight)

    @cached_property
    def kinds(self) -> list[str]:
        assert self.place is not None
        return sorted(set(self.place.world.trials["kind"]), key=KINDS.index)

    @property
    def kind(self) -> str:
        return _one(self.selection.kind, self.kinds)

    @cached_property
    def views(self) -> dict[str, bool]:
        """Every view by name, and whether this sweep has rows of it."""
        assert self.place is not None
        there = set(self.place.world.views["view"])
        return {view: view in there for view in VIEWS}

    @property
    def view(self) -> str:
        return _one(self.selection.view, [view for view, there in self.views.items() if there] or [HEADLINE])

    @cached_property
    def _view_rows(self) -> pl.DataFrame:
        assert self.place is not None
        rows = self.place.world.views
        return rows.filter(pl.col("view") == self.view, pl.col("kind") == self.kind)

    @cached_property
    def residencies(self) -> list[str]:
        return sorted(set(self._view_rows["residency"].drop_nulls()), reverse=True)

    @property
    def residency(self) -> str | None:
        """The one with the most cells unless said: a check of residency covers few."""
        counts = self._view_rows["residency"].value_counts(sort=True)["residency"].to_list()
        return _one(self.selection.residency, self.residencies, counts[0]) if counts else None

    @cached_property
    def pairs(self) -> list[tuple[str, str, str | None]]:
        """(arm, baseline, part), those that answer the question first."""
        rows = self._view_rows.filter(pl.col("metric") == "throughput")
        main = set(answer.candidates(rows).select("arm", "baseline").unique().rows())
        found = rows.select("arm", "baseline", "part").unique(maintain_order=True).rows()
        return sorted(found, key=lambda row: ((row[0], row[1]) not in main, _rank(row[2]), row))

    @property
    def pair(self) -> tuple[str, str, str | None] | None:
        names = {f"{arm}~{baseline}": (arm, baseline, part) for arm, baseline, part in self.pairs}
        return names[_one(self.selection.pair, list(names))] if names else None

    @cached_property
    def _pair_rows(self) -> pl.DataFrame:
        if self.pair is None:
            return self._view_rows.clear()
        arm, baseline, _ = self.pair
        rows = self._view_rows.filter(arm=arm, baseline=baseline)
        return rows if self.residency is None else rows.filter(pl.col("residency").eq_missing(self.residency))

    @cached_property
    def concurrencies(self) -> list[int]:
        """To choose from; none where each cell has its own."""
        if cells.own_loads(self._pair_rows):
            return []
        return sorted(set(self._pair_rows["concurrency"].drop_nulls()))

    @property
    def concurrency(self) -> int | None:
        """The one with the most cells unless said, the larger of equals."""
        if not self.concurrencies:
            return None
        counts = self._pair_rows.drop_nulls("concurrency").group_by("concurrency").len()
        most = int(counts.sort("len", "concurrency", descending=True)["concurrency"][0])
        return _one(self.selection.concurrency, self.concurrencies, most)

    @cached_property
    def output_lengths(self) -> list[int]:
        return sorted(set(self._pair_rows["output_tokens"].drop_nulls()))

    @property
    def output_tokens(self) -> int | None:
        return _one(self.selection.output_tokens, self.output_lengths) if self.output_lengths else None

    @cached_property
    def settings(self) -> list[str]:
        """What is held equal, where the view has several levels of it."""
        if self.view != "equal_latency":
            return []
        return list(dict.fromkeys(self._pair_rows["setting"].drop_nulls()))

    @property
    def setting(self) -> str | None:
        return _one(self.selection.setting, self.settings) if self.settings else None

    @cached_property
    def rows(self) -> pl.DataFrame:
        """The verdict rows of all metrics that one map may show: one a model, context and metric."""
        rows = self._pair_rows
        for name in ("concurrency", "output_tokens", "setting"):
            value = getattr(self, name)
            if value is not None:
                rows = rows.filter(pl.col(name).eq_missing(value))
        return rows

    @cached_property
    def cell(self) -> dict[str, Any] | None:
        """Model, workload and load of the chosen cell at equal total concurrency; None where none is chosen.

        In a view over a ladder of concurrencies the map's cell has none of its own: the largest is shown.
        """
        said = self.selection
        if said.model is None or said.context is None or self.place is None:
            return None
        rows = self.place.world.trials.filter(
            pl.col("model") == said.model, pl.col("prompt_tokens") == said.context, pl.col("kind") == self.kind
        )
        for name in ("output_tokens", "concurrency"):
            wanted = getattr(self, name)
            if wanted is not None and len(rows.filter(pl.col(name) == wanted)):
                rows = rows.filter(pl.col(name) == wanted)
        if rows.is_empty():
            return None
        return rows.sort("concurrency", "output_tokens", descending=True).select(AXES).row(0, named=True)

    def in_cell(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of the chosen cell."""
        assert self.cell is not None
        return frame.filter(**self.cell)

    @property
    def label(self) -> str:
        """What the map shows, in words."""
        assert self.place is not None
        words = [self.place.world.gpu_kind, f"{self.kind} load"]
        if self.concurrency is not None or self.view not in OVER_LADDER:
            words.append(cells.load_words(self.concurrency))
        if self.output_tokens is not None:
            words.append(f"{self.output_tokens:,} output tokens")
        words.append(self.setting or VIEW_WORDS[self.view].split(":")[0])
        return " · ".join(words)


AXES = ["model", "kind", "prompt_tokens", "output_tokens", "concurrency"]


def place_of(snapshot: Snapshot, number: int | None, name: str | None) -> Place | None:
    """The place with this store number and name."""
    for place in snapshot.places:
        if place.number == (number or 0) and place.name == name:
            return place
    return None


def models(chosen: Chosen) -> list[str]:
    assert chosen.place is not None
    return cells.model_order(chosen.place.world.trials["model"], chosen.place.world.parameters)


def _one(said: T | None, there: list[T], otherwise: T | None = None) -> T:
    if said is not None and said in there:
        return said
    return there[0] if otherwise is None else otherwise


def _rank(part: str | None) -> int:
    order = ["gain", *answer.STEPS]
    return order.index(part) if part in order else len(order)
