"""Generated text in a page that is written by hand: between `<!-- table: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from orchestrator.errors import EXIT_BAD_INPUT, EXIT_OK

MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_text(page: str, name: str, text: str) -> str:
    """`page` with `text` between the marker lines of `name`. Raises ValueError for a page without them."""
    if all(found[2] != name for found in MARKED.finditer(page)):
        raise ValueError(f"no `<!-- table: {name} -->` with an `<!-- end -->` after it")
    return MARKED.sub(lambda found: f"{found[1]}\n{text}\n\n{found[3]}" if found[2] == name else found[0], page)


def put(text: str, name: str, page: Path | None) -> int:
    """Print `text`, or write it between the marker lines of `name` in `page` and print its path; the exit status."""
    if page is None:
        print(text)
        return EXIT_OK
    try:
        page.write_text(with_text(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {page}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(page)
    return EXIT_OK
