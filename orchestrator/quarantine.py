"""GPUs that a sweep stopped using, and why: one small object each, kept beside the results for whoever looks later.

quarantine/sweep=<name>/<chance>.json      {"gpu": "GPU-5b1f...", "host": "node-3", "reason": "...", ...}
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass

from orchestrator.commit import sweep_folder
from orchestrator.store import ResultStore

QUARANTINE = "quarantine"
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
        """Write it into the store, under a name of its own. Raises StoreError."""
        path = f"{sweep_folder(QUARANTINE, sweep)}/{secrets.token_hex(8)}.json"
        store.objects.create(path, json.dumps(asdict(self), sort_keys=True).encode())

    def __str__(self) -> str:
        return f"{self.gpu or 'a GPU'} of {self.host} was left out: {self.reason}"


def quarantined(store: ResultStore, sweep: str) -> list[Quarantine]:
    """All of a sweep, oldest first. Raises StoreError; an object that is no whole JSON is left out."""
    found = []
    for entry in store.objects.listing(sweep_folder(QUARANTINE, sweep)):
        try:
            found.append(Quarantine(**json.loads(store.objects.get(entry.path))))
        except (ValueError, TypeError):  # torn, or of a newer release
            continue
    return sorted(found, key=lambda one: one.noticed_unix_s)
