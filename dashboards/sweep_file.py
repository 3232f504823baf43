"""A sweep file as it was run: what it planned, and a smaller one that measures one cell again or further."""

from __future__ import annotations

from typing import Any, cast

import yaml

from orchestrator.errors import SpecError
from orchestrator.expand import expand
from orchestrator.spec import parse_spec
from orchestrator.trial import Backend, Repeat

AXES = ("model", "kind", "prompt_tokens", "output_tokens", "concurrency")


def planned(text: str, backend: str, gpu_kind: str) -> tuple[Repeat, ...]:
    """The repeats that a sweep file asks for on one backend and GPU kind. Raises SpecError."""
    return expand(parse_spec(text), cast(Backend, backend), gpu_kind)


def planned_trials(text: str, backend: str, gpu_kind: str) -> int | None:
    """How many trials a sweep file asks for; None where this release cannot read it any more."""
    try:
        return sum(len(repeat.measured) for repeat in planned(text, backend, gpu_kind))
    except SpecError:
        return None


def only_this_cell(text: str, cell: dict[str, Any], repeats: int) -> str:
    """A sweep file for one cell with as many repeats: those that the store holds keep their identity.

    What identifies a repeat is its cell, arms, engine arguments, measurement and number, never the other cells, so a
    sweep of this file into the same store adds only what is missing. cell: values of AXES.
    """
    fields = yaml.safe_load(text)
    fields["sweep"] = {"include": [{axis: cell[axis] for axis in AXES}]}
    fields["repeats"] = repeats
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110)


def command(file: str, store: str, backend: str) -> str:
    """What runs a sweep file into a store; finished repeats are left alone."""
    return f"python -m orchestrator.sweep {file} --store {store} --backend {backend}"
