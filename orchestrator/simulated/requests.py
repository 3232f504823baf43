"""The requests of a finished run, as columns, and the rows and token counts that clients would have written.

Times of a run start at 0 with the warm-up. `scale` turns them into the seconds of the deployment's clock: it is below
one only where a planted gain makes an arm faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from orchestrator.records import REQUESTS_COLUMNS
from orchestrator.simulated.engine import Engine
from orchestrator.simulated.simulation import Run
from orchestrator.taper import tapered

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ENGINE_SAMPLE_S = 1.0
REQUESTS_SCHEMA = {n: t for n, t in REQUESTS_COLUMNS.items() if n not in ("trial_id", "attempt_id", "window_index")}


@dataclass(frozen=True, slots=True)
class Window:
    """Where the window lies in a run: its edges in run time, and how run time maps to the deployment's clock.

    engines: how many the arm has; client c belongs to engine c % engines.
    """

    from_s: float
    until_s: float
    scale: float
    origin_ns: int
    engines: int
    prompt_tokens: int

    @property
    def seconds(self) -> float:
        return self.until_s - self.from_s

    def ns(self, run_s: Floats) -> Ints:
        return (self.origin_ns + np.rint(run_s * self.scale * 1e9)).astype(np.int64)

    def edges(self, every_s: float) -> Floats:
        """Run times of sample edges `every_s` of the deployment's clock apart; the last interval may be shorter."""
        steps = np.arange(self.from_s, self.until_s - 1e-9, every_s / self.scale)
        return np.append(steps, self.until_s)


@dataclass(frozen=True, slots=True)
class Requests:
    """All requests of a run as columns. Tokens of a request come in steps first..last of its engine, one a step."""

    engine: Ints
    client: Ints
    sequence: Ints
    asked: Ints
    sent_s: Floats
    first_s: Floats  # nan: no token came before the end
    last_s: Floats
    received: Ints
    completed: npt.NDArray[np.bool_]
    tokens_by_edge: Ints  # shape (requests, edges): tokens received before each sample edge

    @classmethod
    def of(cls, run: Run, window: Window) -> Requests:
        """Gather the requests of all engines; those sent at or after the window's end are not among them."""
        parts = [_engine_requests(engine, window) for engine in run.engines if engine.requests]
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def end_s(self, window: Window) -> Floats:
        return np.where(self.completed, self.last_s, window.until_s)


def _engine_requests(engine: Engine, window: Window) -> tuple[Any, ...]:
    delivered = np.asarray(engine.delivered_s)
    received_steps = int(np.searchsorted(delivered, window.until_s))
    asking = [request for request in engine.requests if request.sent_s < window.until_s]
    sent = np.array([request.sent_s for request in asking])
    client = np.array([request.client for request in asking])
    sequence = np.array([request.sequence for request in asking])
    asked = np.array([request.output_tokens for request in asking])
    first = np.array([request.first_step for request in asking])
    last = np.array([request.last_step for request in asking])
    started = (first >= 0) & (first < received_steps)
    last_received = np.minimum(last, received_steps - 1)
    received = np.where(started, last_received - first + 1, 0)
    completed = started & (last < received_steps)
    stamps = delivered if delivered.size else np.full(1, np.nan)
    first_s = np.where(started, stamps[np.where(started, first, 0)], np.nan)
    last_s = np.where(started, stamps[np.where(started, last_received, 0)], np.nan)
    steps_by_edge = np.searchsorted(delivered, window.edges(ENGINE_SAMPLE_S))
    before = np.clip(steps_by_edge[None, :] - first[:, None], 0, received[:, None])
    return client % window.engines, client, sequence, asked, sent, first_s, last_s, received, completed, before


def requests_frame(requests: Requests, window: Window) -> pl.DataFrame:
    """One row a request that was alive in the window, in the columns of records.REQUESTS without the ids."""
    end = requests.end_s(window)
    alive = np.flatnonzero((end >= window.from_s) & (requests.sent_s < window.until_s))
    alive = alive[np.lexsort((requests.sequence[alive], requests.client[alive]))]
    came = requests.received[alive] > 0
    first_ns = window.ns(np.nan_to_num(requests.first_s[alive]))
    last_ns = window.ns(np.nan_to_num(requests.last_s[alive]))
    frame = pl.DataFrame(
        {
            "engine": requests.engine[alive],
            "client": requests.client[alive],
            "sequence": requests.sequence[alive],
            "prompt_tokens": np.full(alive.size, window.prompt_tokens),
            "output_tokens_asked": requests.asked[alive],
            "output_tokens": requests.received[alive],
            "sent_ns": window.ns(requests.sent_s[alive]),
            "first_token_ns": first_ns,
            "last_token_ns": last_ns,
            "came": came,
            "ok": requests.completed[alive],
        }
    )
    made = {
        "first_token_ns": pl.when("came").then("first_token_ns"),
        "last_token_ns": pl.when("came").then("last_token_ns"),
        "status": pl.when("ok").then(pl.lit("ok")).otherwise(pl.lit("aborted")),
    }
    return frame.select(made.get(name, pl.col(name)).cast(kind).alias(name) for name, kind in REQUESTS_SCHEMA.items())


def tokens_by_second(requests: Requests, window: Window) -> Ints:
    """Output tokens by engine and sample interval: shape (engines, intervals)."""
    counts = np.diff(requests.tokens_by_edge, axis=1)
    return np.stack([counts[requests.engine == engine].sum(axis=0) for engine in range(window.engines)])


def output_tokens_s(engine: Engine, window: Window) -> float:
    """Output tokens a second of the deployment's clock, tapered."""
    made = [step.tokens for step in engine.steps[: len(engine.delivered_s)]]
    start_ns, end_ns = window.ns(np.array([window.from_s, window.until_s])).tolist()
    return tapered(window.ns(np.asarray(engine.delivered_s)), made, start_ns, end_ns)


def prompt_tokens(requests: Requests, window: Window) -> int:
    """Prompt tokens of the requests whose first token came in the window."""
    with np.errstate(invalid="ignore"):
        inside = (requests.first_s >= window.from_s) & (requests.first_s < window.until_s)
    return int(inside.sum()) * window.prompt_tokens
