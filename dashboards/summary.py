"""A sweep's frames as a dashboard needs them, kept in a cache folder: derived, and rebuilt whenever they do not fit.

    <cache>/<mark of the store>/<sweep>.<key>.{trials,windows,verdicts}.parquet, .json

The key names the commit objects that the frames were made of and the code that made them, so a summary is either right
or not found. Requests, readings and certificates stay in the store: `cell_records` reads those of one cell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import polars as pl

import orchestrator
from orchestrator.commit import COMMITS, parse_commit_path
from orchestrator.objects import Listed
from orchestrator.records import WINDOWS
from orchestrator.store import ResultStore
from orchestrator.views import judge_views

FRAMES = ("trials", "windows", "verdicts")
# Most of a store's bytes, wanted for one cell at a time.
LEFT_OUT = ("certificate",)


@dataclass(frozen=True, slots=True)
class Summary:
    """One sweep. `trials` has `committed_unix_s` besides the columns of the table, `verdicts` those of `judge_views`.

    faults: what the store left out as damaged when the frames were made.
    """

    sweep: str
    key: str
    trials: pl.DataFrame
    windows: pl.DataFrame
    verdicts: pl.DataFrame
    faults: tuple[str, ...]


def commits(store: ResultStore) -> dict[str, list[Listed]]:
    """The commit objects by sweep: one listing, which is all that asking for news costs."""
    found: dict[str, list[Listed]] = {}
    for entry in store.objects.listing(COMMITS):
        if name := parse_commit_path(entry.path):
            found.setdefault(name.sweep, []).append(entry)
    return found


def key_of(entries: Iterable[Listed]) -> str:
    """Names a set of commits as read by this code."""
    digest = hashlib.sha256(_code().encode())
    for entry in sorted(entries, key=lambda entry: entry.path):
        digest.update(f"{entry.path} {entry.size_bytes} {entry.modified_unix_s}\n".encode())
    return digest.hexdigest()[:16]


def summary(store: ResultStore, sweep: str, entries: list[Listed], folder: Path | None) -> Summary:
    """The summary of a sweep whose commits are `entries`, from `folder` where it is there, else made and kept there.

    folder: of this store; None: nothing is kept. Raises StoreError where the store cannot be read.
    """
    key = key_of(entries)
    kept = None if folder is None else _load(folder, sweep, key)
    if kept is not None:
        return kept
    before = len(store.faults)
    trials = store.read("trials", sweep).join(_times(store, sweep), on="repeat_id", how="left")
    windows = store.read("windows", sweep, [name for name in WINDOWS.names() if name not in LEFT_OUT])
    made = Summary(
        sweep,
        key,
        trials,
        windows,
        judge_views(trials.drop("committed_unix_s"), windows),
        tuple(store.faults[before:]),
    )
    if folder is not None:
        _keep(folder, made)
    return made


def cache_folder(store: ResultStore) -> Path:
    """Where the summaries of a store are kept: under $MPSCAPE_CACHE, else ~/.cache/mpscape."""
    home = Path(os.environ.get("MPSCAPE_CACHE", Path.home() / ".cache" / "mpscape"))
    return home / "dashboards" / store.mark()


def _times(store: ResultStore, sweep: str) -> pl.DataFrame:
    """When each repeat was committed, by the clock of who did it: a copy of a store has new file times."""
    written = [(repeat_id, commit.written_unix_s) for repeat_id, commit in store.committed(sweep).items()]
    return pl.DataFrame(written, schema={"repeat_id": pl.String, "committed_unix_s": pl.Float64}, orient="row")


def _file(folder: Path, sweep: str, key: str, what: str) -> Path:
    return folder / f"{_stem(sweep)}.{key}.{what}"


def _stem(sweep: str) -> str:
    return quote(sweep, safe="").replace(".", "%2E")


def _load(folder: Path, sweep: str, key: str) -> Summary | None:
    note = _file(folder, sweep, key, "json")
    if not note.is_file():
        return None
    # The note is written last, so the frames beside it are whole; a disk may have lost them since.
    try:
        trials, windows, verdicts = (
            pl.read_parquet(_file(folder, sweep, key, f"{name}.parquet"), glob=False) for name in FRAMES
        )
        faults = tuple(json.loads(note.read_text(encoding="utf-8"))["faults"])
    except (pl.exceptions.PolarsError, OSError, ValueError):
        return None
    return Summary(sweep, key, trials, windows, verdicts, faults)


def _keep(folder: Path, made: Summary) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FRAMES:
        _write(_file(folder, made.sweep, made.key, f"{name}.parquet"), getattr(made, name))
    note = _file(folder, made.sweep, made.key, "json")
    staged = note.with_name(f".{uuid4().hex}")
    staged.write_text(json.dumps({"faults": made.faults}), encoding="utf-8")
    staged.replace(note)
    current = {_file(folder, made.sweep, made.key, what).name for what in ("json", *(f"{n}.parquet" for n in FRAMES))}
    for old in folder.glob("*"):
        if old.name.split(".")[0] == _stem(made.sweep) and old.name not in current:
            old.unlink(missing_ok=True)


def _write(path: Path, frame: pl.DataFrame) -> None:
    staged = path.with_name(f".{uuid4().hex}")
    frame.write_parquet(staged, compression="zstd")
    staged.replace(path)


@cache
def _code() -> str:
    """A hash of the package that makes verdicts: a summary of other code is not ours."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(Path(orchestrator.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
