"""What the columns of cells and verdicts are called in tables, with their units: one wording for pages and report."""

from __future__ import annotations

CELL_COLUMNS = {
    "model": "model",
    "kind": "load",
    "prompt_tokens": "context, tokens",
    "concurrency": "in flight",
}
PAIR_COLUMNS = {"arm": "arm", "baseline": "against"}
RATIO_COLUMNS = {
    "ratio": "ratio",
    "ci_low": "low",
    "ci_high": "high",
    "verdict": "verdict",
    "boots": "boots",
}
