"""Small simulated sweeps for the tests of the command line: the file, the command, and what the store then holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.testing import assert_frame_equal

from orchestrator.commit import Commit, parse_commit_path
from orchestrator.store import ResultStore
from orchestrator.verdicts import judge
from tests.ray_head import LIMIT_S, REPOSITORY, clean_environment

SPEC: dict[str, Any] = {
    "schema_version": 1,
    "name": "small",
    "question": "Does it come through?",
    "backend": "simulated",
    "gpu": "H100",
    "arms": {"single": {"sharing": "single"}, "mps2": {"sharing": "mps", "engines": 2}},
    "workload": {"kind": "mixed", "output_tokens": 8, "concurrency": 8},
    "sweep": {"grid": {"model": ["Qwen2.5-0.5B"], "prompt_tokens": [64, 128]}},
    "repeats": 3,
    "measurement": {"window_s": 0.5, "warmup_s": 0.25, "min_windows": 2, "max_windows": 3},
}
REPEATS, TRIALS = 6, 12


def write_spec(folder: Path, **changes: Any) -> Path:
    """`SPEC` with top-level keys replaced, as a file: JSON is YAML. None drops a key."""
    path = folder / "small.yaml"
    path.write_text(json.dumps({key: value for key, value in (SPEC | changes).items() if value is not None}, indent=1))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "orchestrator.sweep", *map(str, arguments)]


@dataclass(frozen=True)
class Ended:
    """How a sweep ended. `answer` is the JSON object in the last line of its standard output."""

    status: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        answer = json.loads(self.out.splitlines()[-1])
        assert isinstance(answer, dict)
        return answer

    @property
    def measured(self) -> list[str]:
        """Progress lines, one a trial."""
        return [line for line in self.err.splitlines() if line.startswith("[") and "]" in line]


def sweep(*arguments: str | Path, environment: Mapping[str, str] | None = None, cwd: Path = REPOSITORY) -> Ended:
    done = subprocess.run(
        command(*arguments), env=dict(environment or clean_environment()), cwd=cwd, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(spec: Path, store: Path | str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(spec, "--store", store), env=dict(environment), cwd=REPOSITORY, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_trials(process: subprocess.Popen[str], count: int) -> None:
    """Read progress until `count` trials have been told of."""
    assert process.stderr is not None
    seen: list[str] = []
    while sum(line.startswith("[") for line in seen) < count:
        line = process.stderr.readline()
        assert line, f"the sweep ended after {seen}"
        seen.append(line)


def commits(store: Path) -> dict[str, Commit]:
    return ResultStore.open(str(store), create=False).committed("small")


def generations(store: Path) -> list[int]:
    """Of every commit object there is, those of earlier attempts too."""
    names = [parse_commit_path(str(path.relative_to(store))) for path in store.glob("commits/*/*.json")]
    return sorted(name.generation for name in names if name is not None)


def verdict_table(store: Path) -> pl.DataFrame:
    opened = ResultStore.open(str(store), create=False)
    assert opened.verify("small") == []
    return judge(opened.read("trials"), opened.read("windows"))


def assert_same_verdicts(one: Path, other: Path) -> None:
    """Every column of every row; the last digits of a float are free, since sums are taken in no fixed order."""
    first, second = verdict_table(one), verdict_table(other)
    assert first.height > 0
    assert_frame_equal(first, second, rel_tol=1e-11, abs_tol=1e-14)
