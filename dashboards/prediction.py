"""What the simulated GPU predicts, beside what was measured: ratios of arms, rates and bounds, cell by cell.

    python -m dashboards.prediction MEASURED_STORE SIMULATED_STORE [--page docs/simulation.md]

Both stores hold the same sweep, one measured, the other simulated. A prediction is set over the measurement of the same
cell and arms, and never averaged with it. With `--page` the tables are written anew between the page's lines
`<!-- table: prediction -->`, or another name, and `<!-- end -->`, and the rest of it is left as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from dashboards import cells
from dashboards.findings_tables import interval_words, planned_verdicts, table
from dashboards.landscape_tables import KEY
from dashboards.marked_page import put
from orchestrator import decision, grounds
from orchestrator.errors import MpscapeError, StoreError
from orchestrator.store import ResultStore

TABLE = "prediction"
MEASURED, SIMULATED = "vllm", "simulated"
ARM, BASELINE = "mps2", "single"
# A simulated engine loads no weights.
SETTINGS = [name for name in grounds.SETTINGS if name != "weights"]

OPENING = """What is called SIMULATED is a prediction of the simulated GPU; all else was measured, in certified windows
of `{source}`. Cells of `{sweeps}` in both: {shared}. Cells on one side alone are left out: {measured_only} measured
only, {simulated_only} simulated only."""
PAIRS_NOTE = """The SIMULATED ratio of two arms' throughputs over the measured one: geometric mean over cells, and the
standard deviation of the logarithm as scatter. Inside: of the cells with a measured 95 % interval, by the boots that
were planned; an interval of two boots is so wide that this says little. Same word: of the cells whose measured verdict
is decided, those where the SIMULATED ratio alone lies beyond the same end of the tie margin, or within it likewise."""
RATES_NOTE = """The SIMULATED throughput of an arm over the measured one: geometric mean over cells, and the standard
deviation of the logarithm as scatter. Of `single` this is no test, since the constants are from single engines; they
are for a core of 36 Mops, and a slower one slows in proportion."""
CELLS_NOTE = """Cell by cell, SIMULATED and measured in columns of their own. Rates are geometric means over windows,
the gain is the throughput of `mps2` over that of `single`, and an arm is bound by what bounds most of its windows."""

PAIRS_HEAD = (
    *("part", "arms", "cells", "SIMULATED ratio / measured ratio", "scatter"),
    *("SIMULATED inside the measured interval", "SIMULATED and measured the same word"),
)
RATES_HEAD = ("model", "arm", "cells", "SIMULATED tokens/s / measured tokens/s", "scatter")
CELLS_HEAD = (
    *("model", "load", "context", "clients", "tokens/s of single, measured", "SIMULATED"),
    *("gain, measured", "95 % interval, measured", "boots, measured", "gain, SIMULATED"),
    *("single bound by, measured", "SIMULATED", "mps2 bound by, measured", "SIMULATED"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """What one backend says of its cells.

    verdicts: throughput rows of `planned_verdicts`. arms: one row a cell (KEY) and arm over its certified windows:
        `rate` (tokens/s), `bound_by`, `sharing`, `engines` and `settings` (JSON objects, those of all repeats).
    """

    verdicts: pl.DataFrame
    arms: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measured columns under their own names, simulated ones with `_simulated`; cells that both sides have.

    pairs: one row a cell and pair of arms that is a part, with `off` (log of simulated ratio over measured ratio) and
        `word` (what the simulated ratio is by the measured margin). arms: one row a cell and arm, with `off` likewise.
    measured_only, simulated_only: numbers of cells left out.
    """

    pairs: pl.DataFrame
    arms: pl.DataFrame
    measured_only: int
    simulated_only: int


