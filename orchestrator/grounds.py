"""What speaks against a verdict before any statistic: arms that failed, worlds that were mixed, windows not certified.

Each function gives (pair_id, text, refuses): `refuses` makes the verdict `undecided`, otherwise it is only said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import polars as pl

INVALID_SHARE = 1 / 3
SETTINGS = ("sharing", "engines", "active_thread_percentage", "engine_args", "cores_per_engine", "pinned", "weights")
# Versions of this project in the software record.
OWN = {"mpscape", "commit", "modified"}
GROUNDS = pl.Schema({"pair_id": pl.UInt32, "text": pl.String, "refuses": pl.Boolean})


def missing(trials: pl.DataFrame, sides: pl.DataFrame) -> pl.DataFrame:
    """Arms that are not there, were skipped or failed; refuses where no repeat has both arms."""
    both = (pl.col("outcome") == "ok") & (pl.col("base_outcome") == "ok")
    counts = sides.group_by("pair_id", "cell_id", "arm", "baseline").agg(
        repeats=pl.len(), both=both.fill_null(False).sum(), absent=pl.col("outcome").is_null().sum(),
        base_absent=pl.col("base_outcome").is_null().sum(),
    )  # fmt: skip
    lost = (
        trials.filter(pl.col("outcome") != "ok")
        .group_by("cell_id", "arm", "outcome", maintain_order=True)
        .agg(times=pl.len(), reason=pl.col("reason").drop_nulls().first())
    )
    reasons: dict[tuple[int, str], list[str]] = {}
    for cell, arm, outcome, times, reason in lost.iter_rows():
        reasons.setdefault((cell, arm), []).append(f"{arm} {outcome} {times}×" + (f": {reason}" if reason else ""))
    rows = []
    for row in counts.filter(pl.col("both") < pl.col("repeats")).iter_rows(named=True):
        parts = []
        for arm, absent in ((row["baseline"], row["base_absent"]), (row["arm"], row["absent"])):
            parts += reasons.get((row["cell_id"], arm), [])
            if absent:
                parts.append(f"{arm} has no trial in {absent} of {row['repeats']} repeats")
        refuses = row["both"] == 0
        head = "no repeat with both arms" if refuses else f"both arms in {row['both']} of {row['repeats']} repeats only"
        rows.append((row["pair_id"], f"{head}: {', '.join(parts)}", refuses))
    return _grounds(rows)


def mixed(trials: pl.DataFrame, sides: pl.DataFrame) -> pl.DataFrame:
    """Repeats that differ in GPU model, software or an arm's settings, and arms of one repeat on different GPUs."""
    used = sides.filter(outcome="ok", base_outcome="ok")
    facts = trials.select("trial_id", "arm", "gpu_name", "software", *SETTINGS)
    candidate = used.select("pair_id", "trial_id").join(facts, on="trial_id")
    involved = pl.concat(
        [candidate, used.select("pair_id", trial_id="base_trial_id").join(facts, on="trial_id")], how="vertical"
    )
    rows: list[tuple[int, str, bool]] = []
    worlds = involved.group_by("pair_id").agg(pl.col("gpu_name", "software").drop_nulls().unique().sort())
    for pair, names, software in worlds.filter(
        (pl.col("gpu_name").list.len() > 1) | (pl.col("software").list.len() > 1)
    ).iter_rows():
        if len(names) > 1:
            rows.append((pair, f"GPUs of different kinds: {', '.join(names)}", True))
        if len(software) > 1:
            what, own_only = _differing(software)
            rows.append((pair, f"software differs between repeats: {what}", not own_only))
    settings = involved.group_by("pair_id", "arm").agg(pl.col(SETTINGS).n_unique())
    for row in settings.filter(pl.any_horizontal(pl.col(SETTINGS) > 1)).iter_rows(named=True):
        names = [name for name in SETTINGS if row[name] > 1]
        rows.append((row["pair_id"], f"{row['arm']} was run with different {', '.join(names)}", True))
    apart = used.filter(pl.col("gpu_uuid") != pl.col("base_gpu_uuid")).group_by("pair_id").len()
    rows += [
        (pair, f"arms of one repeat on different GPUs in {times} repeats", True) for pair, times in apart.iter_rows()
    ]
    return _grounds(rows)


def uncertified(trials: pl.DataFrame, windows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Windows that are not to be believed, with the checks that failed most; refuses where an arm has over a third."""
    ok = trials.filter(outcome="ok").select("trial_id", "attempt_id", "cell_id", "arm")
    seen = windows.select("trial_id", "attempt_id", "certified", "certificate_failures").join(
        ok, on=["trial_id", "attempt_id"]
    )
    bad = ~pl.col("certified").fill_null(False)
    counts = seen.group_by("cell_id", "arm").agg(n=pl.len(), bad=bad.sum()).filter(pl.col("bad") > 0)
    checks = (
        seen.filter(bad)
        .explode("certificate_failures", empty_as_null=True, keep_nulls=True)
        .drop_nulls("certificate_failures")
        .with_columns(pl.col("certificate_failures").str.split(": ").list.first())  # the check's name, not what it saw
        .group_by("cell_id", "arm", "certificate_failures")
        .len()
        .sort("len", "certificate_failures", descending=[True, False])
        .group_by("cell_id", "arm", maintain_order=True)
        .agg(checks=pl.format("{} {}×", "certificate_failures", "len").head(3))
    )
    named = counts.join(checks, on=["cell_id", "arm"], how="left")
    found = pl.concat(
        [pairs.select("pair_id", "cell_id", "arm").join(named, on=["cell_id", "arm"]),
         pairs.select("pair_id", "cell_id", arm="baseline").join(named, on=["cell_id", "arm"])]
    )  # fmt: skip
    rows = []
    for row in found.sort("pair_id", "arm").iter_rows(named=True):
        why = f" ({', '.join(row['checks'])})" if row["checks"] else ""
        text = f"{row['bad']} of {row['n']} windows of {row['arm']} not certified{why}"
        rows.append((row["pair_id"], text, row["bad"] / row["n"] > INVALID_SHARE))
    return _grounds(rows)


def _differing(texts: list[str]) -> tuple[str, bool]:
    """`vllm 0.25.1 | 0.26.0` for every key whose value is not the same in all of the JSON objects.

    And whether that is this project alone, which is said and refuses nothing: a sweep may be resumed by a newer one.
    """
    try:
        worlds: list[dict[str, Any]] = [json.loads(text) for text in texts]
        keys = sorted({key for world in worlds for key in world})
    except (ValueError, TypeError):
        return "unreadable record", False
    values = {key: sorted({str(world.get(key)) for world in worlds}) for key in keys}
    differing = {key: found for key, found in values.items() if len(found) > 1}
    return ", ".join(f"{key} {' | '.join(found)}" for key, found in differing.items()), differing.keys() <= OWN


def _grounds(rows: Iterable[tuple[int, str, bool]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=GROUNDS, orient="row")
