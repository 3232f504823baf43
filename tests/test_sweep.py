"""The command line of a sweep, as a user meets it: statuses, messages, what is printed last and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.expand import expand
from orchestrator.spec import load_spec
from orchestrator.store import ResultStore
from orchestrator.sweep import main
from orchestrator.tries import ATTEMPTS
from tests.ray_head import Head, clean_environment
from tests.small_sweep import REPEATS, SPEC, TRIALS, Ended, commits, generations, sweep, verdict_table, write_spec

MPS2 = SPEC["arms"]["mps2"]
GRID = SPEC["sweep"]["grid"]


def of_grid(**axes: object) -> dict[str, object]:
    return {"sweep": {"grid": GRID | axes}}


@pytest.fixture
def here(monkeypatch, capsys) -> Iterator[Callable[..., Ended]]:
    """The command line in this process: what ends before anything is started needs none of its own, which would import
    for a second."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    handler = signal.getsignal(signal.SIGTERM)

    def ended(*arguments: str | Path) -> Ended:
        status = main([str(argument) for argument in arguments])
        return Ended(status, *capsys.readouterr())

    yield ended
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeat": 3}, "repeat: unknown key (did you mean 'repeats'?)"),
        ({"repeats": "three"}, "repeats: must be a whole number, not 'three'"),
        (of_grid(prompt_tokens=[-64]), "sweep.grid.prompt_tokens[0]: must be at least 1, not -64"),
        (of_grid(prompt_tokens=[]), "sweep.grid.prompt_tokens: "),
        (of_grid(model=["Qwen2.5-0.6B"]), "sweep.grid.model[0]: Qwen2.5-0.6B: no such model; nearest in the catalogue"),
        ({"arms": {"single": {"sharing": "single"}, "mps2": {"sharing": "mps"}}}, "arms.mps2.engines: is missing"),
    ],
    ids=["unknown key", "wrong type", "negative tokens", "empty grid", "unknown model", "arm without engines"],
)
def test_a_bad_spec_is_named_with_its_line_and_nothing_is_made(tmp_path, here, changes, message):
    spec = write_spec(tmp_path, **changes)
    ended = here(spec, "--store", tmp_path / "store")
    assert ended.status == 2 and ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith(f"error: {spec}:") and message in line
    assert not (tmp_path / "store").exists()


def test_a_spec_that_is_not_there(tmp_path):
    ended = sweep(tmp_path / "none.yaml", "--store", tmp_path / "store")
    assert ended.status == 2 and ended.out == "" and "Traceback" not in ended.err
    assert "none.yaml: cannot be read: No such file" in ended.err


@pytest.mark.parametrize(
    ("store", "changes", "message"),
    [
        ("{tmp}/file/store", {}, "cannot open"),
        ("", {}, "the store's name is empty"),
        ("results", {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, "give --store an absolute path"),
        ("nosuch://bucket/x", {}, "nosuch://bucket/x"),
    ],
    ids=["under a file", "no name", "relative under a job", "unknown scheme"],
)
def test_a_store_that_cannot_be_used(tmp_path, here, monkeypatch, store, changes, message):
    (tmp_path / "file").write_text("in the way")
    spec, cwd = write_spec(tmp_path), tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    ended = here(spec, "--store", store.format(tmp=tmp_path))
    assert ended.status == 2 and ended.out == "" and message in ended.err and "Traceback" not in ended.err
    assert list(cwd.iterdir()) == []


def test_a_store_of_a_newer_release(tmp_path, here):
    store = tmp_path / "store"
    ResultStore.open(str(store), create=True)
    marker = store / "mpscape.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"schema_version": 99}))
    ended = here(write_spec(tmp_path), "--store", store)
    assert ended.status == 2 and "99" in ended.err and "upgrade" in ended.err


def test_a_model_larger_than_the_gpu_is_skipped_rows_with_the_reason(tmp_path):
    config = Path("workloads/configs/Llama-3.1-8B.json").read_text()
    model = tmp_path / "huge"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(json.loads(config) | {"num_hidden_layers": 400}))
    store = tmp_path / "store"
    spec = write_spec(tmp_path, **of_grid(model=[str(model)]))
    for _ in range(2):
        ended = sweep(spec, "--store", store)
        assert ended.status == 0, ended.err
        assert {key: ended.answer[key] for key in ("ok", "failed", "skipped")} == {"ok": 0, "failed": 0, "skipped": 12}
    trials = ResultStore.open(str(store), create=False).read("trials")
    assert trials.height == TRIALS and set(trials["outcome"]) == {"skipped"}
    assert trials["reason"].str.contains(r"engine\(s\) of .* need .* GiB, 75.2 GiB of a H100 are usable").all()
    assert set(verdict_table(store)["verdict"]) == {"undecided"}
    assert generations(store) == [1] * REPEATS


