"""What a sweep's store holds and what is left to do: resume is the plan minus the settled repeats.

A repeat is settled by a commit without failures, or when it was tried as often as orchestrator/tries.py allows; a sweep
that was killed between a failure and its retry goes on with the retry.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from orchestrator.commit import Commit
from orchestrator.host import Assignment, Receipt
from orchestrator.pace import recorded_latencies_s
from orchestrator.plan import Block, Skip
from orchestrator.pool import Lost, Quarantined, Stranded
from orchestrator.quarantine import Quarantine
from orchestrator.runner import BlockContext, RepeatLog, TrialSummary, finish
from orchestrator.spec import SweepSpec
from orchestrator.store import ResultStore
from orchestrator.trial import Outcome, Repeat
from orchestrator.tries import Tries


@dataclass(slots=True)
class Ledger:
    """The driver's view of one sweep. Outcomes of this run and of earlier ones are kept by trial; `quarantined` and
    `stranded` are of this run; latencies_s: what earlier runs and all hosts of this one saw, as of `Pace`."""

    spec: SweepSpec
    store: ResultStore
    repeats: tuple[Repeat, ...]
    outcomes: dict[str, str] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)
    quarantined: list[Quarantine] = field(default_factory=list)
    stranded: Stranded | None = None
    _generations: dict[str, int] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    latencies_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, spec: SweepSpec, store: ResultStore, repeats: tuple[Repeat, ...], retry_failed: bool) -> Ledger:
        """Read what was committed before."""
        ledger = cls(spec, store, repeats)
        ledger._generations = store.generations(spec.name)
        wanted = {repeat.repeat_id for repeat in repeats}
        for repeat_id, commit in store.committed(spec.name).items():
            if repeat_id in wanted:
                ledger._take(commit, retry_failed)
        if repeats and repeats[0].backend != "simulated" and ledger._done and ledger.remaining:
            windows = store.read(
                "windows", [spec.name], columns=["trial_id", "start_ns", "output_tokens", "duration_s"]
            )
            ledger.latencies_s = recorded_latencies_s(repeats, windows)
        return ledger

    @property
    def remaining(self) -> tuple[Repeat, ...]:
        """Repeats that no commit settles, in the sweep's order."""
        return tuple(repeat for repeat in self.repeats if repeat.repeat_id not in self._done)

    @property
    def settled(self) -> int:
        """Trials of the repeats that are not to be measured again."""
        return sum(len(repeat.measured) for repeat in self.repeats if repeat.repeat_id in self._done)

    @property
    def trials(self) -> int:
        return sum(len(repeat.measured) for repeat in self.repeats)

    def counts(self) -> Counter[str]:
        """Trials by outcome."""
        return Counter(self.outcomes.values())

    def assignment(self, block: Block) -> Assignment:
        """What a host needs to measure `block` and write it at the right generation.

        What another driver, or a host that died before it could tell, has committed meanwhile is left out of it.
        """
        wanted = frozenset(repeat.repeat_id for repeat in block.repeats)
        self._catch_up(wanted)
        block = block.only(wanted - self._done)
        return Assignment(
            block=block,
            context=self._context(block),
            store_uri=self.store.uri,
            store_mark=self.store.mark(),
            generations={repeat.repeat_id: self._generations.get(repeat.repeat_id, 0) + 1 for repeat in block.repeats},
            latencies_s=self.latencies_s,
        )

    def _context(self, block: Block) -> BlockContext:
        planned = {}
        if self.spec.stopping == "fixed":
            boots = Counter(repeat.cell for repeat in self.repeats if repeat.alone is None)
            planned = {repeat.repeat_id: boots[repeat.cell] for repeat in block.repeats}
        return BlockContext(self.spec.name, self.spec.sha, self.skips, planned)

    def _catch_up(self, wanted: Set[str]) -> None:
        """Take in what was committed in a generation that this driver knows nothing of."""
        known = {repeat_id: self._generations.get(repeat_id, 0) for repeat_id in wanted}
        for repeat_id, commit in self.store.committed_since(self.spec.name, known).items():
            self._generations[repeat_id] = commit.generation
            self._take(commit)

    def note_skips(self, skips: Sequence[Skip]) -> None:
        """Remember what does not fit; a repeat of which nothing fits is recorded here and now, without a GPU."""
        for skip in skips:
            self.skips[skip.repeat.trial_id(skip.arm)] = skip.reason
        for repeat in {skip.repeat.repeat_id: skip.repeat for skip in skips}.values():
            if all(repeat.trial_id(arm) in self.skips for arm in repeat.measured):
                self._write(RepeatLog.start(repeat), _nowhere(repeat))

    def land(self, receipt: Receipt, final: bool = True) -> None:
        """A repeat reached the store, from here or, where another driver was first, from there. final: settled."""
        self.latencies_s.update(receipt.latencies_s)
        before = self._generations.get(receipt.repeat_id, 0)
        self._generations[receipt.repeat_id] = before + 1
        if receipt.committed:
            self.outcomes.update({trial.trial_id: trial.outcome for trial in receipt.trials})
            if final:
                self._done.add(receipt.repeat_id)
        else:
            self._generations[receipt.repeat_id] = before
            self._catch_up({receipt.repeat_id})

    def lose(self, lost: Lost) -> tuple[TrialSummary, ...]:
        """Record an attempt that no host could finish as failed. Nothing is told where its host had, before it died."""
        log = RepeatLog.start(lost.repeat)
        for trial in log.trials.values():
            trial.outcome, trial.reason, trial.log_tail = Outcome.FAILED, lost.reason, lost.log_tail
            trial.started_unix_s = time.time()
        return self._write(log, lost.block, lost.final)

    def set_aside(self, event: Quarantined) -> None:
        """Keep in the store that a GPU was left out."""
        self.quarantined.append(event.quarantine)
        event.quarantine.keep(self.store, self.spec.name)

    def _write(self, log: RepeatLog, block: Block, final: bool = True) -> tuple[TrialSummary, ...]:
        done = finish(log, block, self._context(block))
        repeat_id = log.repeat.repeat_id
        generation = self._generations.get(repeat_id, 0) + 1
        committed = self.store.write_repeat(self.spec.name, repeat_id, done.attempt_id, done.frames, generation)
        self.land(Receipt(repeat_id, committed, "driver", done.summaries), final)
        return done.summaries if committed else ()

    def _take(self, commit: Commit, retry_failed: bool = False) -> None:
        """Believe a commit; it settles its repeat unless it tells of a failure that may be tried again."""
        self.outcomes.update({trial.trial_id: trial.outcome.value for trial in commit.trials})
        if not commit.failed or (not retry_failed and self._tries(commit).spent):
            self._done.add(commit.repeat_id)

    def _tries(self, commit: Commit) -> Tries:
        """Attempts at a repeat as its commits tell of them."""
        tries = Tries()
        for attempt in self.store.attempts(self.spec.name, commit):
            reasons = [trial.reason for trial in attempt.trials if trial.outcome is Outcome.FAILED]
            tries = tries.and_an_attempt(reasons[0]) if reasons else Tries()
        return tries


def _nowhere(repeat: Repeat) -> Block:
    """The block of a repeat that runs nowhere because nothing of it fits."""
    return Block(
        block_id=secrets.token_hex(8),
        backend=repeat.backend,
        gpu_kind=repeat.cell.gpu_kind,
        model=repeat.cell.model,
        engine_args=repeat.engine_args,
        arms=(),
        repeats=(repeat,),
        residency="alone",
        sizing={},
        memory={},
        expected_gpu_s=0.0,
    )
