"""A worker extension for tests: counts how often the parts of a decoder layer are called inside the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.engine_probe import StepProbe

PARTS = ("layers", "attention", "mlp", "norms")


class LayerCalls(StepProbe):
    """The step probe, and the counts in a file beside its own."""

    def mpscape_attach(self, counters_path: str) -> dict[str, Any]:
        calls = np.memmap(calls_file(Path(counters_path)), dtype=np.int64, mode="w+", shape=len(PARTS))
        for module in self.model_runner.model.modules():
            name = type(module).__name__
            if hasattr(module, "input_layernorm"):
                part = "layers"
            elif name == "Attention":
                part = "attention"
            elif name.endswith("MLP"):
                part = "mlp"
            elif name == "RMSNorm":
                part = "norms"
            else:
                continue
            module.register_forward_hook(_counting(calls, PARTS.index(part)))
        return super().mpscape_attach(counters_path)


def _counting(calls: np.memmap[Any, Any], slot: int) -> Any:
    def count(*_: Any) -> None:
        calls[slot] += 1

    return count


def calls_file(counters: Path) -> Path:
    return counters.with_suffix(".calls")


def calls_of(counters: Path) -> dict[str, int]:
    """Calls of all layers since the engine came up."""
    return dict(zip(PARTS, map(int, np.fromfile(calls_file(counters), dtype=np.int64)), strict=True))
