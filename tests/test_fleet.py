"""GPUs of a cluster that only Ray believes in: where blocks run, and what becomes of a GPU that is not clean."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.quarantine import quarantined
from orchestrator.store import ResultStore
from tests.fleet_driver import FOLDER, gpu_uuid
from tests.ray_head import LIMIT_S, REPOSITORY, Head, ray_head, ray_node
from tests.small_sweep import REPEATS, SPEC, TRIALS, write_spec

H100S = {gpu_uuid("n0", 0), gpu_uuid("n1", 0), gpu_uuid("n1", 1)}
BLOCKS = 6

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A head with an A100, a node with one H100 and one with two, and the folder that says what is on them."""
    folder = tmp_path_factory.mktemp("truth")
    with ExitStack() as stack:
        home, environment = tmp_path_factory.mktemp("home"), {FOLDER: str(folder)}
        head = stack.enter_context(ray_head(home, cpus=1, gpus=1, gpu_kind="A100", environment=environment))
        for name, count in (("n0", 1), ("n1", 2)):
            stack.enter_context(ray_node(head, count, name, count, "H100", environment))
        yield head, folder


@pytest.fixture
def fleet(gpus: tuple[Head, Path]) -> Iterator[tuple[Head, Path]]:
    yield gpus
    for path in gpus[1].iterdir():
        path.unlink()


def driven(head: Head, spec: Path, store: Path) -> list[dict[str, Any]]:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fleet_driver", str(spec), str(store)],
        env=head.environment(MPSCAPE_WAIT_FOR_NODES="1"), cwd=REPOSITORY,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def spec_of(folder: Path) -> Path:
    """Two cells, three repeats, two models: six blocks, each long enough for every host to get one."""
    grid = SPEC["sweep"]["grid"] | {"model": ["Qwen2.5-0.5B", "Qwen2.5-1.5B"]}
    return write_spec(folder, backend="vllm", sweep={"grid": grid})


def runs(folder: Path) -> list[tuple[str, str]]:
    return [(line.split()[0], line.split()[1]) for line in (folder / "runs").read_text().splitlines()]


def assert_whole(store: Path) -> None:
    opened = ResultStore.open(str(store), create=False)
    trials = opened.read("trials")
    assert trials.height == trials["trial_id"].n_unique() == 2 * TRIALS
    assert trials["outcome"].to_list() == ["ok"] * 2 * TRIALS
    assert {commit.generation for commit in opened.committed("small").values()} == {1}
    assert opened.verify("small") == []


def test_blocks_spread_over_the_gpus_of_the_wanted_kind_and_no_other(tmp_path: Path, fleet: tuple[Head, Path]) -> None:
    head, folder = fleet
    events = driven(head, spec_of(tmp_path), tmp_path / "store")
    assert Counter(event["event"] for event in events) == {"Landed": 2 * REPEATS}
    assert len(runs(folder)) == len({block for block, _ in runs(folder)}) == BLOCKS
    assert {gpu for _, gpu in runs(folder)} == H100S
    assert_whole(tmp_path / "store")


def test_a_gpu_that_is_not_clean_is_left_out_and_its_work_done_elsewhere(
    tmp_path: Path, fleet: tuple[Head, Path]
) -> None:
    head, folder = fleet
    # Somebody is on the first; the blocks leave something on the third. Only the second stays.
    (folder / gpu_uuid("n0", 0)).touch()
    (folder / f"{gpu_uuid('n1', 1)}.dirty").touch()
    events = driven(head, spec_of(tmp_path), tmp_path / "store")
    told = {event["gpu"] for event in events if event["event"] == "Quarantined"}
    assert told == H100S - {gpu_uuid("n1", 0)}
    assert Counter(event["event"] for event in events) == {"Landed": 2 * REPEATS, "Quarantined": 2}
    ran = Counter(gpu for _, gpu in runs(folder))
    assert gpu_uuid("n0", 0) not in ran
    assert ran[gpu_uuid("n1", 1)] == 1 and ran.total() == BLOCKS
    assert_whole(tmp_path / "store")
    kept = quarantined(ResultStore.open(str(tmp_path / "store"), create=False), "small")
    assert {one.gpu for one in kept} == told and all("4711" in one.reason for one in kept)


def test_where_no_clean_gpu_is_left_the_work_stays_to_be_done(tmp_path: Path, fleet: tuple[Head, Path]) -> None:
    head, folder = fleet
    for gpu in H100S:
        (folder / gpu).touch()
    spec, store = spec_of(tmp_path), tmp_path / "store"
    *told, last = driven(head, spec, store)
    assert {event["gpu"] for event in told} == H100S
    assert last["event"] == "Stranded" and last["repeats"] == 2 * REPEATS
    assert "no GPU is left that is clean: 3 of this sweep are in quarantine" in last["reason"]
    # Neither a row nor an attempt: the same command measures all of it, once somebody has left.
    assert ResultStore.open(str(store), create=False).generations("small") == {}
