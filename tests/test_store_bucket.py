"""Stores in a bucket, on a real S3-compatible server: what a folder promises, a bucket promises too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from orchestrator.commit import commit_path, data_path
from orchestrator.errors import NoStore, StoreError
from orchestrator.objects import Objects
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge
from tests.ray_head import Head, clean_environment, ray_head
from tests.s3_server import ACCESS_KEY, S3, SECRET_KEY, SECRETS, SESSION_TOKEN, s3_server
from tests.small_sweep import TRIALS, await_trials, started, sweep, write_spec
from tests.test_store import RACER, repeat_frames, write


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def keys(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with what opens it in this process's environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def store(keys: S3, tmp_path: Path) -> ResultStore:
    return ResultStore.open(keys.uri(tmp_path.name), create=True)


def test_rows_come_back_as_from_a_folder(store: ResultStore, tmp_path: Path) -> None:
    folder = ResultStore.open(str(tmp_path / "store"), create=True)
    for each in (store, folder):
        assert write(each, "r1", "a1", mark=1, outcome="failed")
        assert write(each, "r1", "a2", generation=2, mark=3)
        assert write(each, "r2", "b1", mark=4)
        each.write_spec("s", "abc", "name: s\n")
    again = ResultStore.open(store.uri, create=False)
    for table in ("trials", "windows", "requests", "samples"):
        one, other = (each.read(table).sort(pl.all()) if table != "trials" else each.read(table).sort("trial_id")
                      for each in (again, folder))  # fmt: skip
        assert_frame_equal(one, other)
    assert again.sweeps() == ["s"] and again.generations("s") == {"r1": 2, "r2": 1}
    assert again.spec_text("s", "abc") == "name: s\n" and again.spec_text("s", "abd") is None
    assert again.mark() == store.mark() != folder.mark()
    assert again.faults == [] and again.verify("s") == []


def test_of_two_writers_one_makes_the_object(store: ResultStore, keys: S3) -> None:
    other = ResultStore.open(store.uri, create=False)
    assert write(store, "r1", "a1", mark=1) and not write(other, "r1", "b1", mark=2)
    assert other.read("windows")["output_tokens"].unique().to_list() == [1]
    with pytest.raises(StoreError, match="attempt id"):
        write(other, "r1", "a1", mark=3)
    # A PUT whose answer was lost is sent again and finds itself.
    assert other.objects.create("commits/x", b"same") and store.objects.create("commits/x", b"same")
    assert not store.objects.create("commits/x", b"else")


def test_of_racing_processes_one_wins_each_repeat(store: ResultStore, keys: S3) -> None:
    environment = clean_environment(**keys.environment)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER.replace("range(20)", "range(8)"), store.uri, str(mark)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for mark in range(2)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {
        int(number): mark for mark, racer in enumerate(racers) for number in racer.communicate(timeout=60)[0].split()
    }
    assert [racer.returncode for racer in racers] == [0, 0] and sorted(won) == list(range(8))
    rows = store.read("windows").with_columns(number=pl.col("trial_id").str.extract("^r([0-9]+)").cast(pl.Int64))
    seen = rows.group_by("number").agg(pl.col("output_tokens").unique())
    assert {number: marks for number, marks in seen.iter_rows()} == {number: [mark] for number, mark in won.items()}
    assert store.verify("s") == []


def test_a_torn_object_is_reported_and_a_lost_one_measured_again(store: ResultStore) -> None:
    assert write(store, "r1", "a1", mark=1) and write(store, "r2", "b1", mark=2)
    backend = store.objects.backend
    whole = store.objects.get(data_path("windows", "s", "r2", "b1"))
    backend.put(data_path("windows", "s", "r3", "c1"), whole[: len(whole) // 2])  # a stray, torn
    backend.put(commit_path("s", "r1", 2), b'{"repeat_id": "r1"')  # a torn commit: the one before it counts
    assert store.read("windows")["output_tokens"].unique().sort().to_list() == [1, 2]
    assert [fault.split(":")[0] for fault in store.faults] == [
        "commits/sweep=s/r1.2.json", "windows/sweep=s/r3-c1.parquet"
    ]  # fmt: skip
    backend.put(data_path("windows", "s", "r2", "b1"), whole[:-8])
    fresh = ResultStore.open(store.uri, create=False)
    assert list(fresh.committed("s")) == ["r1"] and any("to be measured again" in fault for fault in fresh.faults)
    assert fresh.generations("s") == {"r1": 2, "r2": 1}
    assert fresh.write_repeat("s", "r2", "b2", repeat_frames("r2", 5), 2)
    assert fresh.read("windows")["output_tokens"].unique().sort().to_list() == [1, 5]


def test_no_store_is_made_where_none_is_wanted(keys: S3) -> None:
    with pytest.raises(NoStore, match=r"mpscape\.json"):
        ResultStore.open(keys.uri("nothing-here"), create=False)
    assert Objects.connect(keys.uri("nothing-here"), create=False).listing("") == []
    with pytest.raises(StoreError, match="every node takes from its own environment"):
        ResultStore.open("s3://no-such-bucket/x", create=True)


CREDENTIALS_IN_URLS = (
    f"s3://{ACCESS_KEY}:{SECRET_KEY}@results/x",
    f"s3://results/x?aws_secret_access_key={SECRET_KEY}",
    f"https://results.example/x?X-Amz-Credential={ACCESS_KEY}&X-Amz-Signature=0",
    f"az://container/x#{SECRET_KEY}",
)


@pytest.mark.parametrize("uri", CREDENTIALS_IN_URLS)
def test_credentials_in_a_url_are_refused_and_not_repeated(uri: str) -> None:
    """A URL is printed, stored and passed around: it must not be what opens the bucket."""
    with pytest.raises(StoreError, match="in the environment") as refused:
        ResultStore.open(uri, create=True)
    assert not any(secret in str(refused.value) for secret in SECRETS)


def test_the_command_line_does_not_repeat_them_either() -> None:
    ended = sweep("--store", CREDENTIALS_IN_URLS[1])
    assert ended.status == 2 and ended.out == "" and "in the environment" in ended.err
    assert not any(secret in ended.err for secret in SECRETS)


def test_what_a_server_says_is_repeated_without_keys(keys: S3) -> None:
    """A server that refuses may quote the key and the signature that it was sent."""

    class Refusing(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(f"<Error><AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId>{SESSION_TOKEN}</Error>".encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(StoreError, match="403 Forbidden") as refused:
            ResultStore.open("s3://results/x", create=True)
        thread.join()
    printed = "".join(traceback.format_exception(refused.value))
    assert "<AWS_ACCESS_KEY_ID>" in printed and not any(secret in printed for secret in SECRETS)


# ---- whole sweeps


@pytest.fixture(scope="module")
def bucket_head(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Iterator[Head]:
    """A cluster whose nodes may open the bucket: hosts take credentials from the node that they run on."""
    with ray_head(tmp_path_factory.mktemp("home"), cpus=2, environment=s3.environment) as running:
        yield running


@pytest.mark.long
def test_a_killed_sweep_is_resumed_and_says_what_a_folder_says(tmp_path: Path, keys: S3, bucket_head: Head) -> None:
    spec, uri = write_spec(tmp_path, simulation={"wall_s_per_window": 0.05}), keys.uri(f"sweeps/{tmp_path.name}")
    environment = bucket_head.environment(**keys.environment)
    said = ""
    with started(spec, uri, environment) as process:
        await_trials(process, 4)
        process.send_signal(signal.SIGKILL)
        said += "".join(process.communicate())
    store = ResultStore.open(uri, create=False)
    before = store.committed("small")
    assert 0 < len(before) < TRIALS // 2
    ended = sweep(spec, "--store", uri, environment=environment)
    assert ended.status == 0, ended.err
    assert ended.answer["ok"] == TRIALS and ended.answer["store"] == uri
    after = store.committed("small")
    assert {name: commit.trials for name, commit in before.items()}.items() <= {
        name: commit.trials for name, commit in after.items()
    }.items()  # fmt: skip
    assert store.verify("small") == []

    folder = tmp_path / "store"
    alone = sweep(spec, "--store", folder, environment=environment)
    assert alone.status == 0 and alone.answer == ended.answer | {"store": str(folder)}
    one, other = (
        judge(each.read("trials"), each.read("windows"))
        for each in (store, ResultStore.open(str(folder), create=False))
    )
    assert one.height > 0
    assert_frame_equal(one, other, rel_tol=1e-11, abs_tol=1e-14)

    everything = [said.encode(), ended.out.encode(), ended.err.encode(), alone.err.encode()]
    everything += [store.objects.get(entry.path) for entry in store.objects.listing("")]
    everything += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    logs = [path for path in bucket_head.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name.startswith("gcs_server") for path in logs)
    everything += [path.read_bytes() for path in logs]
    assert not [text[:200] for text in everything if any(secret.encode() in text for secret in SECRETS)]
