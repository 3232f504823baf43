"""The ablations as tables: what halves of a model gain beside the whole, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from dashboards.ablation import ATTENTION, MLP, SERVED, SWEEPS, Ablation, Estimate, ablations
from dashboards.ablation_claims import achieved_share
from dashboards.claim_cells import Cell, Reading, ratios
from dashboards.findings_tables import table
from dashboards.step_parts import CELL, part_order
from orchestrator.gpus import KINDS
from orchestrator.sequential import MIN_BOOTS
from workloads.variants import split

GAINS = (
    *("step", "model", "context", "clients", "gain, full", "attention only", "MLP only", "attention's share of both"),
    *("expected, weighted mean of gains", "expected, as times compose", "expected / actual"),
    *("overlap, full", "overlap, attention only", "overlap, MLP only", "gain as served, full"),
)
RESOURCES = (
    *("step", "model", "context", "half", "TFLOP", "GB", "TFLOP a GB", "ms measured"),
    *("of peak compute", "of peak bandwidth"),
)


def ablation_table(verdicts: pl.DataFrame, parts: pl.DataFrame) -> str:
    """One row a full cell of the replayed sweeps that has any ratio; a dash for what was not measured.

    Ratios of fewer boots than a verdict needs stand without an interval, and are in no expectation.
    """
    rows = []
    for phase, sweep in SWEEPS.items():
        early = _early(verdicts.filter(sweep=sweep))
        overlap = {
            (*split(reading.cell.model), reading.cell.prompt_tokens): reading
            for reading in ratios(verdicts, sweep, "mps2", "timesliced2")
        }
        served = {
            (*split(reading.cell.model), reading.cell.prompt_tokens): reading
            for reading in ratios(verdicts, SERVED[phase], "mps2", "single")
        }
        for each in ablations(verdicts, parts, phase):
            place = each.cell.model, each.cell.prompt_tokens
            halves = each.full, each.attention, each.mlp
            gains = [_words(reading, early, "single") for reading in halves]
            if set(gains) == {"-"}:
                continue
            overlaps = [overlap[place[0], variant, place[1]] for variant in (None, ATTENTION, MLP)]
            rows.append(
                (
                    *(phase, each.cell.size, str(each.cell.prompt_tokens), str(each.cell.concurrency)),
                    *(*gains, _words(each.share), *_expected(each)),
                    *(_words(reading, early, "timesliced2") for reading in overlaps),
                    _words(served.get((place[0], None, place[1]))),
                )
            )
    return table(GAINS, rows) if rows else NOT_YET


NOT_YET = "Not measured yet."


def _early(verdicts: pl.DataFrame) -> dict[tuple[str, int, str], str]:
    """Ratios of mps2 by model, context and baseline, with their boots."""
    rows = verdicts.filter(arm="mps2", metric="throughput", backend="vllm").drop_nulls("ratio")
    found = rows.select("model", "prompt_tokens", "baseline", "ratio", "boots").iter_rows()
    return {tuple(place): f"{ratio:.3f}, {boots} of {MIN_BOOTS} boots" for *place, ratio, boots in found}


def _words(reading: Reading | None, early: Mapping[tuple[str, int, str], str] | None = None, baseline: str = "") -> str:
    if reading is None:
        return "-"
    if reading.refused:
        return (early or {}).get((reading.cell.model, reading.cell.prompt_tokens, baseline), "-")
    return Estimate.of(reading).words


def _expected(each: Ablation) -> Sequence[str]:
    if each.refused:
        return ("-",) * 3
    weighted, times = each.expected()
    return weighted.words, times.words, weighted.over(Estimate.of(each.full)).words


def part_table(parts: pl.DataFrame) -> str:
    """Shares of a replayed step by part, a row a cell, means over boots; they add up to the step."""
    if parts.is_empty():
        return NOT_YET
    means = parts.group_by(*CELL, "part").agg(pl.col("seconds", "step_s").mean()).sort(*CELL)
    names = part_order(means["part"].unique())
    rows = []
    for cell, seen in means.group_by(*CELL, maintain_order=True):
        facts = dict(zip(CELL, cell, strict=True))
        seconds = dict(seen.select("part", "seconds").iter_rows())
        step_s = seen["step_s"][0]
        shares = [f"{100 * seconds[name] / step_s:.1f} %" if name in seconds else "-" for name in names]
        shown = (str(facts["kind"]), str(facts["model"]).rsplit("/", 1)[-1], str(facts["prompt_tokens"]))
        rows.append((*shown, f"{1000 * step_s:.3f}", *shares))
    return table(("step", "model", "context", "ms a step", *names), rows)


def resource_table(parts: pl.DataFrame) -> str:
    """What both halves of the layers take by the catalogue's arithmetic, beside the time that their kernels took."""
    own = parts.filter((pl.col("part") == "attention") | (pl.col("half") == "mlp"))
    full = [model for model in own["model"].unique() if split(model)[1] is None]
    totals = (
        own.filter(pl.col("model").is_in(full))
        .group_by(*CELL, "half", "trial_id")
        .agg(pl.col("seconds").sum(), pl.col("tokens").first())
        .group_by(*CELL, "half")
        .agg(pl.col("seconds", "tokens").mean())
        .sort("kind", "model", "half", "prompt_tokens")
    )
    rows = []
    for row in totals.iter_rows(named=True):
        cell = Cell(0.0, row["model"], row["kind"], row["output_tokens"], row["prompt_tokens"], row["concurrency"])
        compute, bandwidth = (
            achieved_share(cell, row["gpu_kind"], row["half"], resource, row["tokens"], row["seconds"])
            for resource in ("compute", "bandwidth")
        )
        kind = KINDS[row["gpu_kind"]]
        flops = compute * row["seconds"] * kind.bf16_flops_per_s
        moved = bandwidth * row["seconds"] * kind.memory_bytes_per_s
        rows.append(
            (
                *(row["kind"], row["model"].rsplit("/", 1)[-1], str(row["prompt_tokens"])),
                *(row["half"], f"{flops / 1e12:.3g}", f"{moved / 1e9:.3g}", f"{flops / moved / 1e3:.3g}"),
                *(f"{1000 * row['seconds']:.3f}", f"{100 * compute:.0f} %", f"{100 * bandwidth:.0f} %"),
            )
        )
    return table(RESOURCES, rows) if rows else NOT_YET
