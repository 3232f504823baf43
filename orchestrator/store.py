"""The results of sweeps: four Parquet tables and the commits that say which rows count.

    {store}/mpscape.json                                               {"schema_version": n, "mark": <chance>}
    {store}/{trials|windows|requests|samples}/sweep=<name>/<repeat_id>-<attempt_id>.parquet
    {store}/commits/sweep=<name>/<repeat_id>.<generation>.json         orchestrator/commit.py
    {store}/specs/sweep=<name>/<spec_sha>.yaml

Every object is created only if absent and never changed: no lock, no lease, and a writer killed at any point leaves
either a whole repeat or files that no commit names, which readers never see.

    store = ResultStore.open("results", create=True)
    store.write_repeat("landscape", repeat.repeat_id, attempt_id, {"trials": trials, "windows": windows}, generation=1)
    store.read("windows", ["landscape"])
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from orchestrator import datafile
from orchestrator.commit import (
    COMMITS,
    SPECS,
    Commit,
    DataFile,
    commit_path,
    data_path,
    is_data_path,
    parse_commit_path,
    sweep_folder,
    sweep_of,
    trial_commits,
)
from orchestrator.errors import StoreError
from orchestrator.marker import Marker
from orchestrator.objects import Listed, Objects
from orchestrator.records import SCHEMA_VERSION, TABLES


@dataclass(frozen=True, slots=True)
class ResultStore:
    """An open store. `faults` tells, in the order found, what was damaged and therefore left out."""

    objects: Objects
    faults: list[str] = field(default_factory=list)
    # Objects never change, so what was parsed or checked once is not fetched again: a live reader asks every second.
    _parsed: dict[Listed, Commit] = field(default_factory=dict, repr=False)
    _checked: dict[Listed, str | None] = field(default_factory=dict, repr=False)

    @property
    def uri(self) -> str:
        return self.objects.uri

    @classmethod
    def open(cls, uri: str, create: bool) -> ResultStore:
        """The store at a folder's path or at a file://, s3://, gs:// or az:// URL.

        Raises:
            StoreError: no store there (`create=False`), or not writable (`create=True`, proved by writing).
            SchemaTooNew: a newer release made it.
        """
        objects = Objects.connect(uri, create)
        if create:
            objects.prove_writable()
            Marker.create(objects)
        Marker.read(objects)
        return cls(objects)

    def mark(self) -> str:
        """What tells this store from any other: two nodes that read the same mark share it, whatever its path."""
        return Marker.read(self.objects).mark

    def write_repeat(
        self, sweep: str, repeat_id: str, attempt_id: str, frames: Mapping[str, pl.DataFrame], generation: int
    ) -> bool:
        """Write one repeat, all its arms: data files first, then the commit that makes them count.

        frames: by table, `trials` at least, with the columns of orchestrator/records.py; `sweep`, `repeat_id` and
        `attempt_id` are filled in where absent. attempt_id: new for every attempt. generation: 1 for a first
        measurement, then `generations()[repeat_id] + 1`.

        Returns False where another attempt has committed this generation: nobody will see this one's files.

        Raises:
            StoreError: rows that fit neither schema nor repeat, or a store that cannot be written.
        """
        tables = datafile.repeat_tables(sweep, repeat_id, attempt_id, frames)
        trials = trial_commits(tables["trials"])
        files = []
        for table, rows in tables.items():
            data = datafile.encode(rows)
            file = DataFile(data_path(table, sweep, repeat_id, attempt_id), rows.height, len(data))
            if not self.objects.create(file.path, data):
                raise StoreError(f"{file.path} is there already: an attempt id must not be used twice")
            files.append(file)
        commit = Commit(
            repeat_id=repeat_id,
            generation=generation,
            schema_version=SCHEMA_VERSION,
            trials=trials,
            files=tuple(files),
            written_unix_s=time.time(),
            host=socket.gethostname(),
        )
        return self.objects.create(commit_path(sweep, repeat_id, generation), commit.to_json())

    def write_spec(self, sweep: str, spec_sha: str, text: str) -> str:
        """Keep the sweep file that results come from; returns its path in the store. Doing it again is no error."""
        path = f"{sweep_folder(SPECS, sweep)}/{spec_sha}.yaml"
        self.objects.create(path, text.encode())
        return path

    def spec_text(self, sweep: str, spec_sha: str) -> str | None:
        """The sweep file that `write_spec` kept under this hash; None where there is none."""
        path = f"{sweep_folder(SPECS, sweep)}/{spec_sha}.yaml"
        return None if self.objects.stat(path) is None else self.objects.get(path).decode(errors="replace")

    def sweeps(self) -> list[str]:
        """Names of the sweeps that have commits, sorted."""
        return sorted(sweep_of(folder) for folder in self.objects.folders(COMMITS))

    def committed(self, sweep: str) -> dict[str, Commit]:
        """By repeat id, the commit of the highest generation, provided that its files are there in their full size.

        A repeat that lost a file is reported in `faults` and absent here, so that it is measured again.
        """
        return {commit.repeat_id: commit for commit in self._survey([sweep])[0]}

    def generations(self, sweep: str) -> dict[str, int]:
        """By repeat id, the highest generation that any commit object uses, a damaged one too."""
        highest: dict[str, int] = {}
        for entry in self.objects.listing(sweep_folder(COMMITS, sweep)):
            if name := parse_commit_path(entry.path):
                highest[name.repeat_id] = max(name.generation, highest.get(name.repeat_id, 0))
        return highest

    def committed_since(self, sweep: str, generations: Mapping[str, int]) -> dict[str, Commit]:
        """Of these repeats, the commit of the highest generation above the one given that counts, if there is one.

        Asks for names and lists nothing, so it costs as much as there are repeats in question, however large the sweep.
        """
        found: dict[str, Commit] = {}
        ahead = dict(generations)
        while ahead:
            ahead = {repeat_id: generation + 1 for repeat_id, generation in ahead.items()}
            paths = [commit_path(sweep, repeat_id, generation) for repeat_id, generation in ahead.items()]
            entries = dict(zip(ahead, self.objects.each(self.objects.stat, paths), strict=True))
            ahead = {repeat_id: ahead[repeat_id] for repeat_id, entry in entries.items() if entry is not None}
            for entry in filter(None, entries.values()):
                if (commit := self._parse(entry)) is not None and self._is_whole(commit, {}):
                    found[commit.repeat_id] = commit
        return found

    def attempts(self, sweep: str, commit: Commit) -> list[Commit]:
        """Every commit of the same repeat up to this one, oldest first; damaged ones are reported and left out."""
        paths = [commit_path(sweep, commit.repeat_id, number) for number in range(1, commit.generation)]
        listed = [entry for entry in self.objects.each(self.objects.stat, paths) if entry is not None]
        return [one for one in self.objects.each(self._parse, listed) if one is not None] + [commit]

    def verify(self, sweep: str) -> list[str]:
        """Every fault of a sweep, the footers of all its data files included; empty where all is well."""
        fresh = ResultStore(self.objects)
        commits, listed = fresh._survey([sweep])
        for table in TABLES:
            fresh._sound_sources(table, commits, listed)
        return fresh.faults

    def scan(self, table: str, sweep: str | None = None) -> pl.LazyFrame:
        """The committed rows of `table`, of one sweep or of all, in no particular order.

        Files are found and checked now, rows are read on collect; on a bucket the files are fetched now.

        Raises:
            SchemaTooNew: some of it was written by a newer release.
        """
        return self._scan(table, None if sweep is None else [sweep])

    def read(
        self, table: str, sweeps: str | Sequence[str] | None = None, columns: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """The committed rows of `table`, of one sweep, several or all, in no particular order.

        Raises:
            SchemaTooNew: some of it was written by a newer release.
            StoreError: a data file has a good footer and cannot be decoded.
        """
        rows = self._scan(table, [sweeps] if isinstance(sweeps, str) else sweeps)
        try:
            return rows.select(TABLES[table].names() if columns is None else list(columns)).collect()
        except (pl.exceptions.ComputeError, OSError) as error:
            raise StoreError(
                f"cannot decode a data file of {table} in {self.objects.uri!r}: {error}; "
                "delete that file and resume its sweep: the repeat is measured again"
            ) from error

    def _scan(self, table: str, sweeps: Sequence[str] | None) -> pl.LazyFrame:
        commits, listed = self._survey(sweeps)
        rows = datafile.scan(table, self._sound_sources(table, commits, listed))
        counted = [(trial.trial_id, trial.attempt_id) for commit in commits for trial in commit.trials]
        keys = pl.LazyFrame(counted, schema={"trial_id": pl.String, "attempt_id": pl.String}, orient="row")
        return rows.join(keys, on=["trial_id", "attempt_id"], how="semi")

    def _survey(self, sweeps: Sequence[str] | None) -> tuple[list[Commit], dict[str, Listed]]:
        """Commits that count, and every data file there is by path; one listing a table, whatever their number."""
        # Commits are listed before data files: what a commit names was written earlier, so it must show up later.
        history: dict[tuple[str, str], list[tuple[int, Listed]]] = {}
        for entry in self._list(COMMITS, sweeps):
            if name := parse_commit_path(entry.path):
                history.setdefault((name.sweep, name.repeat_id), []).append((name.generation, entry))
        listings = self.objects.each(lambda table: self._list(table, sweeps), TABLES)
        listed = {entry.path: entry for listing in listings for entry in listing if is_data_path(entry.path)}

        whole: list[Commit] = []
        stacks = [sorted(entries, key=lambda item: item[0]) for entries in history.values()]
        while stacks:
            commits = self.objects.each(self._parse, [stack.pop()[1] for stack in stacks])
            whole += [commit for commit in commits if commit is not None and self._is_whole(commit, listed)]
            stacks = [stack for stack, commit in zip(stacks, commits, strict=True) if commit is None and stack]
        return whole, listed

    def _list(self, kind: str, sweeps: Sequence[str] | None) -> list[Listed]:
        folders = [kind] if sweeps is None else [sweep_folder(kind, sweep) for sweep in dict.fromkeys(sweeps)]
        return [entry for folder in folders for entry in self.objects.listing(folder)]

    def _parse(self, entry: Listed) -> Commit | None:
        if entry in self._parsed:
            return self._parsed[entry]
        try:
            commit = Commit.from_json(self.objects.get(entry.path))
        except ValueError as error:
            self.report(f"{entry.path}: not a whole commit ({error}); ignored")
            return None
        name = parse_commit_path(entry.path)
        if name is None or (name.repeat_id, name.generation) != (commit.repeat_id, commit.generation):
            self.report(f"{entry.path}: the commit of another repeat under this name; ignored")
            return None
        self._parsed[entry] = commit
        return commit

    def _is_whole(self, commit: Commit, listed: dict[str, Listed]) -> bool:
        lost = []
        for file in commit.files:
            # A listing on NFS may lag behind the commit; asking for the name itself does not.
            entry = listed.get(file.path) or self.objects.stat(file.path)
            if entry is None:
                lost.append(f"{file.path}: missing")
            elif entry.size_bytes != file.size_bytes:
                lost.append(f"{file.path}: {entry.size_bytes} bytes, {file.size_bytes} when it was committed")
            else:
                listed[file.path] = entry
        for loss in lost:
            self.report(f"{loss}; repeat {commit.repeat_id} does not count and is to be measured again")
        return not lost

    def _sound_sources(self, table: str, commits: Iterable[Commit], listed: Mapping[str, Listed]) -> list[Path | bytes]:
        """What to read `table` from; a torn file, committed or stray, is reported and left out."""
        named = {file.path for commit in commits for file in commit.files if file.table == table}
        strays = [entry for path, entry in listed.items() if path.startswith(f"{table}/") and path not in named]
        self.objects.each(self._check, [entry for entry in strays if entry not in self._checked])
        sources = self.objects.each(self._check, [listed[path] for path in sorted(named)])
        return [source for source in sources if source is not None]

    def _check(self, entry: Listed) -> Path | bytes | None:
        source = self.objects.get(entry.path) if self.objects.root is None else self.objects.root / entry.path
        if entry not in self._checked:
            self._checked[entry] = datafile.fault(source)
        if fault := self._checked[entry]:
            self.report(f"{entry.path}: {fault}; skipped. If it belongs to a committed repeat, delete it and resume")
            return None
        return source

    def report(self, fault: str) -> None:
        """Add to `faults` what was found damaged, once."""
        if fault not in self.faults:
            self.faults.append(fault)
