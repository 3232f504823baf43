"""What a store keeps raw of one cell: requests, readings and certificates, read from that cell's files alone."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from orchestrator import datafile
from orchestrator.commit import data_path
from orchestrator.store import ResultStore


def records(store: ResultStore, table: str, trials: pl.DataFrame) -> pl.DataFrame:
    """The rows of `table` that belong to `trials`, committed ones.

    The files are named by the trials themselves, so neither commits nor folders are listed: on a bucket that is one
    question and one fetch a repeat, all at once. A repeat without rows in this table has no file, and a torn one is
    left out; the store's own reading reports it. Raises StoreError where the store does not answer.
    """
    named = trials.select("sweep", "repeat_id", "attempt_id").unique().sort("repeat_id", "attempt_id")
    found = store.objects.each(lambda row: _source(store, data_path(table, *row)), named.rows())
    sources = [source for source in found if source is not None]
    keys = trials.lazy().select("trial_id", "attempt_id")
    return datafile.scan(table, sources).join(keys, on=["trial_id", "attempt_id"], how="semi").collect()


def _source(store: ResultStore, path: str) -> Path | bytes | None:
    if store.objects.stat(path) is None:
        return None
    source = store.objects.get(path) if store.objects.root is None else store.objects.root / path
    return None if datafile.fault(source) else source