def side(store: ResultStore, backend: str) -> Side:
    """The rows of one backend alone. Raises StoreError where the store holds none of them."""
    trials = store.read("trials").filter(backend=backend)
    if trials.is_empty():
        raise StoreError(
            f"{store.uri!r} holds no rows of backend {backend}: the measured store ({MEASURED}) comes first, then the "
            f"one that `python -m orchestrator.sweep FILE --backend {SIMULATED}` wrote"
        )
    settings = [_settings(row) for row in trials.select(SETTINGS).iter_rows(named=True)]
    ok = trials.with_columns(settings=pl.Series(settings, dtype=pl.String)).filter(outcome="ok")
    arms = (
        cells.measured(ok, store.read("windows"))
        .filter("certified", pl.col("rate") > 0)
        .join(ok.select("trial_id", "attempt_id", "settings"), on=["trial_id", "attempt_id"])
        .group_by(*KEY, "arm")
        .agg(
            pl.col("sharing", "engines").first(),
            pl.col("settings").unique().sort(),
            # As the ratios are: geometric.
            rate=pl.col("rate").log().mean().exp(),
            bound_by=pl.col("bound_by").fill_null("unknown").mode().sort().first(),
        )
    )
    return Side(planned_verdicts(store).filter(backend=backend), arms)


def _settings(row: Mapping[str, Any]) -> str:
    """What has to be the same on both sides; noise and the like are the simulation's own."""
    arguments = {key: value for key, value in json.loads(row["engine_args"] or "{}").items() if key != "simulation"}
    return json.dumps({**row, "engine_args": arguments}, sort_keys=True)


def compare(measured: Side, simulated: Side) -> Comparison:
    """Raises StoreError where no cell is on both sides, or an arm has other settings on the one than on the other."""
    arms = measured.arms.join(simulated.arms, on=[*KEY, "arm"], suffix="_simulated")
    if arms.is_empty():
        raise StoreError(
            "no cell is in both stores: they must agree in sweep, GPU kind, model, load, clients and arms, as they do "
            f"where the sweep file that was measured is run with --backend {SIMULATED} --gpu KIND"
        )
    other = arms.filter(pl.col("settings") != pl.col("settings_simulated")).sort(*KEY, "arm")
    if not other.is_empty():
        row = other.row(0, named=True)
        raise StoreError(
            f"{row['arm']} of {row['sweep']}, {row['model']}, was measured with {' and '.join(row['settings'])} and "
            f"simulated with {' and '.join(row['settings_simulated'])}: simulate the sweep file that was measured"
        )
    predicted = simulated.verdicts.select(*KEY, "arm", "baseline", ratio_simulated="ratio")
    log = pl.col("ratio_simulated").log()
    pairs = (
        measured.verdicts.join(predicted, on=[*KEY, "arm", "baseline"])
        .drop_nulls(["part", "ratio", "ratio_simulated"])
        .with_columns(off=log - pl.col("ratio").log(), word=decision.word(log, log, pl.col("margin")))
    )
    shared = arms.n_unique(KEY)
    left_out = (one.arms.n_unique(KEY) - shared for one in (measured, simulated))
    return Comparison(pairs, arms.with_columns(off=(pl.col("rate_simulated") / pl.col("rate")).log()), *left_out)


def pairs_table(pairs: pl.DataFrame) -> str:
    """One row a pair of arms, by part. pairs: of `Comparison`."""
    known, decided = pl.col("ci_high").is_finite(), pl.col("verdict") != "undecided"
    found = pairs.group_by("part", "arm", "baseline").agg(
        *_over_cells(),
        known=known.sum(),
        inside=(known & pl.col("ratio_simulated").is_between("ci_low", "ci_high")).sum(),
        decided=decided.sum(),
        same=(pl.col("word") == pl.col("verdict")).sum(),  # a ratio without an interval is never undecided
    )
    rows = [
        (
            *(row["part"].replace("_", " "), f"{row['arm']} / {row['baseline']}", *_over_cells_words(row)),
            *(f"{row['inside']} of {row['known']}", f"{row['same']} of {row['decided']}"),
        )
        for row in found.sort("part", "arm", "baseline").iter_rows(named=True)
    ]
    return table(PAIRS_HEAD, rows)


def rates_table(arms: pl.DataFrame) -> str:
    """One row a model and arm, smallest model first. arms: of `Comparison`."""
    found = arms.group_by("model", "arm").agg(_over_cells())
    order = cells.by_size(found["model"]), pl.col("arm").cast(pl.Enum([*cells.arms(arms)]))
    rows = [
        (row["model"].rsplit("/", 1)[-1], row["arm"], *_over_cells_words(row))
        for row in found.sort(*order).iter_rows(named=True)
    ]
    return table(RATES_HEAD, rows)


