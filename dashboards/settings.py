"""In what two arms of one sweep differ: the ablations that a store holds, its A/A pairs, and who would add more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from orchestrator.spec import SWEEPS, SweepSpec, load_spec

PAIR = ["sweep", "backend", "gpu_kind", "arm", "baseline"]
LARGEST_GRAPH, GRAPH_SIZES = "max_cudagraph_capture_size", "cudagraph_capture_sizes"
SETTINGS = ("sharing", "engines", "active_thread_percentage", "cores_per_engine", "pinned")


@dataclass(frozen=True, slots=True)
class Question:
    """A sweep file that ships with the project and compares what is asked for."""

    path: str
    question: str

    @property
    def command(self) -> str:
        return f"python -m orchestrator.sweep {self.path} --store STORE"


def arm_settings(trials: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """By sweep and arm, all that an arm is: mode, cores and flattened engine arguments, `load_format` among them."""
    found = {}
    columns = ["sweep", "arm", *SETTINGS, "engine_args"]
    for row in trials.select(columns).unique(["sweep", "arm"], maintain_order=True).iter_rows(named=True):
        args = json.loads(row["engine_args"] or "{}")
        found[row["sweep"], row["arm"]] = {name: row[name] for name in SETTINGS} | args
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, with both values; None where an arm leaves the setting alone.

    The largest CUDA graph and the list of sizes up to it are one setting.
    """
    keys = list(dict.fromkeys([*one, *other]))
    found = {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}
    if LARGEST_GRAPH in found:
        found.pop(GRAPH_SIZES, None)
    return found


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """`max_cudagraph_capture_size 1024 (default)`: the arm's value, the baseline's in brackets."""
    return ", ".join(f"{key} {_value(mine)} ({_value(theirs)})" for key, (mine, theirs) in changed.items())


def ablations(verdicts: pl.DataFrame, trials: pl.DataFrame) -> pl.DataFrame:
    """Verdict rows of pairs that share the GPU in the same way and differ in one setting, plus `difference`."""
    return _pairs(verdicts, trials, lambda changed: len(changed) == 1 and "sharing" not in changed)


def same_against_same(verdicts: pl.DataFrame, trials: pl.DataFrame) -> pl.DataFrame:
    """Verdict rows of pairs without any difference (A/A), plus an empty `difference`."""
    return _pairs(verdicts, trials, lambda changed: not changed)


def _pairs(verdicts: pl.DataFrame, trials: pl.DataFrame, wanted: Any) -> pl.DataFrame:
    settings = arm_settings(trials)
    words = []
    for row in verdicts.select("sweep", "arm", "baseline").unique(maintain_order=True).iter_rows(named=True):
        mine, theirs = (settings.get((row["sweep"], row[side])) for side in ("arm", "baseline"))
        if mine is None or theirs is None:
            continue
        changed = differences(mine, theirs)
        if wanted(changed):
            words.append((row["sweep"], row["arm"], row["baseline"], in_words(changed)))
    schema = {"sweep": pl.String, "arm": pl.String, "baseline": pl.String, "difference": pl.String}
    return verdicts.join(pl.DataFrame(words, schema=schema, orient="row"), on=["sweep", "arm", "baseline"])


def shipped() -> list[SweepSpec]:
    """The sweep files of this installation."""
    return [load_spec(path) for path in sorted(SWEEPS.glob("*.yaml"))]


def who_compares(setting: str | None) -> list[Question]:
    """Shipped sweeps for real GPUs with two arms that differ in `setting` alone (None: in any one setting)."""
    found = []
    for spec in shipped():
        arms = [_spec_settings(spec, name) for name in spec.arms]
        steps = [differences(one, other) for i, one in enumerate(arms) for other in arms[:i]]
        hits = [step for step in steps if len(step) == 1 and "sharing" not in step]
        if spec.backend != "simulated" and any(setting is None or setting in step for step in hits):
            found.append(Question(f"sweeps/{spec.name}.yaml", spec.question))
    return found


def who_repeats_an_arm() -> list[Question]:
    """Shipped sweeps for real GPUs in which one arm is there twice."""
    found = []
    for spec in shipped():
        arms = [_spec_settings(spec, name) for name in spec.arms]
        if spec.backend != "simulated" and any(one in arms[:i] for i, one in enumerate(arms)):
            found.append(Question(f"sweeps/{spec.name}.yaml", spec.question))
    return found


def _spec_settings(spec: SweepSpec, name: str) -> dict[str, Any]:
    arm = spec.arms[name]
    mode = arm.mode()
    return {
        "sharing": mode.sharing,
        "engines": mode.engines,
        "active_thread_percentage": getattr(mode, "active_thread_percentage", None),
        "cores_per_engine": arm.cores_per_engine,
        "pinned": arm.pinned,
        "weights": arm.weights or spec.weights,
        **spec.engine_args,
        **arm.engine_args,
    }


def _value(value: Any) -> str:
    return "default" if value is None else str(value)
