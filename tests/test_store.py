"""The store under several writers, kills, damage and odd names: real processes, real files."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from obstore.store import MemoryStore

from orchestrator.commit import commit_path, data_path
from orchestrator.errors import SchemaTooNew, StoreError
from orchestrator.marker import MARKER
from orchestrator.objects import Objects, absolute_store, default_store
from orchestrator.records import SCHEMA_VERSION, TABLES
from orchestrator.store import ResultStore
from orchestrator.trial import Outcome

ARMS = ("single", "timesliced2", "mps2")


def repeat_frames(repeat_id: str, mark: int = 0, outcome: str = "ok", windows: int = 4) -> dict[str, pl.DataFrame]:
    """One repeat of three arms; `mark` is written into every row of every table, so that mixed attempts would show."""
    trial_ids = [f"{repeat_id}{arm}" for arm in ARMS]
    each = [trial_id for trial_id in trial_ids for _ in range(windows)]
    indices = list(range(windows)) * len(ARMS)
    return {
        "trials": pl.DataFrame(
            {"trial_id": trial_ids, "arm": ARMS, "outcome": outcome, "concurrency": mark, "tie_margin": 1}
        ).with_columns(reason=pl.when(pl.col("outcome") != "ok").then(pl.lit("because"))),
        "windows": pl.DataFrame({"trial_id": each, "window_index": indices, "output_tokens": mark}),
        "requests": pl.DataFrame({"trial_id": each, "window_index": indices, "client": mark}),
        "samples": pl.DataFrame({"trial_id": each, "window_index": indices, "value": float(mark)}),
    }


def write(store: ResultStore, repeat_id: str, attempt_id: str = "a1", generation: int = 1, **frames: object) -> bool:
    return store.write_repeat("s", repeat_id, attempt_id, repeat_frames(repeat_id, **frames), generation)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore.open(str(tmp_path / "store"), create=True)


@pytest.fixture
def bucket() -> ResultStore:
    """The code path of a bucket, without a network: objects in memory."""
    return ResultStore(Objects("memory:///", MemoryStore(), None))


def folder_of(store: ResultStore) -> Path:
    assert store.objects.root is not None
    return store.objects.root


def test_a_repeat_comes_back_as_it_went_in(store: ResultStore) -> None:
    assert write(store, "r1", mark=7)
    for table, schema in TABLES.items():
        assert store.read(table).schema == schema
    windows = store.read("windows", "s").sort("trial_id", "window_index")
    expected = repeat_frames("r1", mark=7)["windows"].sort("trial_id", "window_index")
    assert windows.select(expected.columns).equals(expected)
    assert windows["attempt_id"].unique().to_list() == ["a1"]
    assert windows["power_w"].null_count() == windows.height
    trials = store.read("trials", ["s"], columns=["sweep", "repeat_id", "tie_margin"])
    assert trials.unique().rows() == [("s", "r1", 1.0)]
    commit = store.committed("s")["r1"]
    assert {(file.table, file.rows) for file in commit.files} == {
        ("trials", 3), ("windows", 12), ("requests", 12), ("samples", 12)
    }  # fmt: skip
    assert {(trial.trial_id, trial.outcome) for trial in commit.trials} == {(f"r1{arm}", Outcome.OK) for arm in ARMS}
    assert store.faults == [] and store.verify("s") == []


def test_an_empty_store_has_no_rows_and_the_right_columns(store: ResultStore) -> None:
    assert store.sweeps() == [] and store.committed("s") == {} and store.generations("s") == {}
    for table, schema in TABLES.items():
        assert store.read(table).height == 0
        assert store.scan(table).collect_schema() == schema
        assert store.read(table, ["s", "t"]).schema == schema


def test_sweeps_are_kept_apart(store: ResultStore) -> None:
    names = ["s", "S [1]/*?", "100%", "ü=&", "..", "a b'c\"d"]
    for number, name in enumerate(names):
        store.write_repeat(name, "r", f"a{number}", repeat_frames("r", mark=number), 1)
    assert store.sweeps() == sorted(names)
    for number, name in enumerate(names):
        assert store.read("windows", name)["output_tokens"].unique().to_list() == [number]
        assert store.read("trials", name)["sweep"].unique().to_list() == [name]
        assert list(store.committed(name)) == ["r"]
    assert store.read("windows", [names[1], names[2]])["output_tokens"].unique().sort().to_list() == [1, 2]
    assert store.read("windows")["output_tokens"].n_unique() == len(names)
    assert store.faults == []


@pytest.mark.parametrize(
    "name",
    ["[1]", "a b", "it's", 'q"', "100%", "a%20b", "*?{x,y}", "ünï", "new\nline", "#1", "~", "$HOME", "a:b", "x://y"],
)
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    write(ResultStore.open(path, create=True), "r1", mark=3)
    reader = ResultStore.open(path, create=False)
    assert reader.read("windows")["output_tokens"].to_list() == [3] * 12
    assert reader.faults == [] and reader.verify("s") == []
    assert list(Path(path, "commits").iterdir()) == [Path(path, "commits", "sweep=s")]


def test_a_file_url_is_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b [1]"
    write(ResultStore.open(folder.as_uri(), create=True), "r1")
    assert ResultStore.open(str(folder), create=False).sweeps() == ["s"]


def test_a_store_travels_to_another_process(store: ResultStore) -> None:
    write(pickle.loads(pickle.dumps(store)), "r1")
    assert list(store.committed("s")) == ["r1"]


# ---- who wins


def test_the_highest_generation_counts(store: ResultStore) -> None:
    assert write(store, "r1", "a1", mark=1, outcome="failed")
    first = store.committed("s")["r1"]
    assert first.failed and first.trials[0].reason == "because"
    assert store.generations("s") == {"r1": 1}
    assert write(store, "r1", "a2", generation=2, mark=2)
    assert write(store, "r1", "a10", generation=10, mark=10)
    assert store.generations("s") == {"r1": 10}
    assert store.committed("s")["r1"].generation == 10 and not store.committed("s")["r1"].failed
    for table, column in [("trials", "concurrency"), ("windows", "output_tokens"), ("requests", "client")]:
        assert store.read(table)[column].unique().to_list() == [10]


def test_one_generation_is_committed_once(store: ResultStore) -> None:
    assert write(store, "r1", "a1", mark=1)
    assert not write(store, "r1", "a2", mark=2)
    assert store.read("windows")["output_tokens"].unique().to_list() == [1]
    with pytest.raises(StoreError, match="attempt id"):
        write(store, "r1", "a1", mark=3)
    assert store.verify("s") == []


RACER = """
import sys
from orchestrator.store import ResultStore
from tests.test_store import repeat_frames
store = ResultStore.open(sys.argv[1], create=True)
mark = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
won = [n for n in range(20) if store.write_repeat("s", f"r{n}", f"attempt{mark}", repeat_frames(f"r{n}", mark), 1)]
print(*won)
"""


def test_of_racing_processes_one_wins_and_no_reader_sees_two(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, path, str(mark)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for mark in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    winners: dict[str, int] = {}
    for mark, racer in enumerate(racers):
        output, _ = racer.communicate(timeout=60)
        assert racer.returncode == 0
        for number in output.split():
            assert f"r{number}" not in winners
            winners[f"r{number}"] = mark
    assert len(winners) == 20

    store = ResultStore.open(path, create=False)
    for table, column in [("trials", "concurrency"), ("windows", "output_tokens"), ("samples", "value")]:
        rows = store.read(table).with_columns(repeat=pl.col("trial_id").str.extract("^(r[0-9]+)"))
        seen = rows.group_by("repeat").agg(pl.col(column).unique(), pl.len())
        assert {repeat: marks for repeat, marks, _ in seen.iter_rows()} == {r: [mark] for r, mark in winners.items()}
        assert seen["len"].unique().to_list() == [3 if table == "trials" else 12]
    assert store.faults == []


# ---- what a kill leaves

ENDLESS_WRITER = """
import sys
from orchestrator.store import ResultStore
from tests.test_store import repeat_frames
store = ResultStore.open(sys.argv[1], create=True)
done = store.committed("s")
for number in range(int(sys.argv[3])):
    if f"r{number}" not in done:
        store.write_repeat("s", f"r{number}", sys.argv[2], repeat_frames(f"r{number}", number), 1)
        print(number, flush=True)
