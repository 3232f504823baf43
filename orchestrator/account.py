"""Where the time went for which a host held its GPU: one account a block, kept beside the results.

    python -m orchestrator.account STORE            # share of the held time that went into measured windows, by sweep

The GPU is held from the look at whether it is clean to the look at whether it is clean again. Boot, windows, what lies
between them (warm-ups, pilots, hand-overs) and teardown are told apart by the clock of the host; they add up to that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields

import polars as pl

from orchestrator import notes
from orchestrator.errors import MpscapeError
from orchestrator.observation import Deployment
from orchestrator.store import ResultStore


@dataclass(slots=True)
class Account:
    """Seconds of one block on one host. between_s: warm-ups, pilots, hand-overs, and the rows being written."""

    block_id: str
    host: str
    gpu_uuid: str
    began_unix_s: float
    held_s: float = 0.0
    boot_s: float = 0.0
    windows_s: float = 0.0
    teardown_s: float = 0.0

    @property
    def between_s(self) -> float:
        return self.held_s - self.boot_s - self.windows_s - self.teardown_s

    @contextmanager
    def held(self, opened: AbstractContextManager[Deployment]) -> Iterator[Deployment]:
        """Around a deployment: counts its boot, its teardown and all in between; may be used again for the next."""
        began = ended = time.monotonic()
        try:
            with opened as deployment:
                self.boot_s += time.monotonic() - began
                self.gpu_uuid = next(iter(deployment.boots.values())).gpu_uuid
                try:
                    yield deployment
                finally:
                    ended = time.monotonic()
            self.teardown_s += time.monotonic() - ended
        finally:
            self.held_s += time.monotonic() - began

    def line(self) -> str:
        share = self.windows_s / self.held_s if self.held_s else 0.0
        return (
            f"block {self.block_id}: held the GPU for {self.held_s:.0f} s: boot {self.boot_s:.0f}, windows "
            f"{self.windows_s:.0f} ({share:.0%}), between them {self.between_s:.0f}, teardown {self.teardown_s:.0f}"
        )

    def keep(self, store: ResultStore, sweep: str) -> None:
        """Write it into the store: a block that was tried twice has two."""
        notes.keep(store, notes.ACCOUNTS, sweep, self, f"{self.block_id}-")


def read_accounts(store: ResultStore, sweep: str) -> pl.DataFrame:
    """All accounts of a sweep, oldest first: the fields of `Account`."""
    rows = [asdict(account) for account in notes.kept(store, notes.ACCOUNTS, sweep, Account)]
    kinds = {"block_id": pl.String, "host": pl.String, "gpu_uuid": pl.String}
    schema = {each.name: kinds.get(each.name, pl.Float64) for each in fields(Account)}
    return pl.DataFrame(rows, schema=schema).sort("began_unix_s")


def shares(accounts: pl.DataFrame) -> dict[str, float]:
    """Held seconds, and the share of them by what they went into."""
    held = float(accounts["held_s"].sum())
    spent = {name: float(accounts[f"{name}_s"].sum()) for name in ("boot", "windows", "teardown")}
    spent["between"] = held - sum(spent.values())
    return {"held_s": held, **{name: seconds / held if held else 0.0 for name, seconds in spent.items()}}


def main(argv: list[str] | None = None) -> int:
    """Print the shares by sweep."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.account", description=__doc__.splitlines()[0])
    parser.add_argument("store", help="folder or bucket URI")
    options = parser.parse_args(argv)
    try:
        store = ResultStore.open(options.store, create=False)
        for sweep in store.sweeps():
            accounts = read_accounts(store, sweep)
            if accounts.is_empty():
                print(f"{sweep}: no account was kept")
                continue
            share = shares(accounts)
            parts = ", ".join(f"{name} {share[name]:.0%}" for name in ("windows", "boot", "between", "teardown"))
            print(f"{sweep}: {accounts.height} blocks held a GPU for {share['held_s']:.0f} s: {parts}")
        for fault in store.faults:
            print(f"left out: {fault}", file=sys.stderr)
    except MpscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
