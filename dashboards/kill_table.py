"""What a record of kills on a GPU says: who was killed, what became of the others, and of the GPU's memory.

The record is what `tests/test_kill_gpu.py` writes where `MPSCAPE_KILL_RECORD` names a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dashboards.findings_tables import table

MIB = 2**20
REASON_CHARACTERS = 100


def kill_table(record: Path) -> str:
    """One row a victim, as Markdown. The sweep loses one block after another: repeat k fell with victim k."""
    seen = _read(record)
    reasons = {row["repeat"]: row["reason"] for row in seen["failure_rows"]}
    rows = [
        (
            kill["victim"],
            f"{kill['alive_after_1_s']} of {kill['gpu_processes_of_its_block']}",
            f"{kill['gone_after_s']:.1f} s" if not kill["survivors_of_its_block"] else "never",
            _above_idle(kill["gpu_bytes_before"], seen),
            _above_idle(kill.get("gpu_bytes_after_all", kill["gpu_bytes_then"]), seen),
            _short(reasons[place]) if place in reasons else "none: the driver writes them",
        )
        for place, kill in enumerate(seen["kills"])
    ]
    return table(
        (
            "killed",
            "the block's GPU processes alive 1 s later",
            "all gone after",
            "GPU memory before, above idle",
            "afterwards",
            "the trials' reason",
        ),
        rows,
    )


def aftermath(record: Path) -> str:
    """How the same command ended after the last kill, and what the GPU held then."""
    seen = _read(record)
    end = json.loads(seen["log"][-1])
    left = _above_idle(seen["bytes_at_the_end"], seen)
    return (
        f"exit status {seen['status_of_the_rerun']}, {end['ok']} of {end['trials']} trials ok; "
        f"the GPU then held {left} above its idle state"
    )


def _read(record: Path) -> Mapping[str, Any]:
    seen: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return seen


def _above_idle(held_bytes: int, seen: Mapping[str, Any]) -> str:
    return f"{(held_bytes - seen['idle_bytes']) / MIB:,.0f} MiB"


def _short(reason: str) -> str:
    words = reason.split("; log: ")[0].split("; daemon at ")[0].replace("|", "/")
    return words if len(words) <= REASON_CHARACTERS else words[:REASON_CHARACTERS].rsplit(" ", 1)[0] + " …"
