"""What the simulated GPU says of cells that nobody has measured yet, as a table that a page carries until they are.

    python -m orchestrator.sweep sweeps/scaling-landscape.yaml --backend simulated --gpu H200 --store STORE
    python -m dashboards.forecast STORE --page docs/simulation.md

Committed before the measurement, such a table can be wrong: `python -m dashboards.prediction` tells.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboards.findings_tables import planned_verdicts
from dashboards.landscape_tables import landscape_table
from dashboards.marked_page import put
from orchestrator.errors import MpscapeError, StoreError
from orchestrator.store import ResultStore

TABLE = "forecast"
NOTE = """SIMULATED, all of it: `{sweeps}` on an {gpu}, version {version} of the simulated GPU, with {noise} noise.
Intervals are those of simulated boots and windows, which begin with the clients out of step (docs/engine.md)."""


def forecast(store: ResultStore) -> str:
    """Markdown: the landscapes of a store whose every trial was simulated. Raises StoreError for any other."""
    trials = store.read("trials")
    backends = set(trials["backend"])
    if backends != {"simulated"}:
        raise StoreError(
            f"{store.uri!r} is no forecast: it holds rows of {', '.join(sorted(backends)) or 'no backend'}"
        )
    versions = {json.loads(text)["simulator"] for text in trials["software"].drop_nulls().unique()}
    arguments = [json.loads(text) for text in trials["engine_args"].unique()]
    noises = {each.get("simulation", {}).get("noise", "realistic") for each in arguments}
    note = NOTE.format(
        sweeps="`, `".join(store.sweeps()),
        gpu=" and ".join(sorted(trials["gpu_kind"].unique())),
        version=" and ".join(sorted(versions)),
        noise=" and ".join(sorted(noises)),
    )
    return f"{note}\n\n{landscape_table(planned_verdicts(store), trials, store.read('windows'), 'simulated')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: prints the table, or writes it into the page and prints its path."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.forecast", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", metavar="STORE", help="folder or URL, all of it simulated")
    parser.add_argument("--page", type=Path, help="Markdown page to write the table into, instead of printing it")
    asked = parser.parse_args(arguments)
    try:
        text = forecast(ResultStore.open(asked.store, create=False))
    except MpscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return put(text, TABLE, asked.page)


if __name__ == "__main__":
    sys.exit(main())