def test_a_gpu_that_is_not_there_is_named_with_what_is(tmp_path, head: Head):
    ended = sweep(write_spec(tmp_path), "--store", tmp_path / "s", "--backend", "vllm", environment=head.environment())
    assert ended.status == 3 and ended.out == ""
    assert "wants a GPU of kind H100, the cluster has no GPU" in ended.err and "--backend simulated" in ended.err


def test_a_cluster_that_is_not_there(tmp_path):
    # Port 9 discards; nobody has ever run a cluster on it.
    environment = clean_environment(RAY_ADDRESS="127.0.0.1:9", RAY_gcs_rpc_server_connect_timeout_s="1")
    ended = sweep(write_spec(tmp_path), "--store", tmp_path / "store", environment=environment)
    assert ended.status == 3 and "cannot connect to Ray at 127.0.0.1:9" in ended.err and "unset it" in ended.err


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path):
    ended = sweep(write_spec(tmp_path), "--store", tmp_path / "store", "--dry-run")
    assert ended.status == 0
    assert "SIMULATED" in ended.out and "12 trials in 6 repeats" in ended.out and "single" in ended.out
    assert not (tmp_path / "store").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_more_repeats_than_the_file_says(tmp_path, here):
    spec = write_spec(tmp_path)
    more = here(spec, "--store", tmp_path / "store", "--dry-run", "--repeats", "5")
    assert more.status == 0 and "20 trials in 10 repeats" in more.out
    none = here(spec, "--store", tmp_path / "store", "--dry-run", "--repeats", "0")
    assert none.status == 2 and "--repeats: input should be greater than or equal to 1, not 0" in none.err
    asked = load_spec(spec)
    assert [r.repeat_id for r in expand(asked.of_repeats(5), "simulated")][:6] == [
        r.repeat_id for r in expand(asked, "simulated")
    ]
    assert asked.of_repeats(5).text == asked.text


def test_a_cluster_that_knows_the_package_only_from_the_driver_s_folder(tmp_path, head: Head):
    spec = write_spec(tmp_path, repeats=1, **of_grid(prompt_tokens=[64]))
    ended = sweep(spec, "--store", tmp_path / "store", environment=head.environment())
    assert ended.status == 0, ended.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, head: Head) -> tuple[Path, Path, Ended]:
    """A finished sweep in a store whose path would be a pattern to anything that expands one."""
    folder = tmp_path_factory.mktemp("finished")
    spec, store = write_spec(folder), folder / 'it\'s a [1] "store" *'
    return spec, store, sweep(spec, "--store", store, environment=head.environment())


def test_a_sweep_comes_through(finished):
    _, store, ended = finished
    assert ended.status == 0, ended.err
    answer = ended.answer
    assert list(answer) == ["sweep", "store", "trials", "ok", "failed", "skipped", "quarantined", "verdicts"]
    assert (answer["sweep"], answer["store"], answer["trials"], answer["ok"]) == ("small", str(store), TRIALS, TRIALS)
    assert answer["failed"] == answer["skipped"] == 0
    throughput = verdict_table(store).filter(metric="throughput")
    assert answer["verdicts"] == Counter(throughput["verdict"]) and sum(answer["verdicts"].values()) == 2
    assert len(ended.measured) == TRIALS and "simulated" in ended.measured[0]
    assert generations(store) == [1] * REPEATS
    opened = ResultStore.open(str(store), create=False)
    assert set(opened.read("trials")["backend"]) == {"simulated"}
    assert [path.read_text() for path in store.glob("specs/*/*.yaml")] == [finished[0].read_text()]


def test_a_finished_sweep_measures_nothing_and_says_the_same(finished):
    spec, store, first = finished
    before = sorted(path for path in store.rglob("*"))
    # Without a cluster: what is done needs none.
    again = sweep(spec, "--store", store, environment=clean_environment(RAY_ADDRESS="127.0.0.1:9"))
    assert (again.status, again.out, again.measured) == (0, first.out, [])
    assert sorted(path for path in store.rglob("*")) == before
    dry = sweep(spec, "--store", store, "--dry-run")
    assert dry.status == 0 and "in the store already: 6 repeats" in " ".join(dry.out.split())


def test_a_relative_store_lies_where_the_command_was_given(tmp_path, finished):
    spec, store, first = finished
    environment = clean_environment(PYTHONPATH=str(Path.cwd()))
    (tmp_path / "near").symlink_to(store)
    ended = sweep(spec, "--store", "near", environment=environment, cwd=tmp_path)
    assert ended.status == 0 and ended.answer == first.answer | {"store": str(tmp_path / "near")}


