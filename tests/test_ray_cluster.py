"""A sweep on a cluster that is running already: by address, with and without tokens, and as a submitted job."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store import ResultStore
from tests.ray_head import LIMIT_S, RAY, REPOSITORY, Head, clean_environment, end_marked, ray_head, ray_node
from tests.small_sweep import SPEC, TRIALS, await_trials, command, generations, started, sweep, write_spec

ONE_CELL = {"sweep": {"grid": SPEC["sweep"]["grid"] | {"prompt_tokens": [64]}}, "repeats": 1}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What a wheel puts into site-packages; what it depends on is here already."""
    site = tmp_path_factory.mktemp("installed") / "site"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(REPOSITORY / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    return site


@pytest.fixture(scope="module")
def job_head(tmp_path_factory, installed) -> Iterator[Head]:
    """A cluster that takes jobs, with the project installed, started from a folder where nothing of it lies."""
    home = tmp_path_factory.mktemp("home")
    with ray_head(home, dashboard=True, environment={"PYTHONPATH": str(installed)}, cwd=home) as running:
        yield running


def submit(head: Head, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    assert head.dashboard is not None
    environment = clean_environment(HOME=str(head.home), RAY_API_SERVER_ADDRESS=head.dashboard)
    return subprocess.run(
        [RAY, "job", "submit", *map(str, arguments)], env=environment, cwd=cwd, text=True,
        capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


def answer_of(output: str) -> dict[str, object]:
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


def test_no_two_processes_are_given_one_port():
    asks = "import sys; from tests.ray_head import free_ports; print(*free_ports(120), flush=True); sys.stdin.read()"
    clean = {name: value for name, value in clean_environment().items() if name != "PYTEST_XDIST_WORKER"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", asks], cwd=REPOSITORY, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    given = [int(port) for process in processes for port in process.stdout.readline().split()]
    for process in processes:
        process.communicate()
    assert len(given) == len(set(given)) == 240
    # Ray's workers take 10,002 to 19,999, and Linux gives out from 32,768 on by itself.
    assert min(given) >= 20_000 and max(given) < 32_768


@pytest.mark.long
def test_a_job_runs_the_installed_sweep(tmp_path, job_head: Head):
    store = tmp_path / "store"
    sweep_command = command(write_spec(tmp_path, **ONE_CELL), "--store", store)
    ended = submit(job_head, "--", *sweep_command, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert answer_of(ended.stdout)["ok"] == 2
    assert ResultStore.open(str(store), create=False).sweeps() == ["small"]


def test_a_relative_store_under_a_job_is_refused(tmp_path, job_head: Head):
    ended = submit(job_head, "--", *command(write_spec(tmp_path, **ONE_CELL), "--store", "results"), cwd=tmp_path)
    assert ended.returncode != 0
    assert "give --store an absolute path" in ended.stdout + ended.stderr


def test_a_job_runs_from_a_working_directory(tmp_path, job_head: Head, installed):
    store = tmp_path / "store"
    spec = write_spec(tmp_path, **ONE_CELL)
    # The checkout's package, not the installed one, must be what runs; and nothing that is ignored travels.
    code = (
        "import orchestrator, pathlib, sys; here = pathlib.Path.cwd(); "
        "assert pathlib.Path(orchestrator.__file__).is_relative_to(here), orchestrator.__file__; "
        "assert not [p for p in ('.venv', '.git', 'results', 'tests') if (here / p).exists()]; "
        f"sys.argv = ['sweep', {str(spec)!r}, '--store', {str(store)!r}]; "
        "from orchestrator.sweep import main; sys.exit(main())"
    )
    ended = submit(job_head, "--working-dir", ".", "--", sys.executable, "-c", code, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert answer_of(ended.stdout)["ok"] == 2


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Iterator[Head]:
    """A head without CPUs, which notices soon that a node is gone."""
    soon = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "2"}
    with ray_head(tmp_path_factory.mktemp("home"), cpus=0, environment=soon) as running:
        yield running


def test_a_demand_that_can_never_be_met_fails_at_once(tmp_path, bare: Head):
    ended = sweep(write_spec(tmp_path), "--store", tmp_path / "store", environment=bare.environment())
    assert ended.status == 3 and ended.out == ""
    assert "a simulated host needs 1 CPU; there is the cluster at" in ended.err and "0 CPU(s), no GPU" in ended.err


@pytest.mark.long
def test_a_cluster_that_loses_its_last_node_leaves_the_rest_to_a_later_run(tmp_path, bare: Head):
    """The attempt under way is a row; what was not reached is neither a row nor lost, and no flag brings it back."""
    spec, store = write_spec(tmp_path, simulation={"wall_s_per_window": 0.15}), tmp_path / "store"
    with (
        ray_node(bare, cpus=1) as mark,
        started(spec, store, bare.environment(MPSCAPE_WAIT_FOR_NODES="1")) as process,
    ):
        await_trials(process, 2)
        end_marked(mark)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3, err
    assert "5 repeats are left, and the same command goes on with them: no host is left, and none came back" in err
    answer = json.loads(out.splitlines()[-1])
    assert (answer["trials"], answer["ok"], answer["failed"]) == (TRIALS, 2, 2)
    reasons = ResultStore.open(str(store), create=False).read("trials")["reason"].drop_nulls()
    assert reasons.len() == 2 and reasons.str.starts_with("host lost: ").all()
    with ray_node(bare, cpus=1):
        ended = sweep(spec, "--store", store, environment=bare.environment())
    assert ended.status == 0 and ended.answer["ok"] == TRIALS
    assert generations(store).count(2) == 1


@pytest.fixture(scope="module")
def quick_started(tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """The home of a user who has run a sweep on this machine alone, and what that said: Ray left a token there."""
    home = tmp_path_factory.mktemp("home")
    spec, environment = write_spec(home, **ONE_CELL), clean_environment(HOME=str(home))
    ended = sweep(spec, "--store", home / "store", environment=environment)
    assert ended.status == 0, ended.err
    assert (home / ".ray" / "auth_token").is_file()
    return home, ended.answer


@pytest.mark.long
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_after_a_quick_start(tmp_path, quick_started, mode):
    home, answer = quick_started
    spec, store = write_spec(tmp_path, **ONE_CELL), tmp_path / "store"
    with ray_head(home, cpus=1, environment={"RAY_AUTH_MODE": mode}) as running:
        ended = sweep(spec, "--store", store, environment=running.environment())
        assert ended.status == 0, ended.err
        assert ended.answer == answer | {"store": str(store)}
        if mode == "token":
            ended = sweep(spec, "--store", tmp_path / "s", environment=running.environment(HOME=str(tmp_path)))
            assert ended.status == 3 and "asks for a token: set RAY_AUTH_TOKEN" in ended.err