def _over_cells() -> list[pl.Expr]:
    off = pl.col("off")
    return [pl.len().alias("cells"), off.mean().exp().alias("mean"), off.std().alias("scatter")]


def _over_cells_words(row: Mapping[str, Any]) -> tuple[str, str, str]:
    scatter = "-" if row["scatter"] is None else f"{100 * row['scatter']:.1f} %"
    return str(row["cells"]), f"{row['mean']:.2f}", scatter


def cells_table(comparison: Comparison) -> str:
    """One row a cell, smallest model and shortest context first; what one side lacks has a dash."""
    gains = comparison.pairs.filter(arm=ARM, baseline=BASELINE).select(
        *KEY, "ratio", "ci_low", "ci_high", "boots", "ratio_simulated"
    )
    shown = ["rate", "rate_simulated", "bound_by", "bound_by_simulated"]
    single, mps = (comparison.arms.filter(arm=arm).select(*KEY, *shown) for arm in (BASELINE, ARM))
    found = (
        comparison.arms.select(KEY)
        .unique()
        .join(single, on=KEY, how="left")
        .join(mps, on=KEY, how="left", suffix="_mps")
        .join(gains, on=KEY, how="left", suffix="_gain")
    )
    order = ("kind", "output_tokens", "prompt_tokens", "concurrency", "residency", "sweep", "gpu_kind")
    ordered = found.sort(cells.by_size(found["model"]), *order)
    return table(CELLS_HEAD, [_cell(row) for row in ordered.iter_rows(named=True)])


def _cell(row: Mapping[str, Any]) -> tuple[str, ...]:
    alone = "" if row["residency"] == "resident" else f", {row['residency']}"
    bounds = ("bound_by", "bound_by_simulated", "bound_by_mps", "bound_by_simulated_mps")
    return (
        *(row["model"].rsplit("/", 1)[-1], f"{row['kind']}, {row['output_tokens']} out"),
        *(f"{row['prompt_tokens']}{alone}", str(row["concurrency"])),
        *(_number(row[name], ",.0f") for name in ("rate", "rate_simulated")),
        *(_number(row["ratio"], ".3f"), interval_words(row["ci_low"], row["ci_high"]), _number(row["boots"], "d")),
        _number(row["ratio_simulated"], ".3f"),
        *(row[name] or "-" for name in bounds),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def tables(found: Comparison, source: str) -> str:
    """Markdown: three tables, each under words that say what in it is simulated. source: the measured store's name."""
    opening = OPENING.format(
        source=source,
        sweeps="`, `".join(sorted(found.arms["sweep"].unique())),
        shared=found.arms.n_unique(KEY),
        measured_only=found.measured_only,
        simulated_only=found.simulated_only,
    )
    shown = [opening, PAIRS_NOTE, pairs_table(found.pairs), RATES_NOTE, rates_table(found.arms)]
    return "\n\n".join([*shown, CELLS_NOTE, cells_table(found)])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: prints the tables, or writes them into the page and prints its path."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dashboards.prediction", description=description)
    parser.add_argument("measured", metavar="MEASURED_STORE", help="folder or URL")
    parser.add_argument("simulated", metavar="SIMULATED_STORE", help="folder or URL; the same sweep, simulated")
    parser.add_argument("--page", type=Path, help="Markdown page to write the tables into, instead of printing them")
    parser.add_argument("--table", default=TABLE, metavar="NAME", help=f"of the page's marker (default: {TABLE})")
    asked = parser.parse_args(arguments)
    try:
        measured, simulated = (ResultStore.open(uri, create=False) for uri in (asked.measured, asked.simulated))
        found = compare(side(measured, MEASURED), side(simulated, SIMULATED))
    except MpscapeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    text = tables(found, Path(measured.uri).name)
    return put(text, asked.table, asked.page)


if __name__ == "__main__":
    sys.exit(main())