"""


def test_a_killed_writer_leaves_whole_repeats_and_the_next_one_resumes(tmp_path: Path) -> None:
    path, moments = str(tmp_path / "store"), random.Random(1)
    reported = 0
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS_WRITER, path, f"life{life}", "100000"], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(moments.randint(1, 25)):
                reported += bool(writer.stdout.readline())
            time.sleep(moments.uniform(0, 0.03))  # anywhere within the next repeats, not only at the start of one
            writer.send_signal(signal.SIGKILL)
            reported += len([line for line in writer.stdout if line.endswith("\n")])
        assert writer.returncode == -signal.SIGKILL

        store = ResultStore.open(path, create=False)
        committed = store.committed("s")
        # A repeat may be committed and its line not yet printed, once a life; never the other way round.
        assert reported <= len(committed) <= reported + life + 1
        for table, column in [("trials", "concurrency"), ("windows", "output_tokens"), ("samples", "value")]:
            rows = store.read(table)
            assert rows.height == len(committed) * (3 if table == "trials" else 12)
            assert rows.select(pl.concat_str(pl.lit("r"), pl.col(column).cast(pl.Int64)).eq(
                pl.col("trial_id").str.extract("^(r[0-9]+)")).all()).item()  # fmt: skip
        assert store.faults == [] and store.verify("s") == []

    total = len(committed) + 5
    subprocess.run([sys.executable, "-c", ENDLESS_WRITER, path, "last", str(total)], check=True, stdout=subprocess.PIPE)
    assert set(store.committed("s")) == {f"r{number}" for number in range(total)}


def test_staging_files_and_notes_are_not_data(store: ResultStore) -> None:
    write(store, "r1")
    folder = folder_of(store) / "windows" / "sweep=s"
    (folder / "r9-a9.parquet#1").write_bytes(b"PAR1 staged")
    (folder / "README.txt").write_text("note")
    (folder_of(store) / "commits" / "sweep=s" / "r9.1.json#1").write_bytes(b"{")
    assert store.read("windows").height == 12
    assert store.verify("s") == []


# ---- damage


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_torn_stray_file_is_reported_and_skipped(store: ResultStore, share: float) -> None:
    write(store, "r1", mark=1)
    folder = folder_of(store) / "windows" / "sweep=s"
    whole = (folder / "r1-a1.parquet").read_bytes()
    (folder / "r2-a2.parquet").write_bytes(whole[: int(len(whole) * share)])
    assert store.read("windows").height == 12
    assert [fault.split(":")[0] for fault in store.faults] == ["windows/sweep=s/r2-a2.parquet"]
    assert store.read("windows").height == 12 and len(store.faults) == 1
    assert len(store.verify("s")) == 1


@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_a_repeat_that_lost_a_file_is_measured_again(store: ResultStore, harm: str) -> None:
    write(store, "r1", mark=1)
    write(store, "r2", mark=2)
    victim = folder_of(store) / data_path("samples", "s", "r1", "a1")
    if harm == "missing":
        victim.unlink()
    else:
        os.truncate(victim, victim.stat().st_size // 2)
    assert list(store.committed("s")) == ["r2"]
    assert len(store.faults) == 1 and victim.name in store.faults[0]
    assert store.read("windows")["output_tokens"].unique().to_list() == [2]
    assert store.generations("s")["r1"] == 1
    assert write(store, "r1", "a2", generation=2, mark=3)
    assert set(store.committed("s")) == {"r1", "r2"}
    assert store.read("windows")["output_tokens"].unique().sort().to_list() == [2, 3]


def test_a_file_of_the_right_size_and_no_footer_is_found(store: ResultStore) -> None:
    write(store, "r1")
    victim = folder_of(store) / data_path("windows", "s", "r1", "a1")
    victim.write_bytes(victim.read_bytes()[:-8] + b"\0" * 8)
    assert store.read("windows").height == 0
    assert len(store.faults) == 1 and victim.name in store.faults[0]
    assert store.verify("s") == store.faults


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"repeat_id": "r1"}', "same-name"])
def test_a_damaged_commit_is_reported_and_the_one_before_it_counts(store: ResultStore, text: str) -> None:
    write(store, "r1", mark=1)
    write(store, "r2", mark=2)
    other = folder_of(store) / commit_path("s", "r2", 1)
    (folder_of(store) / commit_path("s", "r1", 2)).write_text(other.read_text() if text == "same-name" else text)
    assert {repeat_id: found.generation for repeat_id, found in store.committed("s").items()} == {"r1": 1, "r2": 1}
    assert len(store.faults) == 1 and "r1.2.json" in store.faults[0]
    assert store.generations("s")["r1"] == 2
    assert store.read("windows").height == 24


# ---- schema


def test_a_store_of_a_newer_release_is_refused(store: ResultStore) -> None:
    (folder_of(store) / MARKER).write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    for create in (True, False):
        with pytest.raises(SchemaTooNew, match="upgrade"):
            ResultStore.open(store.uri, create=create)


def test_a_commit_of_a_newer_release_is_refused_whatever_else_it_says(store: ResultStore) -> None:
    write(store, "r1")
    (folder_of(store) / commit_path("s", "r1", 2)).write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(SchemaTooNew):
        store.committed("s")
    with pytest.raises(SchemaTooNew):
        store.read("trials")


def test_a_data_file_of_a_newer_release_is_refused(store: ResultStore) -> None:
    write(store, "r1")
    frame = pl.DataFrame({"trial_id": ["x"]})
    frame.write_parquet(
        folder_of(store) / data_path("windows", "s", "r2", "a2"),
        metadata={"mpscape.schema_version": str(SCHEMA_VERSION + 1)},
    )
    with pytest.raises(SchemaTooNew):
        store.scan("windows")


def replace_windows(store: ResultStore, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Rewrite r1's windows and its commit so that their sizes agree again: what another release might have left."""
    path = folder_of(store) / data_path("windows", "s", "r1", "a1")
    change(pl.read_parquet(path, hive_partitioning=False)).write_parquet(path, metadata={"mpscape.schema_version": "1"})
    commit = folder_of(store) / commit_path("s", "r1", 1)
    fields = json.loads(commit.read_text())
    for file in fields["files"]:
        file["size_bytes"] = (folder_of(store) / file["path"]).stat().st_size
    commit.write_text(json.dumps(fields))


