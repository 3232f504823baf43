"""What the reader has chosen, as it stands in the address: every view can be linked to, and the back button works."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

WHOLE = ("concurrency", "output_tokens", "context", "repeat", "store", "against_store")
PLACE = ("store", "sweep", "backend", "gpu")
# What says nothing in another sweep.
INSIDE = ("kind", "concurrency", "output_tokens", "residency", "pair", "view", "setting", "model", "context", "repeat")


@dataclass(frozen=True, slots=True)
class Selection:
    """Values as the address gives them, unchecked; None: not said. `pair` is `arm~baseline`, `store` its place among
    the stores of the command line."""

    store: int | None = None
    sweep: str | None = None
    backend: str | None = None
    gpu: str | None = None
    kind: str | None = None
    concurrency: int | None = None
    output_tokens: int | None = None
    residency: str | None = None
    pair: str | None = None
    view: str | None = None
    setting: str | None = None
    model: str | None = None
    context: int | None = None
    repeat: int | None = None
    limit: str | None = None
    most_s: str | None = None
    against_store: int | None = None
    against: str | None = None

    @classmethod
    def parse(cls, search: str | None) -> Selection:
        """Out of `?name=value&...`; names that are not ours and numbers that are none are passed over."""
        said: dict[str, Any] = {}
        names = {field.name for field in fields(cls)}
        for name, values in parse_qs((search or "").lstrip("?")).items():
            if name in WHOLE:
                if values[-1].isdecimal():
                    said[name] = int(values[-1])
            elif name in names:
                said[name] = values[-1]
        return cls(**said)

    @property
    def search(self) -> str:
        """The query, empty where nothing is said."""
        said = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return f"?{urlencode(said)}" if said else ""

    def but(self, **changes: Any) -> Selection:
        return replace(self, **changes)

    def elsewhere(self, **place: Any) -> Selection:
        """In another sweep, where what was chosen inside this one may not exist."""
        return replace(self, **dict.fromkeys(INSIDE), **place)
