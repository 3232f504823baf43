"""The JSON Schema of a sweep file, for editors: `python -m orchestrator.spec_schema [--write]`.

Prints it, or writes it to `sweeps/sweep.schema.json`. The schema knows each key on its own; what keys mean together is
checked when a sweep is loaded.
"""

from __future__ import annotations

import argparse
import json
import sys

from orchestrator.spec import SWEEPS, SweepSpec

SCHEMA_FILE = SWEEPS / "sweep.schema.json"


def schema_text() -> str:
    """The schema as it stands in SCHEMA_FILE."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SweepSpec.json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="The JSON Schema of a sweep file.")
    parser.add_argument("--write", action="store_true", help=f"write {SCHEMA_FILE.name} beside the sweeps")
    if parser.parse_args().write:
        SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    else:
        sys.stdout.write(schema_text())


if __name__ == "__main__":
    main()
