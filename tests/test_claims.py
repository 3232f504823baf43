"""Claims whose truth is planted: reproduced, contradicted, or open for a cell, an interval or a boot too few."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from dashboards.claim_cells import Cell, Reading, boot_means, places, planned, ratios, shares
from dashboards.claim_rules import every, some
from dashboards.claims import MIXED, PREFILL, Claim, claims, claims_table
from dashboards.landscape_tables import landscape_table
from dashboards.step_parts import step_parts
from orchestrator.decision import word
from orchestrator.records import SAMPLES, TRIALS, WINDOWS
from orchestrator.verdicts import VERDICTS, judge
from tests.planted import THREE_ARMS, frames

Gain = Callable[[Cell], float]
Tables = tuple[pl.DataFrame, pl.DataFrame]
COUNTERS = ("gpu_active_share", "sm_active_share", "tensor_active_share", "dram_active_share")
NOTHING = (TRIALS.to_frame(), WINDOWS.to_frame())
NO_PARTS = step_parts(*NOTHING, SAMPLES.to_frame())


def verdicts(
    sweep: str = MIXED, gain: Gain = lambda cell: 1.0, pair: tuple[str, str] = ("mps2", "single"), half: float = 0.01
) -> pl.DataFrame:
    """Rows of every planned cell of a sweep, in three boots, with the interval gain ± half."""
    rows = []
    for cell in planned(sweep):
        ratio = gain(cell)
        rows.append(
            {name: getattr(cell, name) for name in ("model", "kind", "prompt_tokens", "output_tokens", "concurrency")}
            | {"sweep": sweep, "backend": "vllm", "gpu_kind": "H200", "residency": "resident", "metric": "throughput"}
            | {"arm": pair[0], "baseline": pair[1], "ratio": ratio, "ci_low": ratio - half, "ci_high": ratio + half}
            | {"verdict": "", "reasons": [], "margin": 0.03, "boots": 3, "p_value": 0.01}
        )
    return pl.DataFrame(rows, schema_overrides=VERDICTS).pipe(_filled, VERDICTS).pipe(with_words)


def with_words(rows: pl.DataFrame) -> pl.DataFrame:
    low, high = pl.col("ci_low").log(), pl.col("ci_high").log()
    refused = pl.col("p_value").is_null()
    return rows.with_columns(
        verdict=pl.when(refused).then(pl.lit("undecided")).otherwise(word(low, high, pl.col("margin")))
    )


def counters(sweep: str, arms: tuple[str, ...], share: Callable[[Cell, str], float]) -> Tables:
    """Trials and windows of every planned cell in three boots, which scatter by 0.01 about `share`."""
    trials, windows = [], []
    for number, cell in enumerate(planned(sweep)):
        for boot, off in enumerate((-0.01, 0.0, 0.01)):
            for arm in arms:
                name = f"{sweep} {number} {boot} {arm}"
                trials.append(
                    {key: getattr(cell, key) for key in ("model", "kind", "prompt_tokens", "output_tokens")}
                    | {"concurrency": cell.concurrency, "sweep": sweep, "backend": "vllm", "gpu_kind": "H200"}
                    | {"trial_id": name, "attempt_id": "a", "repeat_id": f"{number} {boot}", "arm": arm}
                    | {"outcome": "ok", "residency": "resident"}
                )
                windows.append(
                    {"trial_id": name, "attempt_id": "a", "boot_id": f"{cell.model} {boot} {arm}", "certified": True}
                    | {"bound_by": "engine_core", "power_capped_share": 0.25, "steps_eager_share": 0.75}
                    | {"steps_padding_share": 0.125 if arm == "single" else None}
                    | {counter: share(cell, arm) + off for counter in COUNTERS}
                )
    return _filled(pl.DataFrame(trials), TRIALS), _filled(pl.DataFrame(windows), WINDOWS)


def _filled(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    rest = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in frame.columns]
    return frame.with_columns(rest).select(schema.names()).cast(dict(schema))  # type: ignore[arg-type]


def judged(rows: pl.DataFrame, number: str, tables: Tables = NOTHING) -> Claim:
    (claim,) = (each for each in claims(rows, *tables, NO_PARTS) if each.id == number)
    return claim


def changed(rows: pl.DataFrame, model: str, context: int, **values: object) -> pl.DataFrame:
    here = pl.col("model").str.ends_with(model) & (pl.col("prompt_tokens") == context)
    assert rows.filter(here).height > 0
    return rows.with_columns(
        pl.when(here).then(pl.lit(value, VERDICTS[name])).otherwise(name).alias(name) for name, value in values.items()
    ).pipe(with_words)


def steep(cell: Cell) -> float:
    """A landscape that the study would know: large for small models and short contexts, a loss in the end."""
    fall = {0.5: 0.0, 1.5: 0.1, 3.0: 0.4, 7.0: 0.95}[cell.billions]
    if cell.billions == 7.0:
        return 1.02 - 0.01 * math.log2(cell.prompt_tokens / 128)
    level = {128: 1.9, 256: 1.75, 512: 1.7, 1024: 1.65, 2048: 1.05, 4096: 1.0, 8192: 0.95, 16384: 0.9}
    return level[cell.prompt_tokens] - (fall if cell.prompt_tokens < 2048 else 0.0)


# claim -> the model's and context's cell that the rule names, with intervals that contradict and that straddle
NAMED = {
    "C1": ("1.5B", 256, (1.2, 1.4), (1.4, 1.6)),
    "C4": ("3B", 2048, (1.15, 1.3), (1.05, 1.15)),
    "C15": ("0.5B", 16384, (1.15, 1.3), (1.05, 1.15)),
    "C16": ("3B", 1024, (0.9, 1.05), (1.05, 1.2)),
}


@pytest.mark.parametrize("number", NAMED)
def test_a_claim_over_cells_is_reproduced_contradicted_or_open(number: str) -> None:
    rows = verdicts(gain=steep)
    model, context, against, straddling = NAMED[number]
    place = f"{model} at {context}"
    assert judged(rows, number) == Claim(
        number, judged(rows, number).claim, "reproduced", judged(rows, number).figures, ""
    )

    contrary = judged(changed(rows, model, context, ci_low=against[0], ci_high=against[1]), number)
    assert contrary.outcome == "not reproduced"
    assert place in contrary.reason

    open_ = judged(changed(rows, model, context, ci_low=straddling[0], ci_high=straddling[1]), number)
    assert (open_.outcome, open_.reason) == ("undecided", f"the interval holds the bound: {place}")

    for values in ({}, {"ci_low": against[0], "ci_high": against[1]}):
        two = judged(changed(rows, model, context, boots=2, p_value=None, **values), number)
        assert (two.outcome, two.reason) == ("undecided", f"2 of 3 boots: {place}")

    here = pl.col("model").str.ends_with(model) & (pl.col("prompt_tokens") == context)
    lost = judged(rows.filter(~here), number)
    assert (lost.outcome, lost.reason) == ("undecided", f"not measured: {place}")


def test_a_contradiction_stands_though_cells_are_missing() -> None:
    one = changed(verdicts(gain=steep), "0.5B", 128, ci_low=1.1, ci_high=1.2).filter(
        pl.col("model").str.ends_with("0.5B"), prompt_tokens=128
    )
    assert judged(one, "C1").outcome == "not reproduced"
    assert {each.outcome for each in claims(one, *NOTHING, NO_PARTS) if each.id != "C1"} == {"undecided"}


def test_cells_outside_the_rule_do_not_count() -> None:
    rows = changed(verdicts(gain=steep), "3B", 512, ci_low=0.5, ci_high=0.6)
    found = {each.id: each.outcome for each in claims(rows, *NOTHING, NO_PARTS)}
    assert {number: found[number] for number in ("C1", "C4", "C15", "C16")} == {
        "C1": "reproduced", "C4": "reproduced", "C15": "reproduced", "C16": "not reproduced"
    }  # fmt: skip


def test_a_loss_in_the_end_is_looked_for_in_every_cell_beyond() -> None:
    never = verdicts(gain=lambda cell: 1.05)
    assert judged(never, "C4").outcome == "not reproduced"
    assert "none of 12 cells" in judged(never, "C4").reason
    assert judged(changed(never, "7B", 16384, ci_low=0.99), "C4").outcome == "undecided"
    assert judged(changed(never, "7B", 16384, ci_low=0.9, ci_high=0.99), "C4").outcome == "reproduced"
    assert judged(changed(never, "7B", 2048, ci_low=0.9, ci_high=0.99), "C4").outcome == "not reproduced"


def test_the_order_of_sizes() -> None:
    rows = verdicts(gain=steep)
    assert judged(rows, "C3").outcome == "reproduced"
    assert judged(changed(rows, "3B", 128, ratio=1.85), "C3").outcome == "undecided"
    assert judged(changed(rows, "7B", 128, ci_high=1.95), "C3").outcome == "undecided"
    turned = judged(changed(rows, "3B", 128, ratio=1.85, ci_low=1.84, ci_high=1.86), "C3")
    assert (turned.outcome, turned.reason) == (
        "not reproduced", "3B at 128: 1.850 (1.840 to 1.860) lies above 1.5B at 128: 1.800 (1.790 to 1.810)"
    )  # fmt: skip
    assert judged(changed(rows, "1.5B", 128, boots=2), "C3").outcome == "undecided"


SHAPES: dict[str, Gain] = {
    "log-linear": lambda cell: 2.0 - 0.15 * math.log2(cell.prompt_tokens / 128),
    "linear": lambda cell: 2.0 - 1.0 * cell.prompt_tokens / 16384,
    "step": lambda cell: 2.0 if cell.prompt_tokens <= 1024 else 1.0,
    "rising": lambda cell: 1.0 + 0.15 * math.log2(cell.prompt_tokens / 128),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_over_context(shape: str) -> None:
    claim = judged(verdicts(gain=SHAPES[shape]), "C2")
    assert claim.outcome == ("reproduced" if shape == "log-linear" else "not reproduced")
    assert ("is positive" in claim.reason) == (shape == "rising")


def test_the_shape_is_open_with_wide_intervals_few_contexts_or_few_models() -> None:
    rows = verdicts(gain=SHAPES["log-linear"])
    assert judged(verdicts(gain=SHAPES["log-linear"], half=0.9), "C2").outcome == "undecided"
    assert judged(verdicts(gain=SHAPES["step"], half=0.9), "C2").outcome == "undecided"
    assert judged(rows.filter(pl.col("prompt_tokens") <= 1024), "C2").outcome == "undecided"
    assert judged(rows.filter(pl.col("prompt_tokens") <= 2048), "C2").outcome == "reproduced"
    assert judged(rows.filter(~pl.col("model").str.contains("-7B")), "C2").outcome == "reproduced"
    assert judged(rows.filter(~pl.col("model").str.contains("-7B|-3B")), "C2").outcome == "undecided"
    stepped = verdicts(gain=SHAPES["step"]).filter(pl.col("prompt_tokens") <= 8192)
    assert judged(stepped, "C2").outcome == "undecided", "the last context may turn it"


def prefill_gain(cell: Cell) -> float:
    fall = 0.1 * math.log2(cell.prompt_tokens / 128)
    return {0.5: 2.5, 1.5: 2.2, 3.0: 1.4 - fall, 7.0: 0.99}[cell.billions]


def test_prefill_claims_are_judged_by_prefill_alone() -> None:
    rows = verdicts(PREFILL, prefill_gain)
    assert [judged(rows, number).outcome for number in ("C5", "C6")] == ["reproduced", "reproduced"]
    mixed = pl.col("kind") == "mixed"
    other = rows.with_columns(
        pl.when(mixed).then(1.2).otherwise("ci_low").alias("ci_low"),
        pl.when(mixed).then(1.3).otherwise("ci_high").alias("ci_high"),
    ).pipe(with_words)
    for number in ("C5", "C6"):
        claim = judged(other, number)
        assert claim.outcome == "reproduced"
        assert "16 output tokens, by the same rule not reproduced" in claim.figures
        assert judged(rows.filter(mixed), number).outcome == "undecided"


def test_prefill_claims_are_contradicted_by_a_cell() -> None:
    rows = verdicts(PREFILL, prefill_gain)
    assert judged(changed(rows, "1.5B", 8192, ci_low=1.2, ci_high=1.9), "C5").outcome == "not reproduced"
    assert judged(changed(rows, "3B", 8192, ci_low=1.1, ci_high=1.2), "C6").outcome == "not reproduced"
    assert judged(changed(rows, "7B", 128, ci_low=1.06, ci_high=1.2), "C6").outcome == "not reproduced"
    assert judged(changed(rows, "7B", 128, ci_low=1.0, ci_high=1.2), "C6").outcome == "undecided"
    assert judged(changed(rows, "3B", 256, boots=2), "C6").outcome == "undecided"
    rising = verdicts(PREFILL, lambda cell: 2.0 - prefill_gain(cell) if cell.billions == 3 else prefill_gain(cell))
    assert "the slope of 3B is positive" in judged(rising, "C6").reason


def test_idle_resources_need_every_cell_and_counter() -> None:
    rows = VERDICTS.to_frame()
    idle = counters(MIXED, ("single",), lambda cell, arm: 0.9 if cell.billions == 7 else 0.4)
    assert judged(rows, "C17", idle).outcome == "reproduced"
    busy = counters(MIXED, ("single",), lambda cell, arm: 0.7 if cell.prompt_tokens == 8192 else 0.4)
    assert judged(rows, "C17", busy).outcome == "not reproduced"
    near = counters(MIXED, ("single",), lambda cell, arm: 0.59 if cell.prompt_tokens == 8192 else 0.4)
    assert "SM: the interval holds the bound: 0.5B, 1.5B, 3B at 8192" in judged(rows, "C17", near).reason
    trials, windows = idle
    fewer = judged(rows, "C17", (trials, windows.filter(pl.col("boot_id") != "Qwen/Qwen2.5-3B 0 single")))
    assert (fewer.outcome, fewer.reason) == ("undecided", "2 of 3 boots: 3B at 128 to 16384")
    torn = judged(rows, "C17", (trials, windows.with_columns(dram_active_share=pl.lit(None, pl.Float64))))
    assert (torn.outcome, torn.reason) == (
        "undecided", "DRAM: 0 of 3 boots: 0.5B, 1.5B, 3B at 128 to 16384"
    )  # fmt: skip


def test_a_share_has_students_interval_over_boots() -> None:
    tables = counters(MIXED, ("single", "mps2"), lambda cell, arm: 0.4 if arm == "single" else 0.9)
    boots = boot_means(*tables, MIXED, ["sm_active_share"])
    seen = shares(boots, MIXED, "single", "sm_active_share")
    reach = 4.302653 * 0.01 / np.sqrt(3)
    assert {reading.boots for reading in seen} == {3}
    assert [seen[0].low, seen[0].value, seen[0].high] == pytest.approx([0.4 - reach, 0.4, 0.4 + reach])


def overlapping(gain: Gain) -> pl.DataFrame:
    return pl.concat([verdicts(sweep, gain, ("mps2", "timesliced2")) for sweep in (MIXED, PREFILL)])


def test_kernel_overlap() -> None:
    one_each = overlapping(lambda cell: 1.2 if cell.prompt_tokens == 512 else 1.0)
    both = [
        counters(sweep, ("timesliced2", "mps2"), lambda cell, arm: 0.5 + 0.2 * (arm == "mps2"))
        for sweep in (MIXED, PREFILL)
    ]
    trials, windows = (pl.concat(tables) for tables in zip(*both, strict=True))
    seen = judged(one_each, "C18", (trials, windows))
    assert seen.outcome == "reproduced"
    assert "0.5B, 22 of 22 cells: 3 wins, 19 tie, 0 loses, 0 undecided, median ratio 1.000" in seen.figures
    assert "SM share +0.200" in seen.figures
    assert judged(one_each, "C18").outcome == "reproduced"
    assert judged(overlapping(lambda cell: 0.9 if cell.billions == 3 else 1.0), "C18").outcome == "not reproduced"
    assert judged(overlapping(lambda cell: 0.9 if cell.billions == 3 else 1.2), "C18").outcome == "undecided"
    assert judged(overlapping(lambda cell: 1.0), "C18").outcome == "undecided"
    assert judged(changed(one_each, "7B", 16384, boots=2), "C18").reason == "2 of 3 boots: 7B at 16384"


def planted(**constants: object) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The first cell of the landscape as windows: mps2 at 1.8 times single, timesliced2 at 1.2, three boots."""
    arms = np.log([1.0, 1.2, 1.8])[None, None, :, None]
    scatter = np.random.default_rng(3).normal(0, 0.01, (1, 3, 3, 2))
    cell = {"sweep": MIXED, "backend": "vllm", "gpu_kind": "H200", "model": "Qwen/Qwen2.5-0.5B", "output_tokens": 128}
    trials, windows = frames(arms + scatter, THREE_ARMS, **(cell | constants))
    return trials.with_columns(concurrency=pl.lit(256, pl.Int64)), windows


