"""The stores that the app shows, followed while sweeps write them: what is known is a snapshot that requests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dashboards.summary import Summary, cache_folder, commits, key_of, summary
from dashboards.world import World, split
from orchestrator.errors import MpscapeError
from orchestrator.store import ResultStore

# A refresh that takes long is not begun again at once: clicks need the processor too.
REST_PER_WORK = 4.0


@dataclass(frozen=True, slots=True)
class Place:
    """A world and the store that it comes from; `number` is the store's place on the command line."""

    number: int
    store: ResultStore
    world: World

    @property
    def name(self) -> str:
        return f"{self.world.sweep} · {self.world.gpu_kind} · {self.world.backend}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that was known at one time. trouble: why a store could not be read last time, by its number."""

    revision: int
    places: tuple[Place, ...]
    faults: tuple[str, ...]
    trouble: tuple[str, ...]
    read_unix_s: float


@dataclass(slots=True)
class Site:
    """Open stores and the newest snapshot; `refresh` makes a new one where something was committed."""

    stores: Sequence[ResultStore]
    cached: bool = True
    snapshot: Snapshot = field(init=False)
    _known: dict[tuple[int, str], tuple[Summary, list[World]]] = field(default_factory=dict)
    _folders: list[Path | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._folders = [cache_folder(store) if self.cached else None for store in self.stores]
        self.snapshot = Snapshot(0, (), (), (), time.time())

    def refresh(self) -> bool:
        """Look for new commits; whether there was anything new. A store that does not answer keeps what it had."""
        trouble = []
        changed = False
        for number, store in enumerate(self.stores):
            try:
                changed |= self._read(number, store)
            except MpscapeError as error:
                trouble.append(f"{store.uri}: {error}")
        before = self.snapshot
        # Kept in the order of the command line, then of the sweeps' names.
        known = sorted(self._known.items())
        self.snapshot = Snapshot(
            before.revision + changed,
            tuple(Place(number, self.stores[number], world) for (number, _), (_, worlds) in known for world in worlds)
            if changed
            else before.places,
            tuple(fault for _, (seen, _) in known for fault in seen.faults),
            tuple(trouble),
            time.time(),
        )
        return changed

    def _read(self, number: int, store: ResultStore) -> bool:
        changed = False
        found = commits(store)
        for sweep, entries in sorted(found.items()):
            known = self._known.get((number, sweep))
            if known is None or known[0].key != key_of(entries):
                made = summary(store, sweep, entries, self._folders[number])
                self._known[number, sweep] = (made, split(made.trials, made.windows, made.verdicts))
                changed = True
        return changed


@contextmanager
def following(site: Site, every_s: float) -> Iterator[None]:
    """Refresh the site beside the work until the context ends."""
    stop = threading.Event()

    def follow() -> None:
        wait_s = every_s
        while not stop.wait(wait_s):
            begun = time.monotonic()
            site.refresh()
            wait_s = max(every_s, REST_PER_WORK * (time.monotonic() - begun))

    thread = threading.Thread(target=follow, name="store-follower", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
