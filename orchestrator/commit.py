"""The commit object of a repeat: which attempt counts, how its trials ended, and which data files hold it.

A commit is one small JSON object at `commits/sweep=<name>/<repeat_id>.<generation>.json`, created only if absent, after
every data file that it names. So a repeat is there as a whole or not at all, and of several drivers that measured the
same repeat exactly one wins. A repeat that is measured again (a failure retried, a file lost) gets the next generation;
readers follow the highest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import polars as pl

from orchestrator.datafile import refuse_newer
from orchestrator.errors import StoreError
from orchestrator.records import TABLES
from orchestrator.trial import Outcome, canonical_json

COMMITS = "commits"
SPECS = "specs"

_NAME = re.compile(r"(?P<repeat_id>[A-Za-z0-9_-]+)\.(?P<generation>[0-9]+)\.json")


@dataclass(frozen=True, slots=True)
class TrialCommit:
    """How one arm of the repeat ended. `reason` is None where the outcome is ok."""

    trial_id: str
    attempt_id: str
    outcome: Outcome
    reason: str | None


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of the repeat; `path` is relative to the store and begins with the table's name."""

    path: str
    rows: int
    size_bytes: int

    @property
    def table(self) -> str:
        return self.path.split("/", 1)[0]


@dataclass(frozen=True, slots=True)
class Commit:
    """What counts for one repeat, as of one generation."""

    repeat_id: str
    generation: int
    schema_version: int
    trials: tuple[TrialCommit, ...]
    files: tuple[DataFile, ...]
    written_unix_s: float
    host: str

    @property
    def failed(self) -> bool:
        """Whether some arm failed, so that a retry has something to gain."""
        return any(trial.outcome is Outcome.FAILED for trial in self.trials)

    def to_json(self) -> bytes:
        return canonical_json(self).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Commit:
        """Raises ValueError on anything that is not a whole commit, SchemaTooNew on a newer release's."""
        fields: Any = json.loads(text)
        if not isinstance(fields, Mapping):
            raise ValueError("not a JSON object")
        try:
            refuse_newer(_typed(fields, "schema_version", int), "a commit")  # first: its other fields may have changed
            commit = cls(
                repeat_id=_typed(fields, "repeat_id", str),
                generation=_typed(fields, "generation", int),
                schema_version=_typed(fields, "schema_version", int),
                trials=tuple(
                    TrialCommit(
                        trial_id=_typed(trial, "trial_id", str),
                        attempt_id=_typed(trial, "attempt_id", str),
                        outcome=Outcome(_typed(trial, "outcome", str)),
                        reason=None if trial["reason"] is None else _typed(trial, "reason", str),
                    )
                    for trial in fields["trials"]
                ),
                files=tuple(
                    DataFile(_typed(file, "path", str), _typed(file, "rows", int), _typed(file, "size_bytes", int))
                    for file in fields["files"]
                ),
                written_unix_s=float(_typed(fields, "written_unix_s", float, int)),
                host=_typed(fields, "host", str),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a commit without a good {error}") from error
        if not commit.trials:
            raise ValueError("a commit without trials")
        return commit


def trial_commits(trials: pl.DataFrame) -> tuple[TrialCommit, ...]:
    """What a commit says of the rows of `trials`. Raises StoreError on an outcome that there is not."""
    try:
        return tuple(
            TrialCommit(trial_id, attempt_id, Outcome(outcome), reason)
            for trial_id, attempt_id, outcome, reason in trials.select(
                "trial_id", "attempt_id", "outcome", "reason"
            ).iter_rows()
        )
    except ValueError as error:
        raise StoreError(f"trials.outcome: {error}; there are {', '.join(Outcome)}") from error


def _typed(fields: Mapping[str, Any], key: str, *types: type) -> Any:
    value = fields[key]
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError(f"{key}: {value!r}")
    return value


def sweep_folder(kind: str, sweep: str) -> str:
    """`<kind>/sweep=<name>`, the name URL-encoded: the one hive key of the layout."""
    return f"{kind}/sweep={quote(sweep, safe='')}"


def sweep_of(path: str) -> str:
    """The sweep's name out of any path that `sweep_folder` begins."""
    return unquote(path.split("/")[1].removeprefix("sweep="))


def commit_path(sweep: str, repeat_id: str, generation: int) -> str:
    return f"{sweep_folder(COMMITS, sweep)}/{repeat_id}.{generation}.json"


class CommitName(NamedTuple):
    sweep: str
    repeat_id: str
    generation: int


def parse_commit_path(path: str) -> CommitName | None:
    """None where the path is no commit's."""
    parts = path.split("/")
    if len(parts) != 3 or parts[0] != COMMITS or not parts[1].startswith("sweep="):
        return None
    name = _NAME.fullmatch(parts[2])
    return CommitName(sweep_of(path), name["repeat_id"], int(name["generation"])) if name else None


def data_path(table: str, sweep: str, repeat_id: str, attempt_id: str) -> str:
    return f"{sweep_folder(table, sweep)}/{repeat_id}-{attempt_id}.parquet"


def is_data_path(path: str) -> bool:
    """Whether this is a Parquet file where data files live; notes and staging files are not."""
    parts = path.split("/")
    return len(parts) == 3 and parts[0] in TABLES and parts[1].startswith("sweep=") and path.endswith(".parquet")
