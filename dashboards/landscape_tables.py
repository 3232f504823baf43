"""The landscape as one table: by model and context what two engines gain, of which parts, and what bounds each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from dashboards import cells
from dashboards.findings_tables import interval_words, table

SWEEPS = ("scaling-landscape", "prefill-landscape")
KEY = ["sweep", "gpu_kind", "model", "kind", "prompt_tokens", "output_tokens", "concurrency", "residency"]
PAIRS = (("mps2", "single"), ("timesliced2", "single"), ("mps2", "timesliced2"))
ACTIVE = ("sm_active_share", "tensor_active_share", "dram_active_share")
COUNTERS = ("power_capped_share", "steps_eager_share", "steps_padding_share", *ACTIVE)
HEAD = (
    *("model", "load", "context", "clients", "gain: mps2 / single", "host parallelism: timesliced2 / single"),
    *("kernel overlap: mps2 / timesliced2", "boots", "single mostly bound by", "mps2 mostly bound by"),
    *("power-capped, single", "power-capped, mps2", "SM, tensor, DRAM active, single"),
    *("steps without a graph, single", "mps2", "padding, single", "mps2"),
)


def landscape_table(verdicts: pl.DataFrame, trials: pl.DataFrame, windows: pl.DataFrame, backend: str = "vllm") -> str:
    """One row a cell of SWEEPS, smallest model and shortest context first; what was not measured has a dash.

    verdicts: rows of `verdicts.judge`; trials, windows: tables of `records`. Other backends are left out. Cells that
    were measured one arm at a time say so beside their context. Counters are means over certified windows.
    """
    own = verdicts.filter(pl.col("sweep").is_in(SWEEPS), metric="throughput", backend=backend)
    ratios: dict[tuple[Any, ...], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in own.iter_rows(named=True):
        ratios.setdefault(_key(row), {})[row["arm"], row["baseline"]] = row
    arms = _arms(trials, windows, backend)
    sizes = {model: place for place, model in enumerate(cells.model_order(own["model"]))}
    order = sorted(ratios, key=lambda key: (SWEEPS.index(key[0]), sizes[key[2]], key[3], key[5], key[4], key))
    return table(HEAD, [_row(key, ratios[key], arms) for key in order])


def _arms(trials: pl.DataFrame, windows: pl.DataFrame, backend: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """By cell and arm: what bounds most of its windows, in a draw the first by name, and means of counters."""
    asked = trials.filter(pl.col("sweep").is_in(SWEEPS), outcome="ok", backend=backend)
    sound = windows.filter("certified").select("trial_id", "attempt_id", "bound_by", *COUNTERS)
    joined = sound.join(asked.select("trial_id", "attempt_id", "arm", *KEY), on=["trial_id", "attempt_id"])
    means = joined.group_by(*KEY, "arm").agg(
        pl.col(*COUNTERS).mean(), pl.col("bound_by").drop_nulls().mode().sort().first()
    )
    return {(_key(row), row["arm"]): row for row in means.iter_rows(named=True)}


def _row(
    key: tuple[Any, ...],
    ratios: Mapping[tuple[str, str], Mapping[str, Any]],
    arms: Mapping[tuple[Any, ...], Mapping[str, Any]],
) -> Sequence[str]:
    _, _, model, kind, prompt, output, clients, residency = key
    context = str(prompt) if residency == "resident" else f"{prompt}, alone"
    single, mps = (arms.get((key, arm), {}) for arm in ("single", "mps2"))
    boots = sorted({row["boots"] for row in ratios.values()})
    return (
        *(model.rsplit("/", 1)[-1], f"{kind}, {output} out", context, str(clients)),
        *(_ratio(ratios.get(pair)) for pair in PAIRS),
        " to ".join(map(str, dict.fromkeys((boots[0], boots[-1])))),
        *(arm.get("bound_by") or "-" for arm in (single, mps)),
        *(_percent(arm.get("power_capped_share")) for arm in (single, mps)),
        ", ".join(_percent(single.get(name)) for name in ACTIVE),
        *(_percent(arm.get(name)) for name in ("steps_eager_share", "steps_padding_share") for arm in (single, mps)),
    )


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None or row["ratio"] is None:
        return "-"
    interval = "" if row["ci_low"] is None else f" ({interval_words(row['ci_low'], row['ci_high'])})"
    return f"{row['ratio']:.3f}{interval} {row['verdict']}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)
