"""What a sweep notes down beside its results: small JSON objects, each written once under a name of its own.

<folder>/sweep=<name>/<stem><chance>.json
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from orchestrator.commit import sweep_folder
from orchestrator.errors import StoreError
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


def kept(store: ResultStore, folder: str, sweep: str, kind: type[Note]) -> list[Note]:
    """All notes of a sweep, in no particular order. kind: a dataclass of text and numbers.

    An object that is no whole JSON, or has not the fields of `kind`, each of its type, is left out and told of in
    `store.faults`. Raises StoreError.
    """
    found = []
    for entry in store.objects.listing(sweep_folder(folder, sweep)):
        try:
            found.append(_note(kind, store.objects.get(entry.path)))
        except (ValueError, TypeError) as error:  # torn, or of a newer release
            store.report(f"{entry.path}: {error}; left out")
    return found


def _note(kind: type[Note], text: bytes) -> Note:
    note = kind(**json.loads(text))
    for name, wanted in get_type_hints(kind).items():
        value = getattr(note, name)
        if type(value) not in ((wanted, int) if wanted is float else (wanted,)):
            raise TypeError(f"{name} must be {wanted.__name__}, not {value!r}")
    return note


def copy_notes(source: ResultStore, destination: ResultStore, sweep: str) -> None:
    """Every note of a sweep, as it stands; one that is there already stays.

    Raises StoreError, also where the destination has something else under the same name.
    """
    for folder in FOLDERS:
        for entry in source.objects.listing(sweep_folder(folder, sweep)):
            if not destination.objects.create(entry.path, source.objects.get(entry.path)):
                raise StoreError(
                    f"{entry.path} is there already, with other content, in {destination.uri!r}: copy to a new store"
                )
