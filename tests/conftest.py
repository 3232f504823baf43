"""Which tests share a worker, in which order, and what they share there.

With CI=true a skipped test fails the run unless .ci/allowed-skips.txt lists its reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ray_head import Head, ray_head

if TYPE_CHECKING:
    from orchestrator.store import ResultStore

ALLOWED_SKIPS = Path(__file__).parent.parent / ".ci" / "allowed-skips.txt"


def allowed_reasons(text: str) -> dict[str, str]:
    """Reason of a skip to why it is accepted. Raises ValueError on a line without a why."""
    reasons = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            reason, mark, why = line.partition(" # ")
            if not (mark and why.strip()):
                raise ValueError(f"{ALLOWED_SKIPS}: {line!r} does not say why the skip is accepted")
            reasons[reason.strip()] = why.strip()
    return reasons


class SkipGate:
    """Collects skips, of tests and of whole modules, and fails the run for those that are not listed."""

    def __init__(self, allowed: dict[str, str]) -> None:
        self.allowed = allowed
        self.refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason not in self.allowed:
                self.refused.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        yield
        if self.refused:
            terminalreporter.section(f"skips that {ALLOWED_SKIPS.name} does not list", red=True)
            for line in self.refused:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        allowed = allowed_reasons(ALLOWED_SKIPS.read_text(encoding="utf-8"))
        config.pluginmanager.register(SkipGate(allowed), "skip-gate")

    config.pluginmanager.register(ByShare(), "by-share")


# What takes longest begins first, so that no worker is left with it when the others have nothing left to do.
FIRST = (
    "tests/test_sweep.py",
    "tests/test_kill.py",
    "tests/test_ray_cluster.py",
    "tests/test_report.py",
    "tests/test_browser.py",
    "tests/test_mps.py",
    "tests/test_store.py",
    "tests/test_host_claims.py",
    "tests/test_findings.py",
    "tests/test_half_chapter.py",
    "tests/test_views.py",
    "tests/test_verdicts.py",
    "tests/test_sequential.py",
    "tests/test_claims.py",
    "tests/test_guardian.py",
    "tests/test_guardian_ray.py",
    "tests/test_store_bucket.py",
)


class ByShare:
    """The order of the files, and which of them go to one worker."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        ranks = {file: rank for rank, file in enumerate(FIRST)}
        items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(FIRST)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: object) -> object | None:
        if config.getvalue("dist") != "loadscope":
            return None
        # Only a run with workers needs xdist, and only such a run comes here.
        from tests.by_file import ByFile

        return ByFile(config, log)


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A running Ray cluster for the tests that can share one, since to start Ray takes seconds.

    Ray counts two CPUs, whatever the machine has: a sweep starts as many hosts, and each imports for two seconds.
    """
    with ray_head(tmp_path_factory.mktemp("home"), cpus=2) as running:
        yield running


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultStore, str]:
    """The synthetic landscape's store, to be read only, and its report."""
    # Plotly takes long to import, and few tests need it.
    from dashboards.report import report
    from tests.synthetic_landscape import landscape, store_of

    store = store_of(tmp_path_factory.mktemp("synthetic"), *landscape())
    return store, report(store)