def reading(trials: pl.DataFrame, windows: pl.DataFrame) -> Reading:
    first = ratios(judge(trials, windows, planned_boots=3), MIXED, "mps2", "single")[0]
    assert (first.cell.size, first.cell.prompt_tokens, first.cell.concurrency) == ("0.5B", 128, 256)
    return first


def test_from_windows_to_a_reading() -> None:
    trials, windows = planted()
    found = reading(trials, windows)
    assert (found.refused, found.boots, found.verdict) == ("", 3, "wins")
    assert found.low < 1.8 < found.high
    assert reading(trials.filter(pl.col("repeat") < 2), windows).refused == "2 of 3 boots"
    clients = trials.with_columns(concurrency=pl.lit(128, pl.Int64))
    assert reading(clients, windows).refused == "measured with 128 clients, planned are 256"
    assert reading(*planted(backend="simulated")).refused == "not measured"
    assert reading(*planted(sweep="plateau")).refused == "not measured"
    half = windows.with_columns(certified=pl.col("round_index") == 0)
    assert "windows of mps2 not certified" in reading(trials, half).refused
    moved = pl.concat([trials, trials.with_columns(pl.col("repeat_id", "trial_id") + "x", gpu_kind=pl.lit("H100"))])
    more = pl.concat([windows, windows.with_columns(pl.col("trial_id") + "x")])
    assert reading(moved, more).refused == "measured on several kinds of GPU, or resident and alone"


