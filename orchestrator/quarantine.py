"""GPUs that a sweep stopped using, and why: one note each, kept beside the results for whoever looks later."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator import notes
from orchestrator.store import ResultStore

_GPU = re.compile(r"GPU-[0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Quarantine:
    """gpu: its UUID as the reason names it, empty where it does not; noticed_unix_s: wall clock of the driver."""

    gpu: str
    host: str
    reason: str
    noticed_unix_s: float

    @classmethod
    def because(cls, reason: str, host: str, noticed_unix_s: float) -> Quarantine:
        found = _GPU.search(reason)
        return cls(found[0] if found else "", host, reason, noticed_unix_s)

    def keep(self, store: ResultStore, sweep: str) -> None:
        """Write it into the store. Raises StoreError."""
        notes.keep(store, notes.QUARANTINE, sweep, self)

    def __str__(self) -> str:
        return f"{self.gpu or 'a GPU'} of {self.host} was left out: {self.reason}"


def quarantined(store: ResultStore, sweep: str) -> list[Quarantine]:
    """All of a sweep, oldest first. Raises StoreError."""
    found = notes.kept(store, notes.QUARANTINE, sweep, Quarantine)
    return sorted(found, key=lambda one: one.noticed_unix_s)
