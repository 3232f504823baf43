"""With CI=true a skipped test fails the run unless .ci/allowed-skips.txt lists its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_head import Head, ray_head

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


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A running Ray cluster for the tests that can share one, since to start Ray takes seconds.

    Ray counts four CPUs, whatever the machine has: enough for the hosts of two small sweeps at once.
    """
    with ray_head(tmp_path_factory.mktemp("home"), cpus=4) as running:
        yield running
