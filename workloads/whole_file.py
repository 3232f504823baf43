"""Files that appear whole or not at all, whoever reads, writes or is killed meanwhile."""

from __future__ import annotations

import secrets
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """UTF-8, by a file beside it that takes its name; several processes may write the same path at once."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
