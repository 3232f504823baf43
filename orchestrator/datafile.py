"""One immutable Parquet file: rows held strictly to a table's schema, and the proof that a file is whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from orchestrator.errors import SchemaTooNew, StoreError
from orchestrator.records import SCHEMA_VERSION, TABLES

VERSION_KEY = "mpscape.schema_version"
# From here on a dictionary of the values of a column is smaller than the values, and quicker to read.
DICTIONARY_ROWS = 1000
_ID = re.compile(r"[A-Za-z0-9_-]+")  # ids stand in file names as they are


def repeat_tables(
    sweep: str, repeat_id: str, attempt_id: str, frames: Mapping[str, pl.DataFrame]
) -> dict[str, pl.DataFrame]:
    """The tables that have rows, held to their schemas and to this one repeat.

    Raises:
        StoreError: no trials, trials that share an id, rows of another repeat, or what `conform` refuses.
    """
    if not (sweep and _ID.fullmatch(repeat_id) and _ID.fullmatch(attempt_id)):
        raise StoreError(
            f"sweep {sweep!r}, repeat {repeat_id!r}, attempt {attempt_id!r}: none may be empty, and both ids are made "
            "of letters, digits, _ and -"
        )
    if unknown := frames.keys() - TABLES.keys():
        raise StoreError(f"no such tables {sorted(unknown)}; there are {', '.join(TABLES)}")
    constants = {"sweep": sweep, "repeat_id": repeat_id, "attempt_id": attempt_id}
    tables = {name: conform(name, frame, constants) for name, frame in frames.items() if frame.height}
    if "trials" not in tables:
        raise StoreError(
            f"repeat {repeat_id} has no trial: a repeat that could not be measured is failed rows, not none"
        )
    trial_ids = tables["trials"]["trial_id"]
    if trial_ids.null_count() or trial_ids.n_unique() != trial_ids.len():
        raise StoreError(f"repeat {repeat_id}: each arm is one trial with an id of its own, not {trial_ids.to_list()}")
    for name, rows in tables.items():
        if foreign := set(rows["trial_id"].unique().to_list()) - set(trial_ids.to_list()):
            raise StoreError(f"{name}: rows of trials {foreign}, which are not in this repeat")
    return tables


def conform(table: str, frame: pl.DataFrame, constants: Mapping[str, str]) -> pl.DataFrame:
    """`frame` with exactly the columns and types of `table`.

    A missing column becomes null, or its constant where `constants` has one; a constant's column that is present must
    hold that value in every row. Only casts that keep the value are made (whole numbers to floats, narrow to wide).

    Raises:
        StoreError: a column that the table does not have, a type that does not fit, another value than the constant.
    """
    target, source = TABLES[table], dict(frame.schema)
    if unknown := source.keys() - target.keys():
        raise StoreError(f"{table}: no such columns {sorted(unknown)}; declare them in orchestrator/records.py")
    columns = []
    for name, dtype in target.items():
        if name not in source:
            columns.append(pl.Series(name, [constants.get(name)], dtype).new_from_index(0, frame.height))
        elif not _keeps_values(source[name], dtype):
            raise StoreError(f"{table}.{name}: {source[name]} does not fit {dtype}; cast it where the rows are made")
        else:
            columns.append(_cast(table, frame.get_column(name), dtype))
    for name in constants.keys() & source.keys():
        if found := set(frame.get_column(name).unique().to_list()) - {constants[name]}:
            raise StoreError(f"{table}.{name}: rows say {found}, not {constants[name]!r}; write one repeat at a time")
    return pl.DataFrame(columns)


def _cast(table: str, column: pl.Series, dtype: pl.DataType) -> pl.Series:
    if column.dtype == dtype:
        return column
    try:
        return column.cast(dtype, strict=True)
    except pl.exceptions.InvalidOperationError as error:
        raise StoreError(f"{table}.{column.name}: a value does not fit {dtype}: {error}") from error


def _keeps_values(source: pl.DataType, target: pl.DataType) -> bool:
    return (
        source == target
        or source == pl.Null
        or (isinstance(source, pl.List) and source.inner == pl.Null and isinstance(target, pl.List))
        or (source.is_integer() and (target.is_integer() or target == pl.Float64))
        or (source == pl.Float32 and target == pl.Float64)
        or (isinstance(source, pl.Enum | pl.Categorical) and target == pl.String)
    )


def encode(rows: pl.DataFrame) -> bytes:
    """The whole file in memory, so that a store only ever sees it complete.

    A repeat has few rows and many columns, so most of a plain file would be about the columns: statistics, dictionaries
    of one value, the schema a second time. None of it serves a reader that takes whole files and knows the schema.
    """
    buffer = BytesIO()
    table = rows.to_arrow()
    dictionaries = rows.height >= DICTIONARY_ROWS
    with pq.ParquetWriter(
        buffer,
        table.schema,
        compression="zstd",
        use_dictionary=dictionaries,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({VERSION_KEY: str(SCHEMA_VERSION)})
    return buffer.getvalue()


def fault(source: Path | bytes) -> str | None:
    """What is wrong with a data file's footer, or None.

    Raises:
        SchemaTooNew: the file was written by a newer release.
    """
    try:
        metadata = pl.read_parquet_metadata(source)
    except (pl.exceptions.ComputeError, OSError) as error:
        return f"no readable Parquet footer ({str(error).splitlines()[0]})"
    version = metadata.get(VERSION_KEY, "")
    if not version.isdigit():
        return f"its Parquet metadata has no {VERSION_KEY}: another program wrote it"
    refuse_newer(int(version), "a data file")
    return None


def refuse_newer(version: int, what: str) -> None:
    """Raises SchemaTooNew where `version` is past what this release knows."""
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{what} has schema version {version}, this release reads up to {SCHEMA_VERSION}: "
            "upgrade mpscape, or give --store another place"
        )


def scan(table: str, sources: Sequence[Path | bytes]) -> pl.LazyFrame:
    """All rows of the files, given all as paths or all as contents, with the columns of `table`.

    A column that an older file lacks is null. No pattern is expanded: a `[` or `*` in a path means itself.
    """
    if not sources:
        return pl.LazyFrame(schema=TABLES[table])
    paths = [source for source in sources if isinstance(source, Path)]
    contents = [source for source in sources if isinstance(source, bytes)]
    return pl.scan_parquet(
        paths or contents,
        glob=False,
        hive_partitioning=False,
        schema=TABLES[table],
        missing_columns="insert",
        extra_columns="ignore",
    )