def test_a_column_that_an_older_file_lacks_is_null(store: ResultStore) -> None:
    write(store, "r1", mark=1)
    write(store, "r2", mark=2)
    replace_windows(store, lambda rows: rows.drop("output_tokens", "bound_by").with_columns(gone=1))
    windows = store.read("windows")
    assert windows.schema == TABLES["windows"]
    assert windows["output_tokens"].value_counts().sort("output_tokens").rows() == [(None, 12), (2, 12)]


def test_rows_of_another_attempt_in_a_committed_file_do_not_count(store: ResultStore) -> None:
    write(store, "r1", mark=1)
    replace_windows(store, lambda rows: pl.concat([rows, rows.with_columns(attempt_id=pl.lit("a2"))]))
    assert store.read("windows")["attempt_id"].to_list() == ["a1"] * 12
    assert store.scan("windows", "s").collect().height == 12


@pytest.mark.parametrize(
    ("table", "column", "values", "says"),
    [
        ("windows", "wattage", [1.0] * 12, "no such columns"),
        ("windows", "output_tokens", [1.5] * 12, "does not fit"),
        ("windows", "power_w", ["12"] * 12, "does not fit"),
        ("windows", "certified", [1] * 12, "does not fit"),
        ("windows", "attempt_id", ["a2"] * 12, "not 'a1'"),
        ("windows", "trial_id", ["other"] * 12, "which are not in"),
        ("windows", "trial_id", [None] * 12, "which are not in"),
        ("trials", "trial_id", ["same"] * 3, "id of its own"),
        ("trials", "outcome", ["okay"] * 3, "okay"),
        ("trials", "repeat_id", ["r2"] * 3, "not 'r1'"),
        ("trials", "sweep", ["s", "s", None], "not 's'"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_written(
    store: ResultStore, table: str, column: str, values: list[object], says: str
) -> None:
    frames = repeat_frames("r1")
    frames[table] = frames[table].with_columns(pl.Series(column, values))
    with pytest.raises(StoreError, match=says):
        store.write_repeat("s", "r1", "a1", frames, 1)
    assert [path.name for path in folder_of(store).rglob("*") if path.is_file()] == [MARKER]


def test_a_repeat_has_trials_and_known_tables(store: ResultStore) -> None:
    frames = repeat_frames("r1")
    with pytest.raises(StoreError, match="no trial"):
        store.write_repeat("s", "r1", "a1", {"windows": frames["windows"]}, 1)
    with pytest.raises(StoreError, match="no such tables"):
        store.write_repeat("s", "r1", "a1", {**frames, "extra": frames["windows"]}, 1)
    with pytest.raises(StoreError, match="letters"):
        store.write_repeat("s", "../r1", "a1", frames, 1)
    assert store.write_repeat("s", "r1", "a1", {**frames, "windows": frames["windows"].clear()}, 1)
    assert store.read("windows").height == 0 and store.read("trials").height == 3


# ---- opening


def test_a_store_that_cannot_be_used_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for uri in [tmp_path / "file", tmp_path / "file" / "below"]:
        for create in (True, False):
            with pytest.raises(StoreError, match="check the path"):
                ResultStore.open(str(uri), create=create)
    with pytest.raises(StoreError, match="no such folder"):
        ResultStore.open(str(tmp_path / "missing"), create=False)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=MARKER):
        ResultStore.open(str(tmp_path / "empty"), create=False)
    for uri in ["ftp://host/x", "file://relative/path", "nul\0"]:
        with pytest.raises(StoreError):
            ResultStore.open(str(uri), create=True)


def test_a_table_that_cannot_be_written_is_an_error_and_no_commit(store: ResultStore) -> None:
    (folder_of(store) / "samples").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="what is committed stays"):
        write(store, "r1")
    assert store.generations("s") == {}


def test_opening_twice_changes_nothing(store: ResultStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder_of(store).rglob("*")}
    ResultStore.open(store.uri, create=True)
    assert {path: path.stat().st_mtime_ns for path in folder_of(store).rglob("*")} == before


def test_the_mark_tells_stores_apart_and_is_the_same_for_all_who_share_one(store: ResultStore, tmp_path: Path) -> None:
    link = tmp_path / "other name"
    link.symlink_to(folder_of(store), target_is_directory=True)
    for create in (True, False):
        assert ResultStore.open(str(link), create=create).mark() == store.mark()
    assert ResultStore.open(str(tmp_path / "second"), create=True).mark() != store.mark()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": "one", "mark": "x"}'])
def test_a_damaged_marker_is_said(store: ResultStore, text: str) -> None:
    (folder_of(store) / MARKER).write_text(text)
    with pytest.raises(StoreError, match="damaged"):
        ResultStore.open(store.uri, create=False)


def test_the_spec_is_kept_once(store: ResultStore) -> None:
    path = store.write_spec("s", "abc", "name: s\n")
    assert store.write_spec("s", "abc", "name: s\n") == path
    assert (folder_of(store) / path).read_text() == "name: s\n"
    assert path == "specs/sweep=s/abc.yaml"


def test_a_relative_store_is_made_absolute_or_refused_under_a_job(tmp_path: Path) -> None:
    assert absolute_store("x [1]", under_ray_job=False) == str(Path.cwd() / "x [1]")
    with pytest.raises(StoreError, match="working directory"):
        absolute_store("results", under_ray_job=True)
    for uri in ["s3://bucket/x", "gs://b/x", "az://c/x", "file:///x", str(tmp_path)]:
        assert absolute_store(uri, under_ray_job=True) == uri
        assert absolute_store(uri, under_ray_job=False) == uri


# ---- buckets


def test_a_bucket_works_alike(bucket: ResultStore) -> None:
    assert bucket.read("windows").schema == TABLES["windows"]
    assert write(bucket, "r1", "a1", mark=1, outcome="failed")
    assert not write(bucket, "r1", "a2", mark=2)
    assert write(bucket, "r1", "a3", generation=2, mark=3)
    assert write(bucket, "r2", "b1", mark=4)
    assert bucket.read("windows", "s")["output_tokens"].unique().sort().to_list() == [3, 4]
    backend = bucket.objects.backend
    samples = bytes(backend.get(data_path("samples", "s", "r2", "b1")).bytes())
    backend.put(data_path("samples", "s", "r3", "c1"), samples[:100])
    assert bucket.read("samples")["value"].unique().sort().to_list() == [3.0, 4.0]
    assert len(bucket.faults) == 1
    backend.delete(data_path("windows", "s", "r2", "b1"))
    assert list(bucket.committed("s")) == ["r1"] and len(bucket.faults) == 2
    assert bucket.generations("s") == {"r1": 2, "r2": 1} and bucket.sweeps() == ["s"]


def test_without_a_name_a_job_keeps_its_results_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store(under_ray_job=False) == "results"
    under_job = absolute_store(default_store(under_ray_job=True), under_ray_job=True)
    assert under_job == str(tmp_path / "mpscape-results")
