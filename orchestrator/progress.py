"""One line a trial, or a bar on a terminal: drawn by the driver alone, from receipts."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.runner import TrialSummary


@dataclass(slots=True)
class ProgressLine:
    """Counts trials and writes to standard error, so that standard output ends in the sweep's JSON object."""

    total: int
    label: str  # "simulated" where it is
    done: int = 0  # at the start: by earlier runs, which say nothing of the pace
    started: float = field(default_factory=time.monotonic)
    bar: Progress | None = None
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.done

    def __enter__(self) -> ProgressLine:
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console)
            self.bar.start()
            self.bar.add_task(self.label, total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def trial(self, summary: TrialSummary, retried: bool = False) -> None:
        """Tell of one trial. A failed one that will be tried again does not count as done."""
        if not retried:
            self.done += 1
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=self.done)
            if summary.outcome == "failed":
                self.bar.console.print(self._line(summary, retried), highlight=False, markup=False)
            return
        print(self._line(summary, retried), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line that is not about a trial."""
        if self.bar:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _line(self, trial: TrialSummary, retried: bool) -> str:
        width = len(str(self.total))
        outcome = "retry" if retried else trial.outcome
        rate = f"{trial.tokens_per_s:>9,.0f} tok/s" if trial.tokens_per_s else (trial.reason or "")
        return (
            f"[{self.done:>{width}}/{self.total}] {outcome:<7} {trial.trial_id[:6]}  {trial.model.split('/')[-1]} "
            f"{trial.kind} ctx={trial.prompt_tokens} c={trial.concurrency} {trial.arm} r{trial.repeat}  {rate}  "
            f"{self.label}  eta {self._eta()}"
        )

    def _eta(self) -> str:
        if self.done == self.before:
            return "?"
        left_s = (time.monotonic() - self.started) / (self.done - self.before) * (self.total - self.done)
        minutes, seconds = divmod(int(left_s), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02d} m" if hours else f"{minutes} m {seconds:02d} s"
