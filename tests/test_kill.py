"""Whatever ends a sweep, the same command completes it, and the store then says what an undisturbed run says."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.process import ProcessIdentity, carrying, wait_gone
from orchestrator.store import ResultStore
from tests.ray_head import LIMIT_S, MARK, Head, clean_environment, end_marked, ray_node
from tests.small_sweep import (
    REPEATS,
    TRIALS,
    assert_same_verdicts,
    await_trials,
    commits,
    generations,
    started,
    sweep,
    write_spec,
)

# Slow enough for a signal to arrive in the middle of a block: about a second of windows a repeat.
SLOW = {"simulation": {"wall_s_per_window": 0.12}}
HOST = "ray::GpuHost"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, head: Head) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = sweep(write_spec(folder, **SLOW), "--store", folder / "store", environment=head.environment())
    assert ended.status == 0, ended.err
    return folder / "store"


def attempts(store: Path) -> dict[str, str]:
    """By repeat id, the attempt that counts."""
    return {repeat_id: commit.trials[0].attempt_id for repeat_id, commit in commits(store).items()}


def assert_completed(spec: Path, store: Path, environment: Mapping[str, str], undisturbed: Path) -> None:
    """The same command completes the sweep; what was committed before stays, and nothing is there twice."""
    before = attempts(store)
    ended = sweep(spec, "--store", store, environment=environment)
    assert ended.status == 0, ended.err
    assert ended.answer["ok"] == ended.answer["trials"] == TRIALS
    after = attempts(store)
    assert before.items() <= after.items() and len(after) == REPEATS
    assert generations(store) == [1] * REPEATS
    assert_same_verdicts(store, undisturbed)


# After how many trials: from the first to the one before the last but one repeat.
MOMENTS = random.Random(20).sample(range(1, TRIALS - 3), 4)


@pytest.mark.parametrize("trials", [MOMENTS[0], pytest.param(MOMENTS[1], marks=pytest.mark.long)])
def test_a_killed_driver(tmp_path, head: Head, undisturbed, trials):
    spec, store = write_spec(tmp_path, **SLOW), tmp_path / "store"
    with started(spec, store, head.environment()) as process:
        await_trials(process, trials)
        process.kill()
    assert 0 < len(attempts(store)) < REPEATS
    assert_completed(spec, store, head.environment(), undisturbed)


@pytest.mark.parametrize(
    ("number", "trials"),
    [(signal.SIGTERM, MOMENTS[2]), pytest.param(signal.SIGINT, MOMENTS[3], marks=pytest.mark.long)],
    ids=["SIGTERM", "SIGINT"],
)
def test_an_interrupted_driver_says_so_and_ends_its_hosts(tmp_path, head: Head, undisturbed, number, trials):
    spec, store = write_spec(tmp_path, **SLOW), tmp_path / "store"
    with started(spec, store, head.environment()) as process:
        await_trials(process, trials)
        hosts = hosts_of(head)
        assert hosts
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    assert out == "" and err.splitlines()[-1].startswith("interrupted: the same command goes on")
    assert "Traceback" not in err and "SIGTERM" not in err
    assert not wait_gone(hosts, LIMIT_S)
    assert_completed(spec, store, head.environment(), undisturbed)


def test_a_killed_host_is_replaced_and_its_block_tried_again(tmp_path, head: Head, undisturbed):
    spec, store = write_spec(tmp_path, **SLOW), tmp_path / "store"
    with started(spec, store, head.environment()) as process:
        await_trials(process, 3)
        victim = min(hosts_of(head))
        assert victim.signal(signal.SIGKILL)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert f'"ok": {TRIALS}' in out
    # The attempt that the host was lost under is a commit of its own, unless the host was between two repeats.
    assert len(attempts(store)) == REPEATS and generations(store) in ([1] * REPEATS, [*[1] * REPEATS, 2])
    assert_same_verdicts(store, undisturbed)


def hosts_of(head: Head) -> set[ProcessIdentity]:
    members = carrying(MARK, head.mark)
    return {process for process in members if (words := process.command()) and words[0].startswith(HOST)}


@pytest.mark.long
def test_two_drivers_on_one_store_lose_nothing_and_mix_nothing(tmp_path, head: Head, undisturbed):
    spec, store = write_spec(tmp_path, **SLOW), tmp_path / "store"
    with (
        ray_node(head, cpus=2),  # room for the hosts of both
        started(spec, store, head.environment()) as one,
        started(spec, store, head.environment()) as other,
    ):
        ends = [process.communicate(timeout=LIMIT_S) for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), ends
    assert ends[0][0] == ends[1][0] != ""
    assert len(attempts(store)) == REPEATS and generations(store) == [1] * REPEATS
    opened = ResultStore.open(str(store), create=False)
    trials = opened.read("trials")
    assert trials.height == trials["trial_id"].n_unique() == TRIALS
    assert dict(trials.select("repeat_id", "attempt_id").unique().iter_rows()) == attempts(store)
    for table in ("windows", "requests", "samples"):
        rows = opened.read(table, columns=["trial_id", "attempt_id"]).unique()
        assert sorted(rows.iter_rows()) == sorted(trials.select("trial_id", "attempt_id").iter_rows())
    assert_same_verdicts(store, undisturbed)


@pytest.mark.long
def test_a_killed_driver_of_an_embedded_cluster_leaves_no_process(tmp_path, head: Head, undisturbed):
    spec, store = write_spec(tmp_path, **SLOW), tmp_path / "store"
    mark = f"embedded-{tmp_path.name}-{random.SystemRandom().getrandbits(64):x}"
    environment = clean_environment(HOME=str(tmp_path), **{MARK: mark})
    try:
        with started(spec, store, environment) as process:
            await_trials(process, 3)
            family = carrying(MARK, mark)
            assert {"raylet", "gcs_server"} <= {Path(words[0]).name for member in family if (words := member.command())}
            process.kill()
        assert not wait_gone(family, LIMIT_S)
        assert not carrying(MARK, mark)
    finally:
        end_marked(mark)
    assert_completed(spec, store, head.environment(), undisturbed)
