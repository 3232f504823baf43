"""What a sweep notes down beside its results: small JSON objects, each written once under a name of its own.

<folder>/sweep=<name>/<stem><chance>.json
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.commit import sweep_folder
from orchestrator.store import ResultStore

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Note = TypeVar("Note")
ACCOUNTS, QUARANTINE = "accounts", "quarantine"
FOLDERS = (ACCOUNTS, QUARANTINE)


def keep(store: ResultStore, folder: str, sweep: str, note: DataclassInstance, stem: str = "") -> None:
    """Write a dataclass into the store. Raises StoreError."""
    name = f"{sweep_folder(folder, sweep)}/{stem}{secrets.token_hex(8)}.json"
    store.objects.create(name, json.dumps(asdict(note), sort_keys=True).encode())


def kept(store: ResultStore, folder: str, sweep: str, kind: Callable[..., Note]) -> list[Note]:
    """All notes of a sweep, each made by `kind` from its fields, in no particular order.

    An object that is no whole JSON, or has not the fields that `kind` wants, is left out and told of in
    `store.faults`. Raises StoreError.
    """
    found = []
    for entry in store.objects.listing(sweep_folder(folder, sweep)):
        try:
            fields: dict[str, Any] = json.loads(store.objects.get(entry.path))
            found.append(kind(**fields))
        except (ValueError, TypeError) as error:  # torn, or of a newer release
            store.report(f"{entry.path}: {error}; left out")
    return found


def copy_notes(source: ResultStore, destination: ResultStore, sweep: str) -> None:
    """Every note of a sweep, as it stands. Raises StoreError."""
    for folder in FOLDERS:
        for entry in source.objects.listing(sweep_folder(folder, sweep)):
            destination.objects.create(entry.path, source.objects.get(entry.path))
