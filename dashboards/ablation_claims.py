"""The published study's claims about halves of a model, C7 to C10, by the rules that were fixed beforehand.

Judged by replayed steps, where no host is in the path; what the same rule says of the cells as served is told beside
it. Where a rule left something open, our reading is stated where it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log, log2

import polars as pl

from dashboards.ablation import (
    ATTENTION,
    MLP,
    SERVED,
    SWEEPS,
    Ablation,
    Estimate,
    ablations,
    gain_ratio,
    over_boots,
)
from dashboards.claim_cells import Cell, Reading, Truth, planned, ratios
from dashboards.claim_rules import (
    Finding,
    every,
    every_cell,
    half_widths,
    negative,
    slope_of,
    slope_words,
    together,
)
from dashboards.context_fit import Slope, best_share, left_out_errors, slope
from orchestrator.gpus import KINDS
from orchestrator.sequential import ALPHA
from workloads.catalogue import load_model
from workloads.variants import split

# Claim C7: which exponent of context the time of a sequence should have, and the resource that has to bind.
EXPONENTS: Mapping[tuple[str, str], tuple[float, str]] = {
    ("mlp", "prefill"): (1.0, "compute"),
    ("attention", "prefill"): (2.0, "compute"),
    ("mlp", "decode"): (0.0, "bandwidth"),
    ("attention", "decode"): (1.0, "bandwidth"),
}
EXPONENT_TOLERANCE = 0.15
# Our reading: a resource binds a kernel that gets half or more of its peak, and an exponent takes three points.
BOUND_FROM = 0.5
FEWEST_BOUND = 3
OUTCOME = {True: "holds", False: "does not", None: "is open"}

Judge = Callable[[Mapping[str, Sequence[Ablation]]], Finding]


def ablation_findings(verdicts: pl.DataFrame, parts: pl.DataFrame) -> dict[str, tuple[str, Finding]]:
    """C7 to C10: the claim in short, and the finding. verdicts: rows of `verdicts.judge`; parts: of `step_parts`."""
    replayed = {phase: ablations(verdicts, parts, phase) for phase in SWEEPS}
    served = {phase: ratios(verdicts, sweep, "mps2", "single") for phase, sweep in SERVED.items()}
    of = {phase: ratios(verdicts, sweep, "mps2", "single") for phase, sweep in SWEEPS.items()}
    return {
        "C7": ("what a token takes grows with context as the arithmetic says", _exponents(parts)),
        "C8": ("the MLP alone gains modestly, and nothing when large", _beside(_mlp_alone, of, served)),
        "C9": (
            "attention alone gains much more, falling with context: linearly in decode, faster in prefill",
            _beside(_attention_alone, of, served),
        ),
        "C10": ("the halves explain the gain in decode, and not in prefill", _explained(replayed)),
    }


def _beside(
    judge: Callable[[Mapping[str, Sequence[Reading]]], Finding],
    replayed: Mapping[str, Sequence[Reading]],
    served: Mapping[str, Sequence[Reading]],
) -> Finding:
    """Judged by replayed steps; of the cells as served only what the rule says of them, if any was measured."""
    finding = judge(replayed)
    if not any(not reading.refused for readings in served.values() for reading in readings):
        return finding
    other = judge(served)
    told = f"As served, with the host in the path, the rule {OUTCOME[other.holds]}: {other.figures}"
    return Finding(finding.holds, f"{finding.figures}. {told}", finding.why)


def _of(readings: Sequence[Reading], billions: float, variant: str | None) -> list[Reading]:
    return [each for each in readings if each.cell.billions == billions and split(each.cell.model)[1] == variant]


def _mlp_alone(gains: Mapping[str, Sequence[Reading]]) -> Finding:
    """At the smallest model in every cell, and at 3B from 512 tokens on, in decode and in prefill."""
    both = [reading for readings in gains.values() for reading in readings]
    smallest = _of(both, min(reading.cell.billions for reading in both), MLP)
    large = [reading for reading in _of(both, 3, MLP) if reading.cell.prompt_tokens >= 512]
    return together(
        every_cell(smallest, lambda gain: gain.below(1.3), "interval below 1.3"),
        every_cell(large, _no_gain, "interval that holds 1 or lies below it"),
    )


def _no_gain(gain: Reading) -> Truth:
    """The interval holds 1 or lies below it."""
    return None if gain.refused else gain.low <= 1.0


def _attention_alone(gains: Mapping[str, Sequence[Reading]]) -> Finding:
    findings = []
    lines: dict[str, Slope | None] = {}
    for phase, readings in gains.items():
        full = {reading.cell.prompt_tokens: reading for reading in _of(readings, 3, None)}
        attention = _of(readings, 3, ATTENTION)
        more = [gain_ratio(reading, full[reading.cell.prompt_tokens]) for reading in attention]
        findings.append(
            every_cell(more, lambda ratio: ratio.above(1.1), "attention's gain over the full model's, above 1.1")
        )
        lines[phase] = _line(attention)
    findings.append(_linear(_of(gains["decode"], 3, ATTENTION)))
    findings.append(_steeper(lines))
    return together(*findings)


def _line(readings: Sequence[Reading]) -> Slope | None:
    return None if any(reading.refused for reading in readings) else slope_of(readings)


def _linear(readings: Sequence[Reading]) -> Finding:
    """In decode: falls with its interval, and a line over context predicts cells left out better than over its log."""
    line = _line(readings)
    if line is None:
        return Finding(
            None, "shape in decode not known", ("not every context of attention alone was measured in decode",)
        )
    contexts = [reading.cell.prompt_tokens for reading in readings]
    gains = [reading.value for reading in readings]
    errors = {shape: float(error) for shape, error in left_out_errors(contexts, gains).items()}
    share = best_share(contexts, gains, half_widths(readings), [reading.boots for reading in readings])
    figures = (
        f"decode: {slope_words(line)}, errors left out: linear {errors['linear']:.3f}, "
        f"log-linear {errors['log-linear']:.3f}"
    )
    falls = negative(line)
    # Not linear only where log-linear is best whatever the cells are within their intervals.
    fits: Truth = True if errors["linear"] < errors["log-linear"] else False if share >= 1 - ALPHA / 2 else None
    holds = every([falls, fits])
    why = ([] if falls else ["it does not fall in decode"]) + (
        [] if fits else ["linear does not predict better in decode"]
    )
    return Finding(holds, figures, () if holds else tuple(why))


def _steeper(lines: Mapping[str, Slope | None]) -> Finding:
    """The slopes over log context lie apart, that of prefill below."""
    prefill, decode = lines["prefill"], lines["decode"]
    if prefill is None or decode is None:
        return Finding(None, "", ("the slope in prefill or in decode is not known",))
    figures = f"prefill: {slope_words(prefill)}"
    holds: Truth = True if prefill.high < decode.low else False if prefill.low > decode.high else None
    return Finding(holds, figures, () if holds else ("the slope in prefill is not below that in decode",))


def _explained(replayed: Mapping[str, Sequence[Ablation]]) -> Finding:
    """Expected over actual, as the article composes it: a mean of gains weighted by share of wall time."""
    return together(_explained_phase(replayed["decode"], _slightly, "in (1, 1.1]"),
                    _explained_phase(replayed["prefill"], lambda ratio: ratio.above(1.1), "above 1.1"))  # fmt: skip


def _slightly(ratio: Reading) -> Truth:
    if ratio.refused:
        return None
    return True if ratio.low > 1.0 and ratio.high <= 1.1 else False if ratio.high <= 1.0 or ratio.low > 1.1 else None


def _explained_phase(cells: Sequence[Ablation], rule: Callable[[Reading], Truth], wanted: str) -> Finding:
    ratios_found = []
    for each in cells:
        if each.refused:
            ratios_found.append(Reading(each.cell, each.refused))
            continue
        ratio = each.expected()[0].over(Estimate.of(each.full))
        ratios_found.append(Reading(each.cell, "", ratio.value, ratio.low, ratio.high, each.full.boots))
    return every_cell(ratios_found, rule, f"expected over actual {wanted}")


def achieved_share(cell: Cell, gpu_kind: str, half: str, resource: str, tokens: float, seconds: float) -> float:
    """The part of the GPU's peak that a step's half of the layers got, by the catalogue's arithmetic.

    half: `attention` is the attention kernel alone. resource: compute (FLOPs) or bandwidth (bytes).
    """
    kind = KINDS[gpu_kind]
    phase = "prefill" if cell.kind.startswith("prefill") else "decode"
    sequences = max(1, round(tokens / cell.prompt_tokens)) if phase == "prefill" else round(tokens)
    model = load_model(cell.model)
    flops, moved = model.layer_resources(phase, cell.prompt_tokens, sequences)[half]  # type: ignore[arg-type]
    least_s = flops / kind.bf16_flops_per_s if resource == "compute" else moved / kind.memory_bytes_per_s
    return least_s / seconds


def _exponents(parts: pl.DataFrame) -> Finding:
    if parts.is_empty():
        return Finding(None, "no kernel times", ("no replayed step was profiled",))
    return together(*(_exponent(parts, half, phase) for half, phase in EXPONENTS))


def _exponent(parts: pl.DataFrame, half: str, phase: str) -> Finding:
    """Of the time a sequence takes in a half, over context, among the contexts where the resource binds."""
    wanted, resource = EXPONENTS[half, phase]
    own = parts.filter(pl.col("half") == half) if half == "mlp" else parts.filter(part="attention")
    totals = own.filter(sweep=SWEEPS[phase]).group_by("model", "gpu_kind", "prompt_tokens", "trial_id").agg(
        pl.col("seconds").sum(), pl.col("tokens").first(), pl.col("sequences").first()
    )  # fmt: skip
    findings = []
    full = [cell for cell in planned(SWEEPS[phase]) if split(cell.model)[1] is None]
    for model in dict.fromkeys(cell.model for cell in full):
        cells = [cell for cell in full if cell.model == model]
        bound = []
        measured = 0
        for cell in cells:
            rows = totals.filter(model=model, prompt_tokens=cell.prompt_tokens)
            each = pl.col("prompt_tokens") / pl.col("tokens") if phase == "prefill" else 1 / pl.col("sequences")
            reading = over_boots(cell, rows.select(pl.col("seconds") * each).to_series().to_list())
            if reading.refused:
                continue
            measured += 1
            mean = rows.select(pl.col("tokens", "seconds").mean()).row(0)
            if achieved_share(cell, rows["gpu_kind"][0], half, resource, *mean) >= BOUND_FROM:
                bound.append(reading)
        findings.append(_exponent_of(cells[0], bound, (half, phase, resource), measured, wanted))
    return together(*findings)


def _exponent_of(
    cell: Cell, bound: Sequence[Reading], what: tuple[str, str, str], measured: int, wanted: float
) -> Finding:
    half, phase, resource = what
    name = f"{half} in {phase} at {cell.size}"
    if len(bound) < FEWEST_BOUND:
        saw = f"bound by {resource} in {len(bound)} of {measured} contexts profiled"
        return Finding(None, "", (f"{name}: {saw}, {FEWEST_BOUND} wanted",))
    halves = [(reading.high - reading.low) / 2 / reading.value / log(2) for reading in bound]
    line = slope([reading.cell.prompt_tokens for reading in bound], [log2(reading.value) for reading in bound], halves)
    figures = f"{name}: exponent {line.value:.2f} ({line.low:.2f} to {line.high:.2f}), {wanted:g} by the arithmetic"
    inside = wanted - EXPONENT_TOLERANCE <= line.low and line.high <= wanted + EXPONENT_TOLERANCE
    outside = line.high < wanted - EXPONENT_TOLERANCE or line.low > wanted + EXPONENT_TOLERANCE
    holds: Truth = True if inside else False if outside else None
    return Finding(holds, figures, () if holds else (f"{name}: exponent {line.value:.2f}",))