def test_half_a_file_is_reported_and_its_repeat_measured_again(tmp_path, head: Head, finished):
    spec, store = finished[0], tmp_path / "store"
    shutil.copytree(finished[1], store)
    torn = sorted(store.glob("windows/*/*.parquet"))[0]
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    ended = sweep(spec, "--store", store, environment=head.environment())
    assert ended.status == 0, ended.err
    assert ended.answer["ok"] == TRIALS and len(ended.measured) == 2
    told = [line for line in ended.err.splitlines() if line.startswith("store: ")]
    assert len(told) == 2 and all(str(torn.relative_to(store)) in line for line in told)
    assert "to be measured again" in told[0] and "no readable Parquet footer" in told[1]
    assert generations(store) == [*[1] * REPEATS, 2]


def test_a_failed_trial_is_tried_again_and_stays_a_failure_until_it_is_retried(tmp_path, head: Head):
    fail = {"arm": "mps2", "error": "WindowError", "at_window": 1, "repeat": 1}
    store, environment = tmp_path / "store", head.environment()
    spec = write_spec(tmp_path, simulation={"fail": fail}, **of_grid(prompt_tokens=[64]))
    ended = sweep(spec, "--store", store, environment=environment)
    assert ended.status == 1, ended.err
    assert {key: ended.answer[key] for key in ("trials", "ok", "failed")} == {"trials": 6, "ok": 5, "failed": 1}
    assert sum(" retry " in line for line in ended.measured) == 2  # both arms of the repeat
    assert sum(" failed " in line for line in ended.measured) == 1
    assert generations(store) == [1, 1, 1, ATTEMPTS]
    attempts = {path.stem for path in store.glob("trials/*/*.parquet")}
    assert len(attempts) == 3 + 1  # the first attempt is still there to be read
    (failed,) = (commit for commit in commits(store).values() if commit.failed)
    assert failed.generation == ATTEMPTS
    (reason,) = [trial.reason for trial in failed.trials if trial.reason]
    assert reason.startswith("WindowError: simulated WindowError of arm mps2")

    again = sweep(spec, "--store", store, environment=environment)
    assert (again.status, again.answer, again.measured) == (1, ended.answer, [])

    retried = sweep(spec, "--store", store, "--retry-failed", environment=environment)
    assert (retried.status, retried.answer) == (1, ended.answer)
    assert generations(store) == [1, 1, 1, 2, 3, 4]


def test_a_failure_that_passes_is_gone_with_the_second_attempt(tmp_path, head: Head):
    fail = {"arm": "mps2", "error": "MpsFault", "at_window": 4, "repeat": 0, "once": str(tmp_path / "struck")}
    store = tmp_path / "store"
    ended = sweep(write_spec(tmp_path, simulation={"fail": fail}), "--store", store, environment=head.environment())
    assert ended.status == 0, ended.err
    assert ended.answer["ok"] == TRIALS
    assert sum(" retry " in line for line in ended.measured) == 2
    assert sorted(commit.generation for commit in commits(store).values()) == [1, 1, 1, 1, 1, 2]


def test_a_cell_that_breaks_its_engines_takes_no_other_cell_with_it(tmp_path, head: Head):
    fail = {"arm": "single", "error": "EngineCrashed", "at_window": 4, "repeat": 0}
    store = tmp_path / "store"
    spec = write_spec(tmp_path, simulation={"fail": fail}, repeats=1, **of_grid(prompt_tokens=[32, 64, 128]))
    ended = sweep(spec, "--store", store, environment=head.environment())
    assert ended.status == 1, ended.err
    # Window 4 of the arm lies in the second repeat of a boot. The third is measured first in the next one, so only the
    # repeat that was hit twice is lost.
    assert {key: ended.answer[key] for key in ("ok", "failed")} == {"ok": 4, "failed": 2}
    assert sorted(commit.generation for commit in commits(store).values()) == [1, 1, 2]


def test_engines_that_never_boot_fail_every_repeat_and_give_the_reason(tmp_path, head: Head):
    fail = {"arm": "mps2", "error": "BootError"}
    store = tmp_path / "store"
    spec = write_spec(tmp_path, simulation={"fail": fail}, repeats=1, **of_grid(prompt_tokens=[32, 64, 128]))
    ended = sweep(spec, "--store", store, environment=head.environment())
    assert ended.status == 1 and ended.answer["failed"] == 6
    reasons = ResultStore.open(str(store), create=False).read("trials")["reason"]
    assert reasons.str.contains("BootError: simulated BootError of arm mps2 at its boot").all()
