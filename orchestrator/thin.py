"""Copy a store with fewer request rows, to keep a record small enough to commit: the windows stay whole.

    python -m orchestrator.thin SOURCE DESTINATION [--keep-every 4]

The rule: of every arm, the requests of every 4th client stay (client number divisible by 4), all of them, so latency
distributions keep their shape; windows, samples, trials and notes are copied as they are. Window columns are made
from all requests before. Attempts and generations keep their names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import polars as pl

from orchestrator.errors import MpscapeError, StoreError
from orchestrator.notes import copy_notes
from orchestrator.records import TABLES
from orchestrator.store import ResultStore


def thin(source: ResultStore, destination: ResultStore, keep_every: int) -> int:
    """Copy every committed repeat; returns how many, those that were there already included.

    Raises StoreError where one is there already with other rows.
    """
    copied = 0
    for sweep in source.sweeps():
        tables = {table: source.read(table, [sweep]) for table in TABLES}
        tables["requests"] = tables["requests"].filter(pl.col("client") % keep_every == 0)
        for repeat_id, commit in sorted(source.committed(sweep).items()):
            trials = {trial.trial_id for trial in commit.trials}
            frames = {table: rows.filter(pl.col("trial_id").is_in(trials)) for table, rows in tables.items()}
            attempt_id = commit.trials[0].attempt_id
            if not destination.write_repeat(sweep, repeat_id, attempt_id, frames, commit.generation):
                there = destination.committed(sweep).get(repeat_id)
                if there is None or there.trials != commit.trials:
                    raise StoreError(
                        f"{destination.uri!r} has another attempt at repeat {repeat_id} of sweep {sweep!r}: "
                        "copy to a new store"
                    )
            copied += 1
        copy_notes(source, destination, sweep)
        for sha in tables["trials"]["spec_sha"].drop_nulls().unique():
            if (text := source.spec_text(sweep, sha)) is not None:
                destination.write_spec(sweep, sha, text)
    return copied


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.thin", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument("--keep-every", type=int, default=4, help="keep the requests of every nth client (default 4)")
    options = parser.parse_args(arguments)
    try:
        source = ResultStore.open(options.source, create=False)
        copied = thin(source, ResultStore.open(options.destination, create=True), options.keep_every)
    except MpscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    for fault in source.faults:
        print(f"left out: {fault}", file=sys.stderr)
    print(f"{copied} repeats copied to {options.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
