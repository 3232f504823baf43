"""The certificate of a cell: every check, in how many windows it passed, and what it saw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from orchestrator.records import Columns

COLUMNS: Columns = {
    "check": pl.String,
    "arm": pl.String,
    "passed": pl.Int64,
    "windows": pl.Int64,
    "saw": pl.List(pl.String),
}
CHECKS = pl.Schema(COLUMNS)
MOST_SEEN = 3


def certificate_checks(windows: pl.DataFrame, arms: Mapping[str, str]) -> pl.DataFrame:
    """One row a check and arm, failed ones first; `saw` quotes failures, else the first window.

    windows: rows of the store's table with `certificate`, whose entries have `ok` and `saw`; arms: trial id to arm.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    quotes: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for trial_id, text in windows.sort("trial_id", "window_index").select("trial_id", "certificate").iter_rows():
        entries: dict[str, Any] = json.loads(text or "{}")
        for check, entry in entries.items():
            if not isinstance(entry, dict) or "ok" not in entry:
                continue  # notes: context, which proves nothing
            key = (check, arms[trial_id])
            tally = counts.setdefault(key, [0, 0])
            tally[0] += bool(entry["ok"])
            tally[1] += 1
            good, bad = quotes.setdefault(key, ([], []))
            (good if entry["ok"] else bad).append(str(entry.get("saw", "")))
    rows = [
        (check, arm, passed, total, list(dict.fromkeys(bad))[:MOST_SEEN] or good[:1])
        for (check, arm), (passed, total) in counts.items()
        for good, bad in [quotes[check, arm]]
    ]
    return pl.DataFrame(rows, schema=CHECKS, orient="row").sort(
        (pl.col("passed") < pl.col("windows")), "check", "arm", descending=[True, False, False]
    )
