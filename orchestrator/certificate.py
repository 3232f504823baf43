"""Whether a window's number may be believed: all checks together, and what a backend is forgiven for not knowing.

A no fails the window, and with it those it is paired with. So does an unknown, but for the facts that a backend has no
way to know (MAY_BE_UNKNOWN).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.observation import BootFacts, Observation, WindowOrder
from orchestrator.trial import Backend, Repeat
from orchestrator.validity import CHECKS, Planned

__all__ = ["MAY_BE_UNKNOWN", "Certificate", "Planned", "certify", "planned_for"]

MAY_BE_UNKNOWN: Mapping[Backend, frozenset[str]] = {
    "vllm": frozenset(),
    # no GPU, hence no list of processes on it, and no MPS; on few cores nothing is pinned
    "vllm-cpu": frozenset({"attachment", "strangers", "core_sets"}),
    # nothing to attach to, to be strangers on, or to put on cores
    "simulated": frozenset(
        {"attachment", "strangers", "core_sets", "prefix_cache", "idle_arms", "kv_bytes", "replayed_step"}
    ),
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """failures: one line each, in plain words with numbers. checks: by name, `ok` (null: unknown) and what it `saw`."""

    certified: bool
    failures: tuple[str, ...]
    checks: Mapping[str, Mapping[str, Any]]


def planned_for(repeat: Repeat, boot: BootFacts) -> Planned:
    """What a trial's windows are held against."""
    return Planned(repeat.backend, boot.kv_bytes_per_engine, boot.max_num_seqs)


def certify(order: WindowOrder, observation: Observation, planned: Planned) -> Certificate:
    """Judge one window. `order.arm` is the arm that was loaded."""
    findings = {name: check(order, observation, planned) for name, check in CHECKS.items()}
    forgiven = MAY_BE_UNKNOWN[planned.backend]
    failures = tuple(
        f"{name}: {finding.saw}"
        for name, finding in findings.items()
        if finding.ok is False or (finding.ok is None and name not in forgiven)
    )
    checks = {name: {"ok": finding.ok, "saw": finding.saw} for name, finding in findings.items()}
    return Certificate(not failures, failures, checks)
