"""The nouns of a sweep as frozen values, and the identity of a measurement.

A `Repeat` is one measurement of all arms of a cell on one GPU in one set of boots: the unit of pairing and of resume.
A `Trial` is one arm in one repeat. Both ids are the hash of everything that changes the measurement: the model and its
engine arguments, the workload, the concurrency, every arm that is interleaved, the measurement settings, the GPU kind,
the backend and the repeat's number. What is not part of it: the physical GPU, the store, the sweep's name, and the
other cells that happened to share the boot (KV never binds, so they only size buffers; the sizes are recorded).

    >>> Mps(engines=2).sharing
    'mps'
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, cast

Backend = Literal["vllm", "vllm-cpu", "simulated"]
Kind = Literal["mixed", "text", "image", "prefill", "decode", "prefill-replay", "decode-replay"]
Phase = Literal["mixed", "prefill", "decode"]
PILOT_SHARE, PILOT_MOST_S = 0.3, 5.0
REPLAYED = "-replay"  # how such a kind ends
Sharing = Literal["single", "timesliced", "mps"]

# For a field that came later: at its default it is not part of an identity, so that older trials keep theirs.
SINCE_THEN = {"identity": "unless default"}


@dataclass(frozen=True, slots=True)
class Single:
    """One engine has the GPU to itself."""

    engines: Literal[1] = 1
    sharing: Literal["single"] = "single"


@dataclass(frozen=True, slots=True)
class TimeSliced:
    """`engines` engines share the GPU by the driver's time slices: no MPS."""

    engines: int
    sharing: Literal["timesliced"] = "timesliced"


@dataclass(frozen=True, slots=True)
class Mps:
    """`engines` engines are clients of one MPS server; `engines=1` is the control for MPS's own cost.

    `active_thread_percentage` caps the share of SMs each client may use (100 = no cap).
    """

    engines: int
    active_thread_percentage: int = 100
    sharing: Literal["mps"] = "mps"


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to use one GPU. `engine_args` override the sweep's; `cores_per_engine` is the core budget of one engine.

    `pinned`: EngineCore alone on one physical core and the frontend with its clients on the others of the budget;
    otherwise the engine floats over the whole machine.
    """

    name: str
    mode: Single | TimeSliced | Mps
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    cores_per_engine: int = 2
    pinned: bool = True

    @property
    def engines(self) -> int:
        return self.mode.engines

    @property
    def sharing(self) -> Sharing:
        return self.mode.sharing


@dataclass(frozen=True, slots=True)
class Workload:
    """What each request asks for. `prefill` has one output token; `decode` has no prefill inside a window.

    `text` is `mixed` with prompts and outputs as text, so that a tokenizer is in the path, and a detokenizer.
    `image` is `mixed` with an image in each prompt, `prompt_tokens` in all.
    `prefill-replay` and `decode-replay` serve the same requests up to the first full step; a window of theirs runs
    that one step over and over on the GPU, with no scheduler, no sampling and no client in the path.
    """

    kind: Kind
    prompt_tokens: int
    output_tokens: int
    seed: int = 0

    @property
    def phase(self) -> Phase:
        """What the steps do, served or replayed."""
        return phase_of(self.kind)

    @property
    def replayed(self) -> bool:
        return replayed(self.kind)

    @property
    def as_text(self) -> bool:
        return self.kind == "text"

    @property
    def with_image(self) -> bool:
        return self.kind == "image"


def replayed(kind: str) -> bool:
    """Whether it is one step over and over, with no host in the path."""
    return kind.endswith(REPLAYED)


def phase_of(kind: str) -> Phase:
    """`prefill` of `prefill-replay`, `mixed` of `text` and `image`; any other kind is its own phase.

    >>> phase_of("decode-replay")
    'decode'
    """
    return cast(Phase, "mixed" if kind in ("text", "image") else kind.removesuffix(REPLAYED))


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long and how often to look.

    window_s: shortest window; it grows to four median request latencies where those are longer.
    warmup_s: shortest warm-up before each window; it runs into the window without draining.
    min_windows, max_windows: windows an arm in one repeat; the budget is `max_windows`.
    interval_target: stop adding windows once the half-width of the within-repeat 95 % interval of every
        candidate's log ratio is below this.
    tie_margin: a ratio within 1 ± this is a tie.
    profile_steps: after each replayed window of an arm of one engine, run its step so many times under a profiler.
    """

    window_s: float = 4.0
    warmup_s: float = 2.0
    min_windows: int = 4
    max_windows: int = 8
    interval_target: float = 0.02
    tie_margin: float = 0.03
    profile_steps: int = field(default=0, metadata=SINCE_THEN)

    @property
    def pilot_s(self) -> float:
        """Of a first look at how slow an arm is, in seconds: a longer one would tell no more."""
        return min(self.window_s * PILOT_SHARE, PILOT_MOST_S)


@dataclass(frozen=True, slots=True)
class Cell:
    """What arms are compared within."""

    gpu_kind: str
    model: str
    workload: Workload
    concurrency: int


@dataclass(frozen=True)  # without slots: the id is kept beside the fields, once computed
class Repeat:
    """All arms of one cell, measured once in one set of boots. `arms[0]` is the baseline.

    alone: the name of the one arm that is measured, after the engines of all the others have gone; against the same
    arm's windows among resident engines it shows what residency does.
    """

    backend: Backend
    cell: Cell
    arms: tuple[Arm, ...]
    engine_args: Mapping[str, Any]
    measurement: Measurement
    number: int
    seed: int
    alone: str | None = field(default=None, metadata=SINCE_THEN)

    @property
    def measured(self) -> tuple[Arm, ...]:
        """The arms that get windows."""
        return self.arms if self.alone is None else tuple(arm for arm in self.arms if arm.name == self.alone)

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @cached_property
    def repeat_id(self) -> str:
        return fingerprint(self)

    def trial_id(self, arm: Arm) -> str:
        """The identity of `arm` within this repeat."""
        return fingerprint({"repeat": self.repeat_id, "arm": arm.name})


class Outcome(StrEnum):
    """How a trial ended. `skipped`: it does not fit, which is a fact and not a failure."""

    OK = "ok"
    SKIPPED = "skipped"
    FAILED = "failed"


def fingerprint(value: Any) -> str:
    """16 hex digits of the sha256 of the value's canonical JSON.

    Raises TypeError on anything without one stable form (sets, NaN, arbitrary objects): a permissive fallback would
    fork identities without a word.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; dataclasses become objects."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    # Not asdict, which copies deeply: a large sweep has 100,000 ids to make.
    if hasattr(kind, "__dataclass_fields__"):
        return {
            name: _plain(getattr(value, name))
            for name, each in kind.__dataclass_fields__.items()
            if each.metadata != SINCE_THEN or getattr(value, name) != each.default
        }
    if kind is dict or isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"only text keys have a canonical form: {list(value)!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float):
        return value
    raise TypeError(f"no canonical form for {kind.__name__}: {value!r}")


_ATOMS = frozenset((str, int, float, bool, type(None)))
