"""`mpscape.json` at a store's top: that it is a store, which schema it began with, and which store it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import uuid4

from orchestrator.datafile import refuse_newer
from orchestrator.errors import NoStore, StoreError
from orchestrator.objects import Objects
from orchestrator.records import SCHEMA_VERSION
from orchestrator.trial import canonical_json

MARKER = "mpscape.json"


@dataclass(frozen=True, slots=True)
class Marker:
    """`mark` is drawn by whoever creates the store: two nodes that read the same one share it, whatever its path."""

    schema_version: int
    mark: str

    @classmethod
    def read(cls, objects: Objects) -> Marker:
        """Raises StoreError where there is none or it is damaged, SchemaTooNew where a newer release made it."""
        if objects.stat(MARKER) is None:
            raise NoStore(f"no store at {objects.uri!r}: it has no {MARKER}; check the path, or run a sweep into it")
        try:
            fields = json.loads(objects.get(MARKER))
            refuse_newer(int(fields["schema_version"]), f"the store {objects.uri!r}")
            return cls(int(fields["schema_version"]), str(fields["mark"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{MARKER} in {objects.uri!r} is damaged ({error}); if this is a store, delete that file and resume "
                "the sweep, which makes it anew"
            ) from error

    @classmethod
    def create(cls, objects: Objects) -> None:
        """Make `objects` a store unless it is one."""
        objects.create(MARKER, canonical_json(cls(SCHEMA_VERSION, uuid4().hex)).encode())
