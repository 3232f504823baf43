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
from tests.small_sweep import SPEC, await_trials, command, started, sweep, write_spec

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
    ended = submit(job_head, "--working-dir", ".", "--", sys.executable, "-c", f'"{code}"', cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert answer_of(ended.stdout)["ok"] == 2


def test_a_cluster_that_knows_the_package_only_from_the_driver_s_folder(tmp_path, head: Head):
    ended = sweep(write_spec(tmp_path, **ONE_CELL), "--store", tmp_path / "store", environment=head.environment())
    assert ended.status == 0, ended.err


def test_a_demand_that_can_never_be_met_fails_at_once(tmp_path):
    with ray_head(tmp_path, cpus=0) as empty:
        ended = sweep(write_spec(tmp_path), "--store", tmp_path / "store", environment=empty.environment())
        assert ended.status == 3 and ended.out == ""
        assert "a simulated host needs 1 CPU; there is the cluster at" in ended.err and "0 CPU(s), no GPU" in ended.err


def test_a_cluster_that_loses_its_last_node_gives_back_the_rest(tmp_path):
    spec, store = write_spec(tmp_path, simulation={"wall_s_per_window": 0.3}, repeats=1), tmp_path / "store"
    with ray_head(tmp_path, cpus=0) as bare:
        with ray_node(bare, cpus=1), started(spec, store, bare.environment()) as process:
            await_trials(process, 2)
            end_marked(f"{bare.mark}-node")
            out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 1, err
        answer = json.loads(out.splitlines()[-1])
        assert (answer["ok"], answer["failed"]) == (2, 2)
        reasons = ResultStore.open(str(store), create=False).read("trials")["reason"].drop_nulls()
        assert reasons.str.contains("no host is left: a simulated host needs 1 CPU; there is").all()
    # On this machine alone the same command cannot undo it, but can try again.
    again = sweep(spec, "--store", store)
    assert (again.status, again.measured) == (1, [])


TOKENS = {"made by Ray": {}, "refused by the cluster": {"RAY_AUTH_MODE": "disabled"}}


@pytest.mark.parametrize("environment", TOKENS.values(), ids=TOKENS)
def test_a_quick_start_before_does_not_lock_the_user_out_of_a_cluster(tmp_path, environment):
    """An embedded cluster leaves a token behind in the user's home; a cluster started after it may ask for it."""
    alone = sweep(write_spec(tmp_path, **ONE_CELL), "--store", tmp_path / "alone",
                  environment=clean_environment(HOME=str(tmp_path)))  # fmt: skip
    assert alone.status == 0, alone.err
    assert (tmp_path / ".ray" / "auth_token").is_file()
    with ray_head(tmp_path, cpus=1, environment=environment) as after:
        ended = sweep(write_spec(tmp_path, **ONE_CELL), "--store", tmp_path / "s", environment=after.environment())
        assert ended.status == 0, ended.err
        assert ended.answer == alone.answer | {"store": str(tmp_path / "s")}
