"""Progress goes to standard error, one line a trial."""

from __future__ import annotations

import pytest

from orchestrator.progress import ProgressLine
from orchestrator.runner import TrialSummary

OK = TrialSummary("abcdef0123456789", "mps2", "org/Model-1B", "mixed", 128, 16, 2, "ok", None, 12_345.6, 4)
FAILED = TrialSummary("123456789abcdef0", "single", "Model-1B", "mixed", 128, 16, 0, "failed", "OOM", None, 0)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_a_line_names_the_trial_its_cell_and_its_rate(capfd):
    with ProgressLine(12, "simulated", done=3) as progress:
        progress.trial(OK)
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(
        "[ 4/12] ok      abcdef  Model-1B mixed ctx=128 c=16 mps2 r2     12,346 tok/s  simulated  eta "
    )


def test_a_failure_that_is_tried_again_is_not_done(capfd):
    with ProgressLine(2, "vllm") as progress:
        progress.trial(FAILED, retried=True)
        progress.trial(FAILED)
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("[0/2] retry   123456") and "  OOM  vllm  eta ?" in first
    assert second.startswith("[1/2] failed  123456")


def test_what_was_done_before_does_not_count_towards_the_pace(capfd):
    with ProgressLine(1_000_000, "simulated", done=999_998) as progress:
        progress.started -= 60.0  # one trial a minute so far
        progress.trial(OK)
    assert "eta 1 m 0" in capfd.readouterr().err


def test_a_note_is_a_line(capfd):
    with ProgressLine(1, "vllm") as progress:
        progress.note("waiting for a host")
    assert capfd.readouterr().err == "waiting for a host\n"