def test_the_landscape_in_order_without_other_sweeps_and_predictions() -> None:
    rows = verdicts(gain=steep)
    shuffled = pl.concat(
        [rows, rows.with_columns(sweep=pl.lit("plateau")), rows.with_columns(backend=pl.lit("simulated"))]
    )
    lines = landscape_table(
        shuffled.sample(fraction=1, shuffle=True, seed=1), *counters(MIXED, ("single", "mps2"), lambda cell, arm: 0.4)
    ).splitlines()
    cells = [[each.strip() for each in line.strip("|").split("|")] for line in lines[2:]]
    assert [(row[0].rsplit("-", 1)[-1], int(row[2]), int(row[3])) for row in cells] == [
        (cell.size, cell.prompt_tokens, cell.concurrency) for cell in planned(MIXED)
    ]
    assert cells[0][4:] == [
        "1.900 (1.890 to 1.910) wins", "-", "-", "3", "engine_core", "engine_core", "25 %", "25 %", "40 %, 40 %, 40 %",
        "75 %", "75 %", "12 %", "-",
    ]  # fmt: skip
    assert len(landscape_table(VERDICTS.to_frame(), *NOTHING).splitlines()) == 2


def test_the_table_has_every_claim_and_five_columns() -> None:
    lines = claims_table(
        changed(verdicts(), "7B", 128, boots=3, p_value=None, reasons=["a 1 | 2"]), *NOTHING, NO_PARTS
    ).splitlines()
    numbers = [line.split("|")[1].strip() for line in lines[2:]]
    assert numbers == [f"C{number}" for number in (*range(1, 13), *range(15, 19))]
    assert {len(re.findall(r"\|", line)) for line in lines} == {6}


def test_three_valued_words_and_places() -> None:
    assert [every([True, None]), every([None, False]), every([True])] == [None, False, True]
    assert [some([False, None]), some([None, True]), some([False])] == [None, True, False]
    with pytest.raises(ValueError, match="names no cell"):
        every([])
    wanted = [
        Reading(cell) for cell in planned(MIXED) if cell.billions < 3 and cell.prompt_tokens in (128, 256, 512, 2048)
    ]
    assert places([*wanted[1:3], *wanted[4:7]]) == "0.5B at 256, 512 and 1.5B at 128 to 512"
    assert places([wanted[5], wanted[1]]) == "0.5B, 1.5B at 256"
    few = [Reading(cell) for cell in planned(PREFILL) if cell.billions == 3 and cell.prompt_tokens == 8192]
    assert places(few) == "3B prefill at 8192 and 3B with 16 out at 8192"
