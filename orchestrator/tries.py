"""How often the repeats of a block were tried, and what of a block is tried again after its host ended with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from orchestrator.plan import Block
from orchestrator.trial import Repeat

# Attempts at a repeat that ended with a failed trial: the second one tells an accident from a rule.
ATTEMPTS = 2
# Attempts during which its host was lost: nodes come and go without a repeat's doing, and yet it may be the cause.
LOSSES = 5
LOST_HOST = "host lost: "


@dataclass(frozen=True, slots=True)
class Tries:
    """Attempts at one repeat that ended with a failed trial, and that ended because its host was lost."""

    failed: int = 0
    lost: int = 0

    @property
    def spent(self) -> bool:
        return self.failed >= ATTEMPTS or self.lost >= LOSSES

    def and_a_failure(self) -> Tries:
        return replace(self, failed=self.failed + 1)

    def and_a_loss(self) -> Tries:
        return replace(self, lost=self.lost + 1)

    def and_an_attempt(self, reason: str | None) -> Tries:
        """One more, told by the reason that stands in its commit."""
        return self.and_a_loss() if (reason or "").startswith(LOST_HOST) else self.and_a_failure()


class End(Enum):
    """How a host came to the end of a block: ended it, if early; its code raised; it is gone; its GPU is not clean."""

    ENDED = auto()
    BROKE = auto()
    LOST = auto()
    UNCLEAN = auto()


@dataclass(frozen=True, slots=True)
class Work:
    """A block to be handed out. barren: hosts in a row that were lost to it before anything of it succeeded."""

    block: Block
    tries: Mapping[str, Tries]
    barren: int = 0

    @classmethod
    def first(cls, block: Block) -> Work:
        return cls(block, {repeat.repeat_id: Tries() for repeat in block.repeats})


def take(waiting: deque[Work], seen: Mapping[str, int]) -> Work:
    """Takes the next block for a host out of `waiting`: of a model that it was given least often, else the first.

    seen: how many blocks of a model this host was given; a model that is not in it was never.
    """
    place = min(range(len(waiting)), key=lambda index: (seen.get(waiting[index].block.model, 0), index))
    work = waiting[place]
    del waiting[place]
    return work


@dataclass(slots=True)
class Attempt:
    """Work on a host. left: repeats without a receipt, in the order in which the host takes them; failed: those with
    a receipt of a failed trial that may be tried again; progress: something succeeded."""

    work: Work
    left: dict[str, Repeat]
    failed: dict[str, Repeat] = field(default_factory=dict)
    progress: bool = False
    fault: str = ""

    def land(self, repeat_id: str, fault: str | None) -> bool:
        """A receipt came, with the reason of a failed trial or without one; returns whether that was the last try."""
        repeat = self.left.pop(repeat_id)
        if fault is None:
            self.progress = True
            return True
        self.fault = fault
        if self.work.tries[repeat_id].and_a_failure().spent:
            return True
        self.failed[repeat_id] = repeat
        return False

    @property
    def at_hand(self) -> Repeat | None:
        """The repeat that the host was busy with, as far as receipts tell."""
        return next(iter(self.left.values()), None)

    def after(self, end: End) -> dict[str, Tries]:
        """Tries of all that is not settled, in the order of the next attempt: what may be to blame comes last.

        A repeat that was never reached has lost no attempt, unless nothing at all succeeded: then it may be the block.
        A lost host is the doing of the repeat at hand at most, until several in a row were lost to one block.
        """
        tries = self.work.tries
        suspects = set(self.failed)
        if self.at_hand is not None and end in (End.BROKE, End.LOST):
            suspects.add(self.at_hand.repeat_id)
        blamed = suspects if self.progress else {*suspects, *self.left}
        counts: dict[str, Tries] = {}
        for repeat_id in [*self.left, *self.failed]:
            count = tries[repeat_id]
            if repeat_id in self.failed or (end in (End.ENDED, End.BROKE) and repeat_id in blamed):
                count = count.and_a_failure()
            elif end is End.LOST and self.barren >= LOSSES:
                count = replace(count, lost=LOSSES)
            elif end is End.LOST and repeat_id in suspects:
                count = count.and_a_loss()
            counts[repeat_id] = count
        return dict(sorted(counts.items(), key=lambda item: item[0] in suspects))

    @property
    def barren(self) -> int:
        """As of `Work`, if the host is lost now."""
        return 0 if self.progress else self.work.barren + 1

    def rest(self, end: End) -> tuple[Work | None, dict[str, Repeat]]:
        """What to hand out again, None where nothing is; and what was tried for the last time."""
        repeats = {**self.left, **self.failed}
        tries = self.after(end)
        again = {repeat_id: count for repeat_id, count in tries.items() if not count.spent}
        spent = {repeat_id: repeats[repeat_id] for repeat_id, count in tries.items() if count.spent}
        if not again:
            return None, spent
        block = replace(self.work.block, repeats=tuple(repeats[repeat_id] for repeat_id in again))
        return Work(block, again, self.barren if end is End.LOST else 0), spent
