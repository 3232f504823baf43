"""What a sweep's store holds and what is left to do: resume is the plan minus the committed repeats."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from orchestrator.commit import Commit
from orchestrator.host import Assignment, Receipt
from orchestrator.plan import Block, Skip
from orchestrator.pool import Lost
from orchestrator.runner import BlockContext, RepeatLog, TrialSummary, finish
from orchestrator.spec import SweepSpec
from orchestrator.store import ResultStore
from orchestrator.trial import Outcome, Repeat


@dataclass(slots=True)
class Ledger:
    """The driver's view of one sweep. Outcomes of this run and of earlier ones are kept by trial."""

    spec: SweepSpec
    store: ResultStore
    repeats: tuple[Repeat, ...]
    outcomes: dict[str, str] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)
    _generations: dict[str, int] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, spec: SweepSpec, store: ResultStore, repeats: tuple[Repeat, ...], retry_failed: bool) -> Ledger:
        """Read what was committed before."""
        ledger = cls(spec, store, repeats)
        ledger._generations = store.generations(spec.name)
        wanted = {repeat.repeat_id for repeat in repeats}
        for repeat_id, commit in store.committed(spec.name).items():
            if repeat_id in wanted and not (retry_failed and commit.failed):
                ledger._settle(commit)
        return ledger

    @property
    def remaining(self) -> tuple[Repeat, ...]:
        """Repeats that no commit settles, in the sweep's order."""
        return tuple(repeat for repeat in self.repeats if repeat.repeat_id not in self._done)

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
        block = block.only(wanted - self._catch_up(wanted))
        return Assignment(
            block=block,
            context=BlockContext(self.spec.name, self.spec.sha, self.skips),
            store_uri=self.store.uri,
            store_mark=self.store.mark(),
            generations={repeat.repeat_id: self._generations.get(repeat.repeat_id, 0) + 1 for repeat in block.repeats},
        )

    def _catch_up(self, wanted: Set[str]) -> Set[str]:
        """Settle what was committed in a generation that this driver knows nothing of; returns it."""
        news = {
            repeat_id: commit
            for repeat_id, commit in self.store.committed(self.spec.name).items()
            if repeat_id in wanted and commit.generation > self._generations.get(repeat_id, 0)
        }
        for repeat_id, commit in news.items():
            self._generations[repeat_id] = commit.generation
            self._settle(commit)
        return news.keys()

    def note_skips(self, skips: Sequence[Skip]) -> None:
        """Remember what does not fit; a repeat of which nothing fits is recorded here and now, without a GPU."""
        for skip in skips:
            self.skips[skip.repeat.trial_id(skip.arm)] = skip.reason
        for repeat in {skip.repeat.repeat_id: skip.repeat for skip in skips}.values():
            if all(repeat.trial_id(arm) in self.skips for arm in repeat.measured):
                self._write(RepeatLog.start(repeat), _nowhere(repeat))

    def land(self, receipt: Receipt) -> None:
        """A repeat reached the store, from here or, where another driver was first, from there."""
        self._generations[receipt.repeat_id] = self._generations.get(receipt.repeat_id, 0) + 1
        if receipt.committed:
            self._done.add(receipt.repeat_id)
            self.outcomes.update({trial.trial_id: trial.outcome for trial in receipt.trials})
        elif commit := self.store.committed(self.spec.name).get(receipt.repeat_id):
            self._settle(commit)

    def lose(self, lost: Lost) -> tuple[TrialSummary, ...]:
        """Record a repeat that no host could finish as failed."""
        log = RepeatLog.start(lost.repeat)
        for trial in log.trials.values():
            trial.outcome, trial.reason, trial.log_tail = Outcome.FAILED, lost.reason, lost.log_tail
            trial.started_unix_s = time.time()
        return self._write(log, lost.block)

    def _write(self, log: RepeatLog, block: Block) -> tuple[TrialSummary, ...]:
        done = finish(log, block, BlockContext(self.spec.name, self.spec.sha, self.skips))
        repeat_id = log.repeat.repeat_id
        generation = self._generations.get(repeat_id, 0) + 1
        committed = self.store.write_repeat(self.spec.name, repeat_id, done.attempt_id, done.frames, generation)
        self.land(Receipt(repeat_id, committed, "driver", done.summaries))
        return done.summaries

    def _settle(self, commit: Commit) -> None:
        self._done.add(commit.repeat_id)
        self.outcomes.update({trial.trial_id: trial.outcome.value for trial in commit.trials})


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
