"""Where the numbers come from: machine, software, settings, the sweep file as it was run, and how to run it again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

import polars as pl

from orchestrator.commit import SPECS, sweep_folder
from orchestrator.store import ResultStore


def facts(trials: pl.DataFrame, windows: int) -> list[tuple[str, str]]:
    """What was measured with what, for the trials of one sweep, backend and GPU kind; several values are all listed."""
    started = trials.filter(pl.col("started_unix_s") > 0)["started_unix_s"]
    rows = [
        ("backend", _values(trials["backend"])),
        ("GPU", _values(trials["gpu_name"].drop_nulls()) or _values(trials["gpu_kind"])),
        ("GPU UUIDs", f"{trials['gpu_uuid'].drop_nulls().n_unique()} distinct"),
        ("hosts", _values(trials["host"].drop_nulls())),
        ("weights", _values(trials["weights"].drop_nulls())),
        ("software", _software(trials["software"].drop_nulls().unique().sort())),
        ("arms", _arms(trials)),
        ("residency", _values(trials["residency"].drop_nulls())),
        ("measurement", _settings(trials["measurement"].drop_nulls().unique().sort())),
        ("repeats", f"{trials['repeat'].n_unique()}, with {trials['boot_id'].drop_nulls().n_unique():,} boots in all"),
        ("windows", f"{windows:,} in {len(trials):,} trials"),
        ("begun", f"{_utc(min(started))} to {_utc(max(started))}" if len(started) else "not known"),
    ]  # fmt: skip
    return [(key, value) for key, value in rows if value]


def specs(store: ResultStore, sweep: str, shas: Iterable[str]) -> dict[str, str | None]:
    """Path in the store to text of each sweep file; None where it is not kept there."""
    paths = [f"{sweep_folder(SPECS, sweep)}/{sha}.yaml" for sha in sorted(set(shas))]
    return {
        path: None if store.objects.stat(path) is None else store.objects.get(path).decode(errors="replace")
        for path in paths
    }


def command(backend: str, spec_path: str) -> str:
    """What measures the same again into a new store; `spec_path` is relative to the store's top."""
    return f"python -m orchestrator.sweep STORE/{spec_path} --store NEW_STORE --backend {backend}"


def _values(column: pl.Series) -> str:
    return ", ".join(str(value) for value in column.unique().sort())


def _software(texts: Iterable[str]) -> str:
    seen: dict[str, set[str]] = {}
    for text in texts:
        for name, version in json.loads(text).items():
            if version is not None:
                seen.setdefault(name, set()).add(str(version))
    return ", ".join(f"{name} {' | '.join(sorted(versions))}" for name, versions in sorted(seen.items()))


def _settings(texts: Iterable[str]) -> str:
    return " | ".join(", ".join(f"{key} {value}" for key, value in json.loads(text).items()) for text in texts)


def _arms(trials: pl.DataFrame) -> str:
    described = []
    columns = ["arm", "sharing", "engines", "active_thread_percentage", "cores_per_engine", "pinned", "engine_args"]
    for row in trials.select(columns).unique().sort("engines", "arm", "engine_args").iter_rows(named=True):
        share = f" at {row['active_thread_percentage']} % of the SMs" if row["active_thread_percentage"] else ""
        cores = f"{row['cores_per_engine']} {'pinned' if row['pinned'] else 'floating'} cores each"
        many = "engine" if row["engines"] == 1 else "engines"
        what = f"{row['sharing']}, {row['engines']} {many}{share}"
        described.append(f"{row['arm']}: {what}, {cores}, {row['engine_args']}")
    return "; ".join(described)


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
